import numpy as np
import pytest
import torch

from rumfast.kernels import neighbours
from rumfast.kernels.neighbours import nearest

BACKENDS = ("triton", "auto", "torch")


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def truth(x, y, k):
    """By a stable sort of all distances in float64, from differences."""
    distance = (x.double()[:, None] - (x if y is None else y).double()).square().sum(-1).sqrt()
    if y is None:
        distance.fill_diagonal_(torch.inf)
    order = distance.sort(dim=1, stable=True)
    return order.values[:, :k], order.indices[:, :k]


def check(device, x, y, k):
    """All backends against float64: indices exactly, distances to float32."""
    expected = truth(x, y, k)
    for backend in BACKENDS:
        sets = [s if s is None or backend != "triton" else s.to(device) for s in (x, y)]
        distance, index = nearest(*sets, k, backend=backend)
        assert distance.dtype == torch.promote_types(x.dtype, torch.float32) and index.dtype == torch.int64
        assert torch.equal(index.cpu(), expected[1]), backend
        torch.testing.assert_close(distance.cpu().double(), expected[0], rtol=2e-6, atol=0)


SETS = {  # name: x, y, k
    "odd": (normal(37, 5), normal(70, 5, seed=1), 3),
    "one pair": (normal(1, 3), normal(1, 3, seed=1), 1),
    "one row, all neighbours": (normal(1, 7), normal(66, 7, seed=1), 66),
    "whole blocks": (normal(64, 32), normal(64, 32, seed=1), 10),
    "ragged blocks, many neighbours": (normal(70, 40), normal(150, 40, seed=1), 30),
    "far from the origin": (normal(40, 6) + 3000, normal(30, 6, seed=1) + 3001, 5),
    "huge": (normal(20, 6) * 1e15, normal(30, 6, seed=1) * 1e15, 5),
    "strided": (normal(8, 70).T[::2], normal(50, 16, seed=1)[:, ::2], 4),
    "half": (normal(30, 6).half(), normal(20, 6, seed=1).half(), 4),
    "near-duplicates": (normal(20, 6), normal(20, 6) + 1e-3 * normal(20, 6, seed=1), 2),
}


@pytest.mark.parametrize("name", SETS)
def test_all_backends(device, name):
    check(device, *SETS[name])


@pytest.mark.parametrize("name", ["odd", "ragged blocks, many neighbours", "near-duplicates", "strided"])
def test_of_a_set_in_itself(device, name):
    x, _, k = SETS[name]
    check(device, x, None, k)
    check(device, x, None, len(x) - 1)


def test_ties_go_to_the_lowest_index_and_duplicates_are_neighbours(device):
    # Each point four times on a line of integers: three duplicates, then four or eight at distance 1.
    x = torch.arange(6.0).repeat(4)[:, None]
    check(device, x, None, 5)
    check(device, torch.arange(6.0)[:, None] + 0.5, x, 5)
    check(device, x[:8].expand(8, 3), None, 4)


@pytest.mark.parametrize("programs", [1, 4, 512])
def test_splits_over_y_are_merged(device, monkeypatch, programs):
    monkeypatch.setattr(neighbours, "PROGRAMS", programs)
    for y in (normal(300, 6, seed=1), None):
        check(device, normal(90, 6), y, 4)


def test_many_blocks_and_tiles_on_a_cpu(monkeypatch):
    # 3000 columns: two levels of minima before anything is selected, in one tile and in ragged ones of 1024.
    x, y = normal(150, 6), normal(3000, 6, seed=1)
    expected = truth(x, y, 3), truth(y, None, 3)
    for rows, columns in ((256, 16384), (64, 1024)):
        monkeypatch.setattr(neighbours, "CPU_ROWS", rows)
        monkeypatch.setattr(neighbours, "CPU_COLUMNS", columns)
        assert torch.equal(nearest(x, y, 3)[1], expected[0][1])
        assert torch.equal(nearest(y, k=3)[1], expected[1][1])


def test_spare_candidates_are_ranked_by_differences():
    # Neighbours at 1, 1 + 2^-12, …: far closer to each other than products of this size resolve in float32.
    x = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]])
    y = x[:1] + torch.stack([torch.zeros(6), 1 + torch.arange(6, 0, -1) * 2.0**-12], 1)
    distance, index = nearest(x, torch.cat([y, -y]), 3)
    assert index[0].tolist() == [5, 4, 3]
    torch.testing.assert_close(distance[0], 1 + torch.arange(1, 4) * 2.0**-12, rtol=1e-6, atol=0)


def test_float64_is_ranked_in_float64():
    x = torch.tensor([[0.0], [1.0], [-1.0 - 1e-12]], dtype=torch.float64)
    distance, index = nearest(x, k=2)
    assert index[0].tolist() == [1, 2] and distance[0, 1].item() == 1 + 1e-12


def test_what_is_not_finite_shows(device):
    x = normal(20, 3)
    x[4, 1] = torch.nan
    for backend in ("triton", "auto"):
        distance, index = nearest(x.to(device if backend == "triton" else "cpu"), k=3, backend=backend)
        assert distance.isnan().all() and (0 <= index).all() and (index < 20).all()


def test_operator_contract(device):
    x, y = normal(9, 4).to(device), normal(7, 4, seed=1).to(device)
    for arguments in ((x, y, 2), (x, None, 8), (x.half(), None, 1), (x.double(), y.double(), 1)):
        torch.library.opcheck(torch.ops.rumfast.nearest.default, arguments)


def test_compiles_in_one_graph(device):
    x = normal(9, 4).to(device)
    compiled = torch.compile(lambda x: nearest(x, k=2), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x)[1], nearest(x, k=2)[1])


def test_bad_arguments():
    x = torch.ones(4, 2)
    for k, y in ((0, x), (5, x), (4, None)):
        with pytest.raises(ValueError, match=f"k: got {k}, expected 1..{3 if y is None else 4}"):
            nearest(x, y, k)
    with pytest.raises(ValueError, match="k: got 123, expected 1..199 and at most 122 on a GPU"):
        nearest(torch.ones(200, 1), k=123, backend="triton")
    with pytest.raises(ValueError, match=r"nearest: non-empty \[N, D\] and \[M, D\] of one dtype and device"):
        nearest(x, torch.ones(4, 3), 1)
