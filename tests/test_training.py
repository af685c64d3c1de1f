import math

import numpy as np
import pytest
import torch

from rumfast import TrainConfig, train
from rumfast.data import Dataset, load_dataset
from rumfast.errors import DataError, DivergedError, UsageError
from rumfast.training import Learner, learning_rate


def same(first, second):
    return all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def with_train(data, image_NHWC, label_N):
    """The same data set with other training pixels and labels but the old mean and standard deviation."""
    changed = Dataset.from_arrays(image_NHWC, label_N, data.test.image_NHWC, data.test.label_N, data.classes)
    object.__setattr__(changed, "mean", data.mean)
    object.__setattr__(changed, "std", data.std)
    return changed


RATES = [
    (dict(schedule="constant"), [(0, 0.4), (9.99, 0.4)]),
    (dict(schedule="cosine"), [(0, 0.4), (2.5, 0.2 * (1 + math.sqrt(0.5))), (5, 0.2), (10, 0.0), (11, 0.0)]),
    (
        dict(schedule="multistep", milestones=(3, 6), gamma=0.1),
        [(0, 0.4), (2.99, 0.4), (3, 0.04), (5.99, 0.04), (6, 0.004), (10, 0.004)],
    ),
    (dict(schedule="constant", warmup_epochs=2), [(0, 0.0), (0.5, 0.1), (1, 0.2), (2, 0.4), (7, 0.4)]),
    # After the warm-up the cosine has what is left of the training, not all of it.
    (dict(schedule="cosine", warmup_epochs=2), [(0, 0.0), (1, 0.2), (2, 0.4), (6, 0.2), (10, 0.0)]),
    (
        dict(schedule="multistep", milestones=(3,), gamma=0.2, warmup_epochs=1),
        [(0.25, 0.1), (2, 0.4), (3, 0.08)],
    ),
    (dict(schedule="cosine", warmup_epochs=10), [(5, 0.2), (10, 0.4)]),
]


@pytest.mark.parametrize("schedule, points", RATES)
def test_learning_rates_by_hand(schedule, points):
    config = TrainConfig(lr=0.4, epochs=10, **schedule)
    for epoch, rate in points:
        assert learning_rate(config, epoch) == pytest.approx(rate, abs=1e-9), epoch


def test_each_step_uses_the_rate_of_its_own_moment(digits, tiny_config, monkeypatch):
    used = []
    original = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self: (used.append(self.param_groups[0]["lr"]), original(self))[1]
    )
    config = tiny_config.model_copy(update={"schedule": "cosine", "lr": 0.2})
    train(digits, config, range(137), device="cpu")  # 3 batches per epoch, 2 epochs
    assert used == pytest.approx([0.1 * (1 + math.cos(math.pi * step / 6)) for step in range(6)], abs=1e-9)


def test_the_seed_is_all_that_training_depends_on(digits, tiny_config):
    torch.manual_seed(0)
    first = train(digits, tiny_config, seed=5, device="cpu")
    torch.manual_seed(1)
    again = train(digits, tiny_config.model_copy(update={"seed": 5}), device="cpu")
    assert same(first, again) and not first.training
    assert not same(first, train(digits, tiny_config, seed=6, device="cpu"))


def test_a_learner_carries_nothing_from_one_model_to_the_next(digits, tiny_config):
    learner, ids = Learner(digits, tiny_config, "cpu"), torch.arange(200)
    learner.fit(ids, 1)
    first = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    learner.fit(torch.arange(100, 300), 2)
    learner.fit(ids, 1)
    assert all(torch.equal(first[name], tensor) for name, tensor in learner.model.state_dict().items())


def test_examples_that_are_not_in_ids_cannot_be_noticed(digits, tiny_config):
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(300, 180, replace=False))
    others = np.setdiff1d(np.arange(300), ids)
    image_NHWC, label_N = digits.train.image_NHWC.copy(), digits.train.label_N.copy()
    image_NHWC[others] = rng.integers(0, 256, image_NHWC[others].shape)
    label_N[others] = (label_N[others] + 1) % 10
    altered = with_train(digits, image_NHWC, label_N)
    base = train(digits, tiny_config, ids, device="cpu")
    assert same(base, train(altered, tiny_config, ids, device="cpu"))
    label_N[ids[0]] = (label_N[ids[0]] + 1) % 10
    assert not same(base, train(with_train(digits, image_NHWC, label_N), tiny_config, ids, device="cpu"))


def test_ids_none_means_all(digits, tiny_config):
    assert same(
        train(digits, tiny_config, device="cpu"), train(digits, tiny_config, range(300), device="cpu")
    )


