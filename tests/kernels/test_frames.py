"""The GPU's preparation of points against the CPU's and float64, and how much is launched for a call."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rumfast.kernels import frames
from rumfast.kernels.frames import Blocks, launch_operands
from rumfast.kernels.neighbours import nearest
from rumfast.kernels.pairwise import mean_distance, rbf_mean
from rumfast.kernels.tiles import LEAST, frame, operands


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


SETS = {  # name: x, y
    "odd": (normal(37, 5), normal(70, 5, seed=1) + 1),
    "two points of one coordinate": (torch.tensor([[3.5], [4.0]]), None),
    "one pair": (normal(1, 3), normal(1, 3, seed=1)),
    "many chunks and columns": (normal(300, 150), normal(140, 150, seed=1)),
    "whole blocks": (normal(64, 128), None),
    "far from the origin": (normal(40, 6) + 3000, normal(30, 6, seed=1) + 3001),
    "huge": (normal(20, 6) * 1e25, normal(30, 6, seed=1) * 1e25),
    "tiny": (normal(20, 6) * 1e-25, normal(30, 6, seed=1) * 1e-25),
    "coordinates of many sizes": (normal(30, 9) * 10.0 ** -torch.arange(9), normal(30, 9, seed=1)),
    "strided": (normal(8, 70).T[::2], normal(50, 16, seed=1)[:, ::2]),
    "expanded": (normal(1, 4).expand(9, 4), normal(7, 1, seed=1).expand(7, 4)),
    "half": (normal(30, 6).half(), normal(20, 6, seed=1).half()),
    "bfloat16": (normal(30, 6).bfloat16(), None),
    "float64 beyond float32": (normal(30, 6).double() * 1e200, normal(20, 6, seed=1).double() * 1e200),
}


def prepared(device, x, y, blocks=None, parts=2, **options):
    x, y = (one if one is None else one.to(device) for one in (x, y))
    return launch_operands(x, y, blocks or Blocks(64, 32, 32), parts, **options)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", SETS)
def test_operands_are_those_of_the_cpu(device, name, parts):
    x, y = SETS[name]
    expected = frame(x, y)
    place, *sets = prepared(device, x, y, parts=parts)
    assert place.unit == expected.unit and place.centre_D.dtype == expected.centre_D.dtype
    largest = 2**15 * expected.unit.item()
    torch.testing.assert_close(place.centre_D.cpu(), expected.centre_D, rtol=1e-6, atol=largest * 2**-24)
    for points, found, block in zip((x, x if y is None else y), sets, (64, 32), strict=True):
        rows = len(points)
        place_here = expected._replace(centre_D=place.centre_D.cpu())
        wanted = operands(points, place_here, torch.float16, parts, block if y is not None else 64, 32)
        assert found.points.shape == wanted.points.shape and found.norm.dtype == torch.float32
        torch.testing.assert_close(found.points.cpu(), wanted.points, rtol=0, atol=0)
        torch.testing.assert_close(found.norm.cpu(), wanted.norm, rtol=1e-6, atol=0)
        exact = (points.double() - place.centre_D.cpu().double()) / expected.unit
        rounded = found.points.cpu().double().sum(0)[:rows, : points.shape[1]]
        assert (rounded - exact).abs().max() <= 2 ** (15 - 11 * parts)


def test_a_set_alone_is_both_sides(device):
    _, x, y = prepared(device, normal(70, 5), None, Blocks(16, 64, 16))
    assert x is y and x.points.shape == (2, 128, 16)


@pytest.mark.parametrize("filler", [torch.inf, -torch.inf])
def test_what_fills_up_is_0_with_the_norm_asked_for(device, filler):
    _, x, y = prepared(device, normal(37, 5), normal(3, 5, seed=1), filler=filler)
    for found, count in ((x, 37), (y, 3)):
        assert not found.points[:, count:].any() and not found.points[:, :, 5:].any()
        assert (found.norm[count:] == filler).all() and found.norm[:count].isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 3e4, 1e30])
def test_the_unit_is_a_power_of_2_that_puts_the_largest_coordinate_below_2_15(device, scale):
    x = normal(50, 6) * scale
    place, operand, _ = prepared(device, x, None)
    assert torch.frexp(place.unit).mantissa == 0.5
    assert 2**14 <= (x - x.mean(0)).abs().max() / place.unit.cpu() < 2**15
    assert 2**14 <= operand.points[0].abs().max() <= 2**15


@pytest.mark.parametrize("count", [1, 40])
def test_identical_points_have_the_least_unit(device, count):
    place, operand, _ = prepared(device, torch.full((count, 3), 7.0), None)
    assert place.unit == 2.0 ** (LEAST - 15) and not operand.points.any() and not operand.norm[:count].any()


@pytest.mark.parametrize("chunks", [1, 3, 1000])
def test_chunks_make_no_difference(device, chunks, monkeypatch):
    x, y = normal(600, 40), normal(300, 40, seed=1) + 1
    monkeypatch.setattr(frames, "CHUNKS", chunks)
    monkeypatch.setattr(frames, "MERGED", 4)
    place, *_ = prepared(device, x, y)
    torch.testing.assert_close(place.centre_D.cpu(), torch.cat([x, y]).mean(0), rtol=1e-6, atol=1e-6)
    assert place.unit == frame(x, y).unit


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spoils_every_norm(device, bad):
    x, y = normal(20, 3), normal(30, 3, seed=1)
    x[4, 1] = bad
    _, x, y = prepared(device, x, y)
    assert not x.norm[:20].isfinite().any() and not y.norm[:30].isfinite().any()


def test_offsets_beyond_32_bits(device, sparse):
    memory = sparse(2**31 + 4, torch.float16)
    x = memory.as_strided((3, 4), (2**30, 1))
    x.copy_(torch.arange(12.0).view(3, 4))
    place, operand, _ = launch_operands(x, None, Blocks(16, 16, 16), 1)
    assert place.centre_D.tolist() == [4, 5, 6, 7] and place.unit == 2.0**-12
    assert operand.points[0, :3, :4].tolist() == [[-(2.0**14)] * 4, [0.0] * 4, [2.0**14] * 4]


class Launches(TorchDispatchMode):
    """What a call launches: Triton kernels and torch's operations, but for views and allocations."""

    FREE = ("empty", "new_empty", "select", "slice", "view", "expand", "detach", "alias", "promote_types")

    def __init__(self, monkeypatch):
        super().__init__()
        self.kernels, self.operations, self.inside = [], Counter(), False
        if torch.cuda.is_available():
            from triton.runtime.jit import JITFunction as Executor

            method, name = "run", lambda kernel: kernel.fn.__name__
        else:
            from triton.runtime.interpreter import GridExecutor as Executor

            method, name = "__call__", lambda executor: executor.fn.__name__
        original = getattr(Executor, method)

        def launch(executor, *arguments, **options):
            self.kernels.append(name(executor))
            self.inside = True  # what the interpreter does with torch would not be launched
            try:
                return original(executor, *arguments, **options)
            finally:
                self.inside = False

        monkeypatch.setattr(Executor, method, launch)

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        name = operation.overloadpacket.__name__
        if not self.inside and name not in self.FREE:
            self.operations[name] += 1
        return operation(*arguments, **(options or {}))


FRAME = ["extents_kernel", "centre_kernel", "operands_kernel"]


def test_what_a_call_launches_and_that_the_host_never_waits(device, monkeypatch):
    # One more than on CUDA: a CPU divides by N and by M in turn. Any copy or scalar would show among these.
    x, y = normal(40, 6).to(device), normal(30, 6, seed=1).to(device)
    divisions = Counter(div=1 if device.type == "cuda" else 2)
    for other in (y, None):
        with Launches(monkeypatch) as launched:
            mean_distance(x, other, backend="triton")
        assert launched.kernels == [*FRAME, "pair_sums_kernel", "pair_total_kernel"]
        assert launched.operations == divisions
        with Launches(monkeypatch) as launched:
            rbf_mean(x, other, bandwidths=[2.0, 1.0, 3.0], backend="triton")
        assert launched.kernels == [*FRAME, "pair_sums_kernel", "pair_total_kernel"]
        assert launched.operations == divisions
        with Launches(monkeypatch) as launched:
            nearest(x, other, 3, backend="triton")
        assert launched.kernels == [*FRAME, "nearest_kernel"]
        assert "_local_scalar_dense" not in launched.operations
