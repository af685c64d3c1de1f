"""The emulation itself: it refuses what CUDA refuses, counts what waits, finds planted faults, and leaves."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from emulated_cuda import OnCuda
from emulated_torch import emulated
from torch import nn
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy
from triton.runtime.interpreter import GridExecutor

from rumfast.loaders import ResidentLoader
from rumfast.runtime import environment
from rumfast.stepping import Stepper, cuda_graphs, side_stream
from rumfast.training import Learner


@pytest.fixture
def pair(cuda):
    """A tensor on the device and one on the CPU."""
    return torch.arange(6.0).view(2, 3).to("cuda"), torch.arange(6.0).view(2, 3)


MIXED = {
    "sum": lambda there, here: there + here,
    "in place": lambda there, here: there.mul_(here),
    "output": lambda there, here: torch.neg(there, out=here),
    "product": lambda there, here: there @ here.T,
    "joined": lambda there, here: torch.cat([there, here]),
    "joined scalars": lambda there, here: torch.stack([there.sum(), here.sum()]),
    "gathered": lambda there, here: there.gather(0, here.long() % 2),
    "index on the device": lambda there, here: here[(there[:, 0] > 1).long()],
    "assigned": lambda there, here: there.index_put_((torch.tensor([0]).to("cuda"),), here[:1]),
    "loss": lambda there, here: cross_entropy(there, here[:, 0].long()),
    "numpy": lambda there, here: there.numpy(),
    "array": lambda there, here: np.asarray(there),
    "generator": lambda there, here: there.normal_(generator=torch.Generator()),
    "random on the device": lambda there, here: torch.randperm(3, generator=torch.Generator(), device="cuda"),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_cuda_refuses_is_refused_and_located(pair, name):
    with pytest.raises((RuntimeError, TypeError), match=r"emulation/test_emulation\.py:\d+"):
        MIXED[name](*pair)


WAITING = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "float": lambda x: float(x[0, 0]),
    "int": lambda x: int(x[0, 0]),
    "index": lambda x: [0, 1][x.long()[0, 1]],
    "list": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 2],
    "assignment by mask": lambda x: x.index_put_((x > 2,), x[0, :].mean().expand(3)),
    "masked_select": lambda x: x.masked_select(x > 2),
    "bincount": lambda x: torch.bincount(x.long().flatten()),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x + 1),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", torch.float64),
    "copy to the host": lambda x: torch.zeros(2, 3).copy_(x),
    "copy to the device": lambda x: x.copy_(torch.zeros(2, 3)),
    "one number": lambda x: x.__setitem__((0, 1), 2.0),
    "made there": lambda x: torch.tensor([1.0], device=x.device),
    "pageable": lambda x: torch.zeros(3).to("cuda", non_blocking=True),
    "CPU index": lambda x: x[torch.tensor([1])],
    "synchronize": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("name", WAITING)
def test_a_wait_is_counted_with_its_line(cuda, pair, name):
    cuda.waits.clear()
    WAITING[name](pair[0])
    (found,) = cuda.waits
    assert "emulation/test_emulation.py:" in found and cuda.waits[found] == 1


FREE = {
    "CPU scalars": lambda x: x + torch.tensor(1.0),
    "scalars assigned": lambda x: (x.__setitem__(0, 1.0), x.__setitem__(x > 1, 0.0)),
    "pinned": lambda x: torch.zeros(3).pin_memory()[:2].to("cuda", non_blocking=True),
    "asynchronous": lambda x: x.to("cpu", non_blocking=True),
    "made there": lambda x: torch.zeros(2, device=x.device) + x.new_ones(2) + torch.arange(2, device="cuda"),
    "nowhere": lambda x: (x.cuda(), x.to("cuda", torch.float64), len(x), x.shape, x.device, x.is_cuda),
    "where": lambda x: torch.where(x > 1, x, 0.0).topk(2).indices,
}


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_wait_is_not_counted(cuda, pair, name):
    cuda.waits.clear()
    FREE[name](pair[0])
    assert not cuda.waits


def test_all_that_follows_from_tensors_there_is_there(cuda):
    model = copy.deepcopy(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to("cuda"))
    model.load_state_dict(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict())
    x = torch.randn(5, 3).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        product = model[0](x)
    assert product.dtype == torch.bfloat16 and next(model.parameters()).is_cuda
    model(x).square().sum().backward()
    rate = torch.tensor(0.1, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, fused=True)
    optimizer.step()
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    each = vmap(grad(lambda weight, row: (weight @ row).sum()), (None, 0))(model[0].weight.detach(), x)
    gradients = [weight.grad for weight in model.parameters()]
    made = [*model.state_dict().values(), *gradients, *momenta, each, x[0]]
    assert all(isinstance(tensor, OnCuda) and tensor.device.type == "cuda" for tensor in made)
    assert all(isinstance(weight, nn.Parameter) for weight in model.parameters())
    assert type(x.cpu()) is torch.Tensor and not x.cpu().is_cuda


def fit(few, recipe, count=40):
    learner = Learner(few, recipe, "cuda")
    learner.fit(torch.arange(count, device="cuda"), 0)
    return learner


def test_an_item_in_a_recorded_step_is_found(cuda, few, recipe, monkeypatch):
    def reading(logits, label):
        loss = cross_entropy(logits, label)
        assert loss.item() > 0
        return loss

    monkeypatch.setattr("rumfast.training.cross_entropy", reading)
    with pytest.raises(RuntimeError, match=r"capturing: _local_scalar_dense at .*test_emulation\.py:\d+"):
        fit(few, recipe)


def test_an_index_on_the_wrong_device_is_found(cuda, few, recipe, monkeypatch):
    """Labels that stay on the CPU cannot be indexed; ids that do are copied, and waited for, in each step."""
    loader_init, batches = ResidentLoader.__init__, ResidentLoader._batches

    def labels_stay(self, *args, **kwargs):
        loader_init(self, *args, **kwargs)
        self.label_N = self.label_N.cpu()

    with monkeypatch.context() as patch:
        patch.setattr(ResidentLoader, "__init__", labels_stay)
        with pytest.raises(RuntimeError, match="indices should be on the CPU"):
            fit(few, recipe)

    def ids_stay(self, *args, **kwargs):
        for batch in batches(self, *args, **kwargs):
            yield batch._replace(label=self.label_N[batch.id.cpu()])

    monkeypatch.setattr(ResidentLoader, "_batches", ids_stay)
    counts = []
    for count in (16, 32):
        cuda.waits.clear()
        fit(few, recipe, count)
        counts.append(sum(times for at, times in cuda.waits.items() if "test_emulation.py" in at))
    assert counts[1] - counts[0] == 2 * recipe.epochs  # the copy of the ids, and that of the index


def test_a_label_on_the_wrong_device_is_found(cuda, few, recipe, monkeypatch):
    def misplaced(logits, label):
        return cross_entropy(logits, label.cpu())

    monkeypatch.setattr("rumfast.training.cross_entropy", misplaced)
    with pytest.raises(RuntimeError, match="cuda:0 and cpu! at .*: nll_loss_forward with a CPU tensor of"):
        fit(few, recipe)


def stepping(loss_of, *weights):
    """Eight steps of rate 1 on 1, 2, …; from the fourth on they are replayed."""
    step = Stepper(torch.optim.SGD(weights, lr=1.0), loss_of, record=cuda_graphs())
    with side_stream(torch.device("cuda"), torch.cuda.Stream()):
        for value in range(1, 9):
            step(torch.full((1,), float(value), device="cuda"))
    return [weight.item() for weight in weights]


def test_a_replayed_step_runs_no_python(cuda):
    """What it is given changes from step to step; a number that Python knows stays as it was recorded."""
    weight, seen = nn.Parameter(torch.zeros(1).to("cuda")), []

    def loss_of(fed):
        seen.append(len(seen))
        return weight.sum() * fed.sum(), 1

    assert stepping(loss_of, weight) == [-sum(range(1, 9))] and len(seen) == 4

    def counting(fed):
        seen.append(len(seen) - 4)
        return weight.sum() * (len(seen) - 4), 1

    weight.data.zero_()
    assert stepping(counting, weight) == [-(1 + 2 + 3 + 5 * 4)]


def test_a_replayed_step_that_reads_freed_memory_is_found(cuda):
    weight, kept = nn.Parameter(torch.zeros(1).to("cuda")), {}

    def loss_of(fed):
        kept["scale"] = kept.get("scale", torch.ones(1, device="cuda"))
        return (weight * kept["scale"] * fed).sum(), 1

    step = Stepper(torch.optim.SGD([weight], lr=1.0), loss_of, record=cuda_graphs())
    fed = torch.ones(1, device="cuda")
    with side_stream(torch.device("cuda"), torch.cuda.Stream()):
        for _ in range(5):
            step(fed)
        kept.clear()
        with pytest.raises(RuntimeError, match=r"reads a freed tensor of torch.float32 \(1,\)"):
            step(fed)


def test_a_pool_whose_graphs_died_before_its_tensors_is_refused(cuda):
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def record(function):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool, stream):
            return graph, function()

    zeros = partial(torch.zeros, 3, device="cuda")
    graph, kept = record(zeros)
    record(zeros)
    del graph
    with pytest.raises(RuntimeError, match="use_count > 0 INTERNAL ASSERT"):
        record(zeros)
    del kept
    record(zeros)
    with pytest.raises(RuntimeError, match="non-default stream"), torch.cuda.graph(
        torch.cuda.CUDAGraph(), pool, torch.cuda.default_stream()
    ):
        pass


def test_recording_computes_nothing(cuda):
    total, graph = torch.zeros(2, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        doubled = total.add_(1) * 2
    assert total.tolist() == [0, 0] and doubled.isnan().all()
    graph.replay()
    assert total.tolist() == [1, 1] and doubled.tolist() == [2, 2]


def test_nothing_stays_behind():
    def state():
        settings = torch.__future__.get_overwrite_module_params_on_conversion(), torch.autocast
        patched = GridExecutor.__call__, torch.optim.Optimizer._group_tensors_by_device_and_dtype
        return dict(vars(torch.cuda)), settings, patched

    before = state()
    with emulated():
        assert torch.cuda.is_available() and environment()["gpu"] == "Emulated H100"
        assert state() != before
    assert not torch.cuda.is_available() and environment()["gpu"] is None and state() == before
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1).to("cuda")
