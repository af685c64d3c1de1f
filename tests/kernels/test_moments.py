import numpy as np
import pytest
import torch

from rumfast.kernels.moments import moments


def points(n=101, width=7, groups=4, offset=0.0):
    rng = np.random.default_rng(0)
    return rng.normal(offset, 1, (n, width)), rng.integers(0, groups, n)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_against_float64_group_by_group(offset):
    embedding, group = points(offset=offset)
    found = moments(torch.from_numpy(embedding), torch.from_numpy(group), 4)
    for g in range(4):
        mine = embedding[group == g]
        assert found.count_G[g] == len(mine)
        np.testing.assert_allclose(found.mean_GD[g], mine.mean(0), rtol=1e-12, atol=1e-12)
        scatter = ((mine - mine.mean(0)) ** 2).sum()
        # Σ‖x‖² − n‖μ‖² would lose eight digits at offset 1e4.
        assert found.scatter_G[g].item() == pytest.approx(scatter, rel=1e-10)


def test_hand_worked_with_an_empty_group_and_a_lone_point():
    embedding = torch.tensor([[1.0, 0.0], [3.0, 4.0], [7.0, 7.0]])
    found = moments(embedding, torch.tensor([2, 2, 0]), 3)
    assert found.count_G.tolist() == [1, 0, 2]
    assert found.mean_GD.tolist() == [[7.0, 7.0], [0.0, 0.0], [2.0, 2.0]]
    assert found.scatter_G.tolist() == [0.0, 0.0, 10.0]


def test_mean_pairwise_distance_follows_from_the_scatter():
    # mean_{i,j} ‖x_i − x_j‖² = 2·(mean‖x‖² − ‖μ‖²) = 2·scatter / n
    embedding, _ = points(n=40)
    found = moments(torch.from_numpy(embedding), torch.zeros(40, dtype=torch.int64), 1)
    pairs = ((embedding[:, None] - embedding[None]) ** 2).sum(-1).mean()
    assert 2 * found.scatter_G[0].item() / 40 == pytest.approx(pairs, rel=1e-12)


def test_sums_are_float64_whatever_the_points_are():
    embedding = torch.full((3000, 1), 16777217.0, dtype=torch.float64).float()
    found = moments(embedding, torch.zeros(3000, dtype=torch.int64), 1)
    assert found.mean_GD.dtype == found.scatter_G.dtype == torch.float64
    assert found.mean_GD.item() == embedding[0].item() and found.scatter_G.item() == 0.0
    half = moments(embedding.bfloat16(), torch.zeros(3000, dtype=torch.int64), 1)
    assert half.mean_GD.item() == embedding.bfloat16()[0].item()


def test_no_points():
    found = moments(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 2)
    assert found.count_G.tolist() == [0, 0] and found.scatter_G.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "shape, group, message",
    [
        ((3,), [0, 0, 0], r"embedding \[N, D\] and group \[N\] expected"),
        ((3, 2), [0, 0], r"got \(3, 2\) and \(2,\)"),
        ((3, 2), [0, 1, 2], "groups span 0..2, expected 0..1"),
        ((3, 2), [0, -1, 1], "groups span -1..1, expected 0..1"),
    ],
)
def test_what_cannot_be_meant(shape, group, message):
    with pytest.raises(ValueError, match=message):
        moments(torch.zeros(shape), torch.tensor(group), 2)
