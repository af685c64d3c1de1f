"""Windows of a sorted list: their entanglement is that of the same sets taken whole."""

import numpy as np
import pytest
import torch

from rumfast.errors import DataError
from rumfast.scores import entanglement_score
from rumfast.scores.windows import Windows, measure_windows


def clusters(examples=200, width=5, seed=0):
    """Points in four clusters, and their order by distance to the mean."""
    draw = torch.Generator().manual_seed(seed)
    centre_GD = 4 * torch.randn(4, width, generator=draw)
    points_PD = centre_GD[torch.arange(examples) % 4] + torch.randn(examples, width, generator=draw)
    distance_P = (points_PD - points_PD.mean(0)).norm(dim=1)
    return points_PD, np.argsort(distance_P.numpy(), kind="stable")


@pytest.mark.parametrize(
    ("size", "count"), [(30, 15), (1, 15), (5, 3), (150, 15), (199, 15), (198, 15), (30, 1)]
)
def test_each_window_measures_as_the_sets_themselves(size, count):
    points_PD, order_P = clusters()
    windows = measure_windows(points_PD, order_P, size, count)
    assert len(windows.start_W) == min(count, 200 - size + 1) and windows.start_W[0] == 0
    if count > 1:
        assert windows.start_W[-1] + size == 200  # the last one ends with the list
    for start, found in zip(windows.start_W, windows.entanglement_W, strict=True):
        inside = order_P[start : start + size]
        outside = np.setdiff1d(np.arange(200), inside)
        expected = entanglement_score(points_PD[outside].double(), points_PD[inside].double())
        assert found == pytest.approx(expected, rel=1e-5)


def test_windows_are_evenly_spaced_and_those_of_a_small_set_overlap():
    points_PD, order_P = clusters(1400)
    start_W = measure_windows(points_PD, order_P, 150).start_W
    assert len(start_W) == 15 and set(np.diff(start_W)) <= {89, 90} and start_W[-1] == 1250
    assert measure_windows(points_PD, order_P, 10, 5).start_W.tolist() == [0, 348, 695, 1042, 1390]


def test_the_order_of_the_rows_does_not_matter():
    points_PD, order_P = clusters()
    shuffle = np.random.default_rng(0).permutation(200)
    place = np.argsort(shuffle)
    one = measure_windows(points_PD, order_P, 30)
    other = measure_windows(points_PD[shuffle], place[order_P], 30)
    np.testing.assert_allclose(one.entanglement_W, other.entanglement_W, rtol=1e-5)


def test_levels_by_hand():
    # The geometric mean of 1 and 100 is 10; by the arithmetic one, 50.5, 60 would be nearer than 9.
    windows = Windows(2, np.arange(5), np.array([60.0, 1.0, 9.0, 100.0, 3.0]))
    assert [windows.at(level) for level in ("low", "mid", "high")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("scores", "levels"),
    [
        ([5.0], [0, 0, 0]),
        ([5.0, 3.0], [1, 1, 0]),
        ([7.0, 7.0, 7.0], [0, 1, 2]),
        ([np.inf, 2.0, 8.0, 4.0], [1, 3, 0]),  # middle 4, of the finite ones
        ([0.0, 2.0, 8.0, 4.0], [0, 3, 2]),
        ([np.inf, np.inf, np.inf], [0, 1, 2]),
    ],
)
def test_levels_of_few_equal_or_infinite_scores(scores, levels):
    windows = Windows(1, np.arange(len(scores)), np.array(scores))
    assert [windows.at(level) for level in ("low", "mid", "high")] == levels


def test_a_window_whose_mean_is_the_rests_is_entangled_without_end():
    points_PD = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]])
    assert measure_windows(points_PD, np.arange(4), 2, count=2).entanglement_W.tolist() == [np.inf, np.inf]
    assert measure_windows(torch.ones(3, 2), np.arange(3), 1, count=1).entanglement_W.tolist() == [np.inf]


@pytest.mark.parametrize(
    ("order", "size", "count"),
    [([0, 1, 1], 1, 2), ([0, 1], 1, 2), ([0, 1, 2], 0, 2), ([0, 1, 2], 3, 2), ([0, 1, 2], 1, 0)],
)
def test_sizes_and_orders_that_cannot_be(order, size, count):
    with pytest.raises(DataError, match="windows: got"):
        measure_windows(torch.randn(3, 2, generator=torch.Generator()), np.array(order), size, count)