def statistics(model):
    """Running statistics of all batch norms, and how many batches they are of."""
    return {name: tensor.clone() for name, tensor in model.named_buffers()}


def step_on(data, config, ids, *, frozen=None):
    """A learner's model before and after a step on a batch of ``ids``; and the learner."""
    learner = Learner(data, config, "cpu")
    optimizer = learner.optimizer(0.1, 0.0, 0.0)
    batches = learner.loader.epoch(torch.tensor(ids))
    before = [p.detach().clone() for p in learner.model.parameters()], statistics(learner.model)
    learner.descend(batches, optimizer, learner.cross_entropy, frozen=frozen and frozen(learner.model))
    return before, learner


@pytest.mark.parametrize(
    "ids, changes, kept",
    [
        ([7], {}, True),
        ([7, 8], {}, False),
        ([7, 8], {"micro_batches": 2}, True),
        ([7], {"batch_size": 1}, False),
        ([7], {"batch_size": 8, "micro_batches": 8}, False),
    ],
)
def test_a_batch_of_one_moves_weights_and_leaves_running_statistics(digits, tiny_config, ids, changes, kept):
    """Unless a recipe has no other batches, or parts of batches: then theirs are all there is."""
    (weights, before), learner = step_on(digits, tiny_config.model_copy(update=changes), ids)
    assert not all(map(torch.equal, weights, learner.model.parameters()))
    after = statistics(learner.model)
    assert all(torch.equal(before[name], after[name]) for name in before) == kept
    assert all(module.track_running_stats for module in learner.model.modules() if hasattr(module, "eps"))


def test_a_batch_of_one_is_normalised_by_itself(digits, tiny_config):
    """As torch does in train mode, to the bit; by the running statistics, gradient ascent would diverge."""
    learner = Learner(digits, tiny_config, "cpu")
    image = next(iter(learner.loader.epoch(torch.tensor([7])))).image
    learner.model.train()
    found = learner.logits(image)
    assert torch.equal(found, learner.model(image)) and not torch.equal(found, learner.model.eval()(image))


def test_parts_in_eval_mode_stay_in_eval_mode_on_a_batch_of_one(digits, tiny_config):
    seen = []

    def frozen(model):
        model.fc.register_forward_hook(
            lambda *_: seen.append((model.bn1.training, model.layer1[0].bn1.training))
        )
        return model.bn1

    step_on(digits, tiny_config, [7], frozen=frozen)
    assert seen == [(False, True)]


@pytest.mark.parametrize("examples, per_epoch", [(1, 1), (64, 1), (65, 1), (70, 2), (129, 3)])
def test_every_example_once_per_epoch_in_another_order(digits, tiny_config, examples, per_epoch):
    learner = Learner(digits, tiny_config, "cpu")
    ids = torch.arange(300)[-examples:]
    batches = [batch.id.tolist() for batch in learner.batches(ids, 3, seed=0)]
    assert learner.steps_per_epoch(examples) == per_epoch and len(batches) == 3 * per_epoch
    epochs = [sum(batches[start : start + per_epoch], []) for start in range(0, len(batches), per_epoch)]
    assert all(sorted(epoch) == ids.tolist() for epoch in epochs)
    assert examples == 1 or epochs[0] != epochs[1] != epochs[2]
    again = [batch.id.tolist() for batch in learner.batches(ids, 3, seed=0)]
    assert again == batches


@pytest.mark.parametrize(
    "epochs, steps", [(1, 5), (2, 10), (0.2, 1), (0.3, 2), (1.0001, 6), (0.6, 3), (0.001, 1)]
)
def test_fractional_epochs_are_rounded_up_to_batches(digits, tiny_config, epochs, steps):
    learner = Learner(digits, tiny_config, "cpu")
    assert sum(1 for _ in learner.batches(torch.arange(300), epochs, seed=0)) == steps  # 300 = 5 · 60


def test_the_counter_counts_examples(digits, tiny_config):
    learner = Learner(digits, tiny_config, "cpu")
    learner.fit(torch.arange(130), 0)
    learner.fit(torch.arange(30), 0)
    assert learner.examples == 2 * 130 + 2 * 30


