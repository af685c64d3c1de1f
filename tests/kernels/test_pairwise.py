import math
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch

from rumfast.kernels import pairwise
from rumfast.kernels.backend import jit, power_of_2, tl
from rumfast.kernels.pair_sums import _tile
from rumfast.kernels.pairwise import mean_distance, mean_squared_distance, rbf_mean
from rumfast.kernels.tiles import cpu_map, cpu_multiplies_bfloat16


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def truth(x, y=None):
    """All distances in float64, from differences; 0 on the diagonal without y."""
    x, y = x.double(), (x if y is None else y).double()
    return (x[:, None] - y).square().sum(-1).sqrt()


SETS = {  # name: x, y
    "odd": (normal(37, 5), normal(70, 5, seed=1) + 1),
    "one pair": (normal(1, 3), normal(1, 3, seed=1)),
    "one row": (normal(1, 7), normal(66, 7, seed=1)),
    "whole blocks": (normal(128, 32), normal(64, 32, seed=1)),
    "ragged blocks": (normal(130, 70), normal(67, 70, seed=1)),
    "far from the origin": (normal(40, 6) + 3000, normal(30, 6, seed=1) + 3001),
    "huge": (normal(20, 6) * 1e25, normal(30, 6, seed=1) * 1e25),
    "tiny": (normal(20, 6) * 1e-25, normal(30, 6, seed=1) * 1e-25),
    "coordinates of many sizes": (normal(30, 9) * 10.0 ** -torch.arange(9), normal(30, 9, seed=1)),
    "strided": (normal(8, 70).T[::2], normal(50, 16, seed=1)[:, ::2]),
    "expanded": (normal(1, 4).expand(9, 4), normal(7, 1, seed=1).expand(7, 4)),
    "half": (normal(30, 6).half(), normal(20, 6, seed=1).half()),
    "bfloat16": (normal(30, 6).bfloat16(), normal(20, 6, seed=1).bfloat16()),
}
BACKENDS = ("triton", "auto", "torch")


def on(device, backend, *sets):
    return [s if s is None or backend != "triton" else s.to(device) for s in sets]


@pytest.mark.parametrize("name", SETS)
def test_mean_distance_of_all_backends(device, name):
    for (x, y), backend in product([SETS[name], (SETS[name][0], None)], BACKENDS):
        expected = truth(x, y).mean().item()
        result = mean_distance(*on(device, backend, x, y), backend=backend)
        assert result.dtype == torch.float64 and result.shape == ()
        assert result.item() == pytest.approx(expected, rel=1e-6, abs=0), (y is None, backend)


@pytest.mark.parametrize("symmetric", [False, True])
def test_rbf_mean_of_all_backends(device, symmetric):
    # From the widest, σ² = 18, to 9 takes a squaring, to 4 another exponential, to 1 two squarings, to ½ one.
    x, y = SETS["odd"]
    y, widths = None if symmetric else y, [2.0, 3.0, 1.0, 18**0.5, 0.5**0.5]
    expected = [torch.exp(-(truth(x, y) ** 2) / (2 * w * w)).mean().item() for w in widths]
    for backend in BACKENDS:
        result = rbf_mean(*on(device, backend, x, y), bandwidths=widths, backend=backend)
        assert result.dtype == torch.float64
        assert result.tolist() == pytest.approx(expected, rel=2e-6, abs=0), backend


def test_squarings_of_ascending_gammas():
    assert pairwise.squarings([0.1, 0.2, 0.8, 0.9, 1.0, 2.0000001]) == [0, 1, 2, 0, 0, 0]
    assert pairwise.squarings([]) == [0]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("programs", [1, 4, 1 << 13])
def test_both_sums_at_once_with_tiles_dealt_out_to_programs(device, symmetric, programs, monkeypatch):
    # 5 rows of tiles are three groups; a program takes all tiles, or every fourth, or one.
    x, y = normal(70, 9), None if symmetric else normal(40, 9, seed=1)
    distance = truth(x, y)
    gammas = [0.03, 0.01, 0.02]
    expected = [distance.sum().item()] + [torch.exp(-gamma * distance**2).sum().item() for gamma in gammas]
    monkeypatch.setattr(pairwise, "_programs", lambda points, wide: programs)
    monkeypatch.setattr(pairwise, "GROUP", 2)
    arguments = on(device, "triton", x, y)
    result = pairwise.launch(*arguments, gammas, True, False, BLOCK_N=16, BLOCK_M=16, BLOCK_D=16)
    assert result.tolist() == pytest.approx(expected, rel=2e-6)


@jit
def where_kernel(i_ptr, j_ptr, tiles, x_rows, y_rows, SYMMETRIC: tl.constexpr, BLOCK_N: tl.constexpr,
                 BLOCK_M: tl.constexpr, SLOTS: tl.constexpr):  # fmt: skip
    index = tl.arange(0, SLOTS)
    i, j = _tile(index, x_rows, y_rows, SYMMETRIC, 4, BLOCK_N, BLOCK_M)
    tl.store(i_ptr + index, i, index < tiles)
    tl.store(j_ptr + index, j, index < tiles)


