import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from rumfast.algorithms import ALGORITHMS, relabel
from rumfast.algorithms.relabel import RandomLabelConfig, SalunConfig, saliency_masks, wrong_labels
from rumfast.training import Learner

RANDOM_LABEL, SALUN = ALGORITHMS["random_label"], ALGORITHMS["salun"]


@pytest.fixture
def ids(split):
    return torch.from_numpy(split.forget), torch.from_numpy(split.retain)


def test_wrong_labels_are_never_right_and_uniform_among_the_others():
    label = torch.arange(5).repeat_interleave(4000)
    wrong = wrong_labels(label, 5, seed=1)
    table = torch.zeros(5, 5).index_put_((label, wrong), torch.ones(20_000), accumulate=True)
    assert table.diagonal().tolist() == [0.0] * 5
    assert (table[~torch.eye(5, dtype=torch.bool)] - 1000).abs().max() < 5 * np.sqrt(4000 * 0.25 * 0.75)
    assert torch.equal(wrong, wrong_labels(label, 5, seed=1))
    assert not torch.equal(wrong, wrong_labels(label, 5, seed=2))
    assert wrong_labels(torch.tensor([0, 1, 1]), 2, seed=0).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    "algorithm, config", [(RANDOM_LABEL, RandomLabelConfig(epochs=2)), (SALUN, SalunConfig(epochs=2))]
)
def test_only_the_forget_set_is_relabelled_and_both_are_shuffled_together(
    digits, learner, monkeypatch, algorithm, config
):
    true = digits.train.label_N
    forget, retain = np.flatnonzero(true == 3), np.flatnonzero(true != 3)
    used = []

    def record(logits, label, **options):
        if not options:  # with reduction="sum" it is the saliency's, which is about the true labels
            used.append(label.tolist())
        return cross_entropy(logits, label, **options)

    monkeypatch.setattr(relabel, "cross_entropy", record)
    algorithm.run(learner, torch.from_numpy(forget), torch.from_numpy(retain), config, 0)
    assert [len(batch) for batch in used] == [60] * 10  # 300 = 5 · 60, twice
    for epoch in (sum(used[:5], []), sum(used[5:], [])):
        counts = np.bincount(epoch, minlength=10)
        assert counts[3] == 0 and counts.sum() == 300
        assert (counts >= np.bincount(true[retain], minlength=10)).all()
    assert sorted(sum(used[:5], [])) == sorted(sum(used[5:], []))  # the wrong labels stay the same
    assert torch.equal(learner.loader.label_N, torch.from_numpy(true))  # nor does the next plan see them


def saliency(learner, forget):
    """|Σ_S ∇CE| at θo in one batch."""
    learner.model.eval()
    batch = learner.loader.image_NHWC[forget]
    image = (batch.float() / 255 - torch.tensor(learner.loader._options["mean"])) / torch.tensor(
        learner.loader._options["std"]
    )
    loss = cross_entropy(
        learner.model(image.permute(0, 3, 1, 2)), learner.loader.label_N[forget], reduction="sum"
    )
    return torch.cat([g.abs().flatten() for g in torch.autograd.grad(loss, list(learner.model.parameters()))])


@pytest.mark.parametrize("fraction", [0.5, 0.1, 1.0, 1e-9])
def test_the_mask_is_the_largest_share_exactly(learner, ids, fraction):
    expected = saliency(learner, ids[0])
    masks = saliency_masks(learner, ids[0], fraction)
    kept = torch.cat([mask.flatten() for mask in masks])
    assert [mask.shape for mask in masks] == [parameter.shape for parameter in learner.model.parameters()]
    assert kept.sum() == max(1, round(fraction * len(expected)))
    if not kept.all():
        assert expected[kept].min() >= expected[~kept].max() * (1 - 1e-3) - 1e-6
    assert learner.examples == len(ids[0])
    assert all(parameter.grad is None for parameter in learner.model.parameters())


def test_saliency_does_not_depend_on_the_batch_size(digits, recipe, original, ids):
    masks = []
    for size in (7, 64):
        learner = Learner(digits, recipe.model_copy(update={"batch_size": size}), "cpu", model=original)
        masks.append(torch.cat([mask.flatten() for mask in saliency_masks(learner, ids[0], 0.5)]))
    assert (masks[0] != masks[1]).float().mean() < 1e-3


def test_frozen_weights_end_bit_identical_and_the_others_move(learner, ids, original):
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    masks = saliency_masks(learner, ids[0], 0.5)
    statistics = learner.model.bn1.running_mean.clone()
    SALUN.run(learner, *ids, SalunConfig(lr=0.1, epochs=3, momentum=0.9, weight_decay=0.1), 0)
    for (name, parameter), mask in zip(learner.model.named_parameters(), masks, strict=True):
        assert torch.equal(parameter[~mask], before[name][~mask]), name
    moved = torch.cat(
        [
            (parameter != before[name])[mask]
            for (name, parameter), mask in zip(learner.model.named_parameters(), masks, strict=True)
        ]
    )
    assert moved.float().mean() > 0.99
    assert not torch.equal(learner.model.bn1.running_mean, statistics)


def test_with_all_weights_salient_it_is_random_label(learner, ids, original):
    SALUN.run(learner, *ids, SalunConfig(lr=0.05, epochs=2, fraction=1.0), 7)
    ours = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    learner.model.load_state_dict(original.state_dict())
    RANDOM_LABEL.run(learner, *ids, RandomLabelConfig(lr=0.05, epochs=2), 7)
    assert all(torch.equal(ours[name], tensor) for name, tensor in learner.model.state_dict().items())


def test_half_of_the_weights_learn_less_than_all(learner, ids, original):
    assert SalunConfig().fraction == 0.5 and (SalunConfig().lr, SalunConfig().epochs) == (0.1, 10)
    SALUN.run(learner, *ids, SalunConfig(lr=0.05, epochs=1, fraction=0.02), 0)
    distance = sum(
        (a - b).square().sum() for a, b in zip(learner.model.parameters(), original.parameters(), strict=True)
    )
    learner.model.load_state_dict(original.state_dict())
    RANDOM_LABEL.run(learner, *ids, RandomLabelConfig(lr=0.05, epochs=1), 0)
    whole = sum(
        (a - b).square().sum() for a, b in zip(learner.model.parameters(), original.parameters(), strict=True)
    )
    assert 0 < distance < whole
