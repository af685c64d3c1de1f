import pytest
import torch
from torch.nn.functional import cross_entropy

from rumfast.algorithms import gradients
from rumfast.algorithms.gradients import example_gradients, gradient_sum, per_parameter, weight_count
from rumfast.algorithms.influence import free_bytes
from rumfast.sweeps.proxy_models import curvatures
from rumfast.training import Learner

IDS = torch.tensor([7, 3, 250, 4, 100])


def one_by_one(learner, ids):
    """Gradients [N, P], each from a pass of its own."""
    model = learner.model.eval()
    rows = []
    for example in ids.tolist():
        (batch,) = learner.loader.epoch([example], 0, shuffle=False)
        loss = cross_entropy(model(batch.image), batch.label)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(rows)


@pytest.mark.parametrize("block", [1, 3 * 5214, 2**30])
def test_each_examples_own_gradient_in_the_order_of_ids(learner, monkeypatch, block):
    monkeypatch.setattr(gradients, "CPU_BLOCK", block)
    blocks = list(example_gradients(learner, IDS))
    assert [len(one) for one in blocks] == {1: [1] * 5, 3 * 5214: [3, 2], 2**30: [5]}[block]
    expected = one_by_one(learner, IDS)
    torch.testing.assert_close(
        torch.cat(blocks), expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item()
    )
    assert learner.examples == len(IDS)


def test_the_sum_is_the_sum_and_leaves_nothing_behind(learner, original):
    flat = torch.cat([one.flatten() for one in gradient_sum(learner, IDS)])
    torch.testing.assert_close(flat, one_by_one(learner, IDS).sum(0), rtol=1e-3, atol=1e-4)
    assert learner.examples == len(IDS)
    assert all(weight.grad is None for weight in learner.model.parameters())
    for ours, theirs in zip(learner.model.buffers(), original.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_vectors_over_all_weights_fall_into_parameters(learner):
    flat = torch.arange(float(weight_count(learner)))
    parts = list(per_parameter(learner, flat))
    assert all(
        parameter is mine for (parameter, _), mine in zip(parts, learner.model.parameters(), strict=True)
    )
    assert all(part.shape == parameter.shape for parameter, part in parts)
    assert torch.cat([part.flatten() for _, part in parts]).equal(flat)


def test_what_is_compared_in_gradients_is_multiplied_in_float32(digits, tiny_config):
    """cuDNN's TF32 is off while gradients and curvature are taken, and on in training and predictions."""
    learner, seen = Learner(digits, tiny_config, "cpu"), []
    learner.model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    assert torch.backends.cudnn.allow_tf32
    ids = torch.arange(8)
    gradient_sum(learner, ids)
    list(example_gradients(learner, ids))
    curvatures(learner, digits, ids.numpy())
    assert seen and not any(seen)
    seen.clear()
    learner.predictor.predict()
    learner.fit(ids, 0)
    assert seen and all(seen)


def test_memory_that_torch_keeps_for_reuse_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert free_bytes(torch.device("cuda:0")) == 5 + 70 - 30