@pytest.mark.parametrize("rows, columns", [(1, 1), (2, 5), (3, 3), (4, 2), (9, 4), (10, 10)])
@pytest.mark.parametrize("block_n, block_m", [(16, 16), (16, 32), (64, 16)])
def test_every_tile_is_taken_once(device, rows, columns, block_n, block_m):
    # Rows of squares, and columns: odd and even, fewer and more than a group of 4.
    square = max(block_n, block_m)
    for symmetric in (False, True):
        sizes = square * rows, square * (rows if symmetric else columns)
        tiles = pairwise._tiles(*sizes, symmetric, block_n, block_m)
        i, j = torch.full((2, tiles), -1, dtype=torch.int32, device=device)
        where_kernel[(1,)](i, j, tiles, *sizes, symmetric, block_n, block_m, power_of_2(tiles))
        found = list(zip(i.tolist(), j.tolist(), strict=True))
        expected = set(product(range(sizes[0] // block_n), range(sizes[1] // block_m)))
        if symmetric:
            expected = {(i, j) for i, j in expected if i * block_n // square <= j * block_m // square}
        assert len(found) == len(expected) and set(found) == expected


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_wide_tiles(device, symmetric, fast):
    x, y = normal(150, 70), None if symmetric else normal(131, 70, seed=1)
    size = pairwise.meta(fast=fast, wide=True, amd=False)
    result = pairwise.launch(*on(device, "triton", x, y), [], True, fast, **size)
    assert result.item() == pytest.approx(truth(x, y).sum().item(), rel=1e-4 if fast else 1e-6)


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_fast_is_within_one_in_ten_thousand(device, backend):
    for x, y in ((normal(300, 40), normal(200, 40, seed=1)), (normal(300, 3) + 100, normal(100, 3) + 101)):
        for other in (y, None):
            fast = mean_distance(*on(device, backend, x, other), precision="fast", backend=backend).item()
            assert fast == pytest.approx(truth(x, other).mean().item(), rel=1e-4)
            if backend == "triton" or cpu_multiplies_bfloat16():
                assert fast != mean_distance(*on(device, backend, x, other), backend=backend).item()


@pytest.mark.parametrize("symmetric", [False, True])
def test_several_cpu_tiles(symmetric):
    x, y = normal(700, 4), None if symmetric else normal(1100, 4, seed=1) + 1
    widths = [0.5, 1.0, 2**0.5]
    expected = [torch.exp(-(truth(x, y) ** 2) / (2 * w * w)).mean().item() for w in widths]
    assert rbf_mean(x, y, bandwidths=widths).tolist() == pytest.approx(expected, rel=1e-6)
    assert mean_distance(x, y).item() == pytest.approx(truth(x, y).mean().item(), rel=1e-7)


def test_float64_on_a_cpu_is_exact():
    x, y = normal(50, 6).double() + 1e6, normal(40, 6, seed=1).double() + 1e6
    assert mean_distance(x, y).item() == pytest.approx(truth(x, y).mean().item(), rel=1e-13)


def test_hand_worked(device):
    x, y = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 4.0]])
    for backend in BACKENDS:
        x_there, y_there = on(device, backend, x, y)
        assert mean_distance(x_there, y_there, backend=backend).item() == pytest.approx(3.5)
        assert mean_distance(x_there, backend=backend).item() == pytest.approx(2.5)
        assert mean_squared_distance(x_there, y_there, backend=backend).item() == pytest.approx(12.5)
        assert mean_squared_distance(x_there, backend=backend).item() == pytest.approx(12.5)
        kernel = rbf_mean(x_there, bandwidths=[12.5**0.5], backend=backend)
        assert kernel.tolist() == pytest.approx([(1 + math.exp(-1)) / 2])


def test_identical_points_have_distance_0_and_kernel_1(device):
    x = normal(1, 5).expand(20, 5) + 7
    for backend in BACKENDS:
        there = on(device, backend, x)[0]
        assert mean_distance(there, backend=backend).item() == 0
        assert mean_distance(there, there.clone(), backend=backend).item() == 0
        # Even where a bandwidth is nothing beside the data, a point with itself counts 1.
        assert rbf_mean(there, bandwidths=[1e-30], backend=backend).tolist() == [1]
    x = torch.arange(10.0)[:, None]
    for backend in BACKENDS:
        assert rbf_mean(on(device, backend, x)[0], bandwidths=[1e-30], backend=backend).tolist() == [0.1]


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_duplicates_whose_product_form_rounds_below_0(device, backend):
    x = normal(200, 30)
    result = mean_distance(*on(device, backend, x, x.clone()), backend=backend).item()
    assert result == pytest.approx(truth(x).mean().item(), rel=1e-5)


def test_mean_squared_distance_is_exact_far_from_the_origin():
    x, y = normal(200, 6) + 3000, normal(100, 6, seed=1) + 3001
    for other in (y, None):
        expected = truth(x, other).square().mean().item()
        assert mean_squared_distance(x, other).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows(device, bad):
    x = normal(20, 3)
    x[4, 1] = bad
    for backend in ("triton", "auto"):
        assert mean_distance(on(device, backend, x)[0], backend=backend).isnan()
        assert rbf_mean(on(device, backend, x)[0], bandwidths=[1.0, 2.0], backend=backend).isnan().all()


def test_operator_contract(device):
    x, y = normal(9, 4).to(device), normal(7, 4, seed=1).to(device)
    for arguments in (
        (x, y, [1.0, 0.5], True, False),
        (x, None, [], True, True),
        (x, y, [0.5], False, False),
    ):
        torch.library.opcheck(torch.ops.rumfast.pair_sums.default, arguments)


def test_compiles_in_one_graph(device):
    x, y = normal(9, 4).to(device), normal(7, 4, seed=1).to(device)
    compiled = torch.compile(
        lambda x, y: mean_distance(x, y) + rbf_mean(x, bandwidths=[2.0, 1.0]).sum(),
        backend="eager",
        fullgraph=True,
    )
    assert compiled(x, y) == mean_distance(x, y) + rbf_mean(x, bandwidths=[1.0, 2.0]).sum()


MEMORY = """
import resource, torch
from rumfast.kernels.neighbours import nearest
from rumfast.kernels.pairwise import mean_distance, mean_squared_distance, rbf_mean
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x, y = torch.randn(50_000, 8), torch.randn(50_000, 8)
mean_distance(x[:600], y[:600]), nearest(x[:600], y[:600], 4)
before = peak()
for other in (y, None):
    mean_distance(x, other), mean_distance(x, other, precision="fast"), mean_squared_distance(x, other)
    rbf_mean(x, other, bandwidths=[1.0, 2.0]), nearest(x, other, 4)
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pairs():
    # 50 000 × 50 000 float32 would be 10 GB.
    out = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout
    assert int(out) * 1024 < 150e6


FAR_ROWS = """
import torch
from rumfast.kernels.backend import jit, tl
from rumfast.kernels.tiles import squared_distances

@jit
def kernel(x_ptr, norm_ptr, out_ptr, first, rows, width):
    lane = tl.arange(0, 16)
    row, x_ptr, norm_ptr = first + lane, x_ptr - first.to(tl.int64) * width, norm_ptr - first
    squared = squared_distances(
        x_ptr, x_ptr, norm_ptr, norm_ptr, rows, rows, width, row, row, True, 16, 16, 16
    )
    tl.store(out_ptr + lane[:, None] * 16 + lane[None, :], squared)

device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.ones(2, 16, 32, dtype=torch.float16, device=device)
x[1] = 0.5
norm, out = torch.full((16,), 65.0, device=device), torch.empty(16, 16, device=device)
kernel[(1,)](x, norm, out, 1 << 28, 16, 32)
print(out.unique().tolist())
"""


def test_offsets_beyond_32_bits(tmp_path):
    # The kernel is told that its 16 points follow 2^28 others of width 32: a wrapped offset is far off.
    # 65 + 65 − 2 · 32 · (1 · 1 + 2 · 1 · ½) = 2.
    script = tmp_path / "far_rows.py"
    script.write_text(FAR_ROWS)
    out = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert out.stdout == "[2.0]\n", out.stderr


@pytest.mark.parametrize("x, y", [((0, 3), (2, 3)), ((2, 3), (2, 4)), ((2,), None), ((2, 0), None)])
def test_sets_that_disagree(x, y):
    y = None if y is None else torch.ones(y)
    for call in (mean_distance, mean_squared_distance, lambda x, y: rbf_mean(x, y, bandwidths=[1.0])):
        with pytest.raises(
            ValueError, match=r"non-empty \[N, D\] and \[M, D\] of one dtype and device expected"
        ):
            call(torch.ones(x), y)


def test_bad_arguments():
    x = torch.ones(2, 2)
    with pytest.raises(ValueError, match="mean_distance: floating point expected, got torch.int64"):
        mean_distance(x.long())
    with pytest.raises(ValueError, match="one dtype and device expected, got torch.float32 .* torch.float64"):
        mean_distance(x, x.double())
    with pytest.raises(ValueError, match="precision: got 'exact', expected accurate or fast"):
        mean_distance(x, precision="exact")
    with pytest.raises(ValueError, match="backend: got 'cuda'"):
        mean_distance(x, backend="cuda")
    for widths in ([], [1.0, 0.0], [-1.0], [math.inf], [math.nan]):
        with pytest.raises(ValueError, match="bandwidths: got .*, expected one or more positive numbers"):
            rbf_mean(x, bandwidths=widths)


def test_threads_share_the_tiles_and_are_as_many_afterwards():
    x, y = normal(1500, 300), normal(1100, 300, seed=1)
    before = torch.get_num_threads()
    expected = mean_distance(x, y).item()
    try:
        torch.set_num_threads(3)
        assert mean_distance(x, y).item() == pytest.approx(expected, rel=1e-9)
        assert cpu_map(lambda item: (item, torch.get_num_threads()), range(4)) == [
            (item, 1) for item in range(4)
        ]
        with pytest.raises(ZeroDivisionError):
            cpu_map(lambda item: 1 // item, [2, 1, 0])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