def test_one_step_is_sgd_with_momentum_and_weight_decay(digits, tiny_config):
    learner = Learner(digits, tiny_config, "cpu")
    weight = learner.model.fc.weight
    start, gradients = weight.detach().clone().double(), []
    optimizer = learner.optimizer(0.1, 0.9, 0.01)
    learner.descend(
        learner.batches(torch.arange(128), 1, 0),
        optimizer,
        learner.cross_entropy,
        lambda: gradients.append(weight.grad.detach().clone().double()),
    )
    velocity_1 = gradients[0] + 0.01 * start
    after_1 = start - 0.1 * velocity_1
    after_2 = after_1 - 0.1 * (0.9 * velocity_1 + gradients[1] + 0.01 * after_1)
    torch.testing.assert_close(weight.double(), after_2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lr", [1e3, 1e8, 1e18, 1e30])
def test_divergence_is_an_error_at_any_size(digits, tiny_config, lr):
    with pytest.raises(DivergedError, match="lower lr"):
        train(digits, tiny_config.model_copy(update={"lr": lr, "schedule": "constant"}), device="cpu")


def test_batch_norm_statistics_may_diverge_alone(digits, tiny_config):
    # Activations of 1e25 have a variance beyond float32: the loss never sees it, predictions would be NaN.
    learner = Learner(digits, tiny_config, "cpu")
    with torch.no_grad():
        learner.model.conv1.weight *= 1e25
    with pytest.raises(DivergedError):
        learner.descend(
            learner.batches(torch.arange(64), 1, 0), learner.optimizer(0.0, 0, 0), learner.cross_entropy
        )
    assert all(parameter.isfinite().all() for parameter in learner.model.parameters())


@pytest.mark.parametrize("step", [0, 4, 9])
def test_a_loss_that_is_nan_once_is_an_error(digits, tiny_config, step):
    learner, steps = Learner(digits, tiny_config, "cpu"), iter(range(10))

    def loss_of(batch):
        loss, examples = learner.cross_entropy(batch)
        return loss * (float("nan") if next(steps) == step else 1.0), examples

    with pytest.raises(DivergedError):
        learner.descend(learner.batches(torch.arange(300), 2, 0), learner.optimizer(0.1, 0.9, 0), loss_of)


BAD_IDS = {
    "none": [],
    "twice": [1, 2, 2],
    "outside": [299, 300],
    "negative": [-1],
    "floats": [0.0, 1.0],
    "mask": np.arange(300) > 5,
    "two-dimensional": [[1, 2]],
}


@pytest.mark.parametrize("name", BAD_IDS)
def test_bad_ids_are_refused_before_training(digits, tiny_config, name, monkeypatch):
    monkeypatch.setattr(Learner, "fit", lambda *_: pytest.fail("trained"))
    with pytest.raises(DataError, match="^ids: found"):
        train(digits, tiny_config, BAD_IDS[name], device="cpu")


def test_one_example_trains(digits, tiny_config):
    assert all(
        tensor.isfinite().all() for tensor in train(digits, tiny_config, [7], device="cpu").parameters()
    )


def test_bf16_trains_float32_weights(digits, tiny_config):
    half = train(digits, tiny_config.model_copy(update={"precision": "bf16"}), device="cpu")
    full = train(digits, tiny_config, device="cpu")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    assert not same(half, full)
    torch.testing.assert_close(half.fc.weight, full.fc.weight, rtol=0, atol=0.1)


def test_augmentation_is_asked_for_and_then_changes_training(digits, tiny_config):
    plain = train(digits, tiny_config, device="cpu")
    assert not same(plain, train(digits, tiny_config.model_copy(update={"flip": True}), device="cpu"))
    assert not same(plain, train(digits, tiny_config.model_copy(update={"crop_padding": 1}), device="cpu"))


def test_it_learns(digits, tiny_config):
    from rumfast import predict

    config = tiny_config.model_copy(update={"epochs": 15, "width": 8})
    assert predict(train(digits, config, device="cpu"), digits).accuracy("train") > 0.95


@pytest.mark.slow
def test_streamed_training_is_resident_training(packed, tiny_config):
    """FFCV streams the very batches, also two at a time, as NegGrad+ does."""
    from rumfast.algorithms import ALGORITHMS

    data = load_dataset(packed)
    weights = []
    for loader in ("resident", "streaming"):
        learner = Learner(data, tiny_config.model_copy(update={"loader": loader}), "cpu")
        learner.fit(torch.arange(0, 120), seed=3)
        algorithm = ALGORITHMS["neggrad_plus"]
        algorithm.run(learner, torch.arange(20), torch.arange(20, 120), algorithm.config(epochs=1), 0)
        weights.append({name: tensor.clone() for name, tensor in learner.model.state_dict().items()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_streaming_needs_a_whole_packed_set(digits, tiny_config):
    with pytest.raises(UsageError, match="streaming needs a whole packed data set"):
        Learner(digits, tiny_config.model_copy(update={"loader": "streaming"}), "cpu")
