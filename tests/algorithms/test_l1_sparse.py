import pytest
import torch
from torch.nn.functional import cross_entropy

from rumfast.algorithms import ALGORITHMS, SgdConfig, l1_sparse
from rumfast.algorithms.l1_sparse import L1SparseConfig, l1_norm, penalty

L1_SPARSE = ALGORITHMS["l1_sparse"]
FORGET, RETAIN = torch.arange(50, 60), torch.arange(50)  # one batch each


def test_the_norm_by_hand():
    weights = [torch.tensor([[1.0, -2.0], [0.0, 3.0]], requires_grad=True), torch.tensor([-0.5])]
    norm = l1_norm(weights)
    norm.backward()
    assert norm.item() == 6.5 and weights[0].grad.tolist() == [[1.0, -1.0], [0.0, 1.0]]


def test_the_penalty_falls_linearly_and_is_whole_in_the_first_epoch():
    assert [penalty(8e-4, epoch, 4) for epoch in range(4)] == pytest.approx([8e-4, 6e-4, 4e-4, 2e-4])
    assert [penalty(1.0, epoch, 2.5) for epoch in range(3)] == pytest.approx([1, 0.6, 0.2])


def test_one_step_by_hand(learner, original):
    batch = next(learner.loader.epoch(RETAIN, 0, shuffle=False))
    start = [parameter.detach().clone() for parameter in learner.model.parameters()]
    learner.model.train()
    loss = cross_entropy(learner.model(batch.image), batch.label)
    gradients = torch.autograd.grad(loss, list(learner.model.parameters()))
    learner.model.load_state_dict(original.state_dict())
    L1_SPARSE.run(learner, FORGET, RETAIN, L1SparseConfig(lr=0.1, epochs=1, weight_decay=0.01, alpha=0.02), 0)
    for old, gradient, new in zip(start, gradients, learner.model.parameters(), strict=True):
        expected = old - 0.1 * (gradient + 0.02 * old.sign() + 0.01 * old)
        torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-6)


def test_each_epoch_has_its_own_strength(learner, monkeypatch):
    asked = []
    monkeypatch.setattr(l1_sparse, "penalty", lambda alpha, epoch, epochs: asked.append(epoch) or 0.0)
    L1_SPARSE.run(learner, FORGET, torch.arange(100, 300), L1SparseConfig(epochs=2.5), 0)
    assert asked == [0] * 4 + [1] * 4 + [2] * 2  # 200 examples in 4 batches


def test_without_a_penalty_it_is_fine_tuning(learner, original):
    weights = []
    for name, config in (
        ("l1_sparse", L1SparseConfig(lr=0.05, epochs=2, alpha=0)),
        ("finetune", SgdConfig(lr=0.05, epochs=2)),
    ):
        learner.model.load_state_dict(original.state_dict())
        ALGORITHMS[name].run(learner, FORGET, RETAIN, config, 3)
        weights.append(torch.cat([parameter.flatten() for parameter in learner.model.parameters()]))
    assert torch.equal(*weights)


def test_the_penalty_shrinks_weights(learner, original, split):
    retain = torch.from_numpy(split.retain)
    L1_SPARSE.run(learner, FORGET, retain, L1SparseConfig(lr=0.05, epochs=5, alpha=1e-2), 0)
    norms = [l1_norm(list(model.parameters())) for model in (learner.model, original)]
    assert norms[0] < 0.8 * norms[1]
