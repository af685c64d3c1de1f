import math

import numpy as np
import pytest
import torch

from rumfast.errors import DataError, UsageError
from rumfast.scores import mmd2, neighbour_overlap


def normal(*shape, seed=0, mean=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, 1, shape)).float()


def naive_mmd2(retain, forget, bandwidths, unbiased):
    """Lemma 6 of Gretton et al. 2012 as written, in float64."""

    def kernel(a, b):
        squared = (a.double()[:, None] - b.double()).square().sum(-1)
        return sum(torch.exp(-squared / (2 * width**2)) for width in bandwidths) / len(bandwidths)

    value = -2 * kernel(retain, forget).mean()
    for points in (retain, forget):
        gram, count = kernel(points, points), len(points)
        value += (gram.sum() - count) / (count * (count - 1)) if unbiased else gram.mean()
    return value.item()


@pytest.mark.parametrize("unbiased", [True, False])
def test_mmd2_against_the_formula(unbiased):
    retain, forget = normal(300, 5), normal(70, 5, seed=1, mean=0.5)
    for bandwidths in ([2.0], [0.5, 3.0], [1.0, 2**0.5, 2.0]):
        expected = naive_mmd2(retain, forget, bandwidths, unbiased)
        assert mmd2(retain, forget, bandwidths, unbiased) == pytest.approx(expected, abs=1e-7)


def test_mmd2_hand_worked():
    # Kernels at squared distance 0, 1 and 4 with σ² = ½: 1, 1/e, 1/e⁴.
    retain, forget, width = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [2.0]]), [0.5**0.5]
    cross = (math.exp(-4) + math.exp(-1)) / 2
    assert mmd2(retain, forget, width) == pytest.approx(math.exp(-1) + 1 - 2 * cross)
    expected = (1 + math.exp(-1)) / 2 + 1 - 2 * cross
    assert mmd2(retain, forget, width, unbiased=False) == pytest.approx(expected)


def test_mmd2_of_gaussians_in_closed_form():
    # For N(a, I_d) and N(b, I_d) and one σ: 2 (σ²/(σ²+2))^{d/2} (1 − exp(−‖a−b‖² / (2(σ²+2)))).
    retain, forget = normal(6000, 3), normal(4000, 3, seed=1, mean=1)
    expected = 2 * (4 / 6) ** 1.5 * (1 - math.exp(-3 / 12))
    assert mmd2(retain, forget, [2.0]) == pytest.approx(expected, rel=0.05)


def test_mmd2_of_a_set_with_itself_and_of_two_samples_of_one_distribution():
    points = normal(500, 4)
    assert mmd2(points, points, unbiased=False) == pytest.approx(0, abs=1e-7)
    biased = mmd2(points, normal(500, 4, seed=1), unbiased=False)
    # The unbiased value is the biased one less the diagonals' share, and lies around 0.
    assert abs(mmd2(points, normal(500, 4, seed=1))) < 0.2 * biased


def test_mmd2_does_not_change_with_translation_order_or_by_default_scale():
    retain, forget = normal(200, 4), normal(100, 4, seed=1, mean=1)
    value = mmd2(retain, forget)
    assert mmd2(retain + 256, forget + 256) == pytest.approx(value, abs=1e-5)
    assert mmd2(8 * retain, 8 * forget) == pytest.approx(value, abs=1e-7)
    assert mmd2(forget, retain, [1.0]) == pytest.approx(mmd2(retain.flip(0), forget, [1.0]), abs=1e-7)
    assert value < mmd2(retain, forget + 1)


def test_default_bandwidths_are_of_the_median_distance():
    # All distances between the 1 + 2 points: 3, 3 and 0, where equal points do not count.
    retain, forget = torch.tensor([[0.0]]), torch.tensor([[3.0], [3.0]])
    bandwidths = [3 * factor**0.5 for factor in (0.25, 0.5, 1, 2, 4)]
    expected = naive_mmd2(retain, forget, bandwidths, unbiased=False)
    assert mmd2(retain, forget, unbiased=False) == pytest.approx(expected, abs=1e-7)
    # Of 5000 points, 500 from either end are taken: just over half of their pairs are 10 apart.
    ends = torch.cat([torch.zeros(2500, 1), 10 + torch.zeros(2500, 1)]) + 1e-3 * torch.rand(5000, 1)
    assert mmd2(ends[:2000], ends[2000:]) == pytest.approx(
        mmd2(ends[:2000], ends[2000:], [10 * factor**0.5 for factor in (0.25, 0.5, 1, 2, 4)]), abs=1e-4
    )
    assert mmd2(torch.ones(3, 2), torch.ones(2, 2)) == 0


def test_neighbour_overlap_hand_worked():
    # On a line: R 0, 1, 10; F 2, 11, 12. Nearest two of 2: 1, 0; of 11: 10, 12 (a tie); of 12: 11, 10.
    retain, forget = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([[2.0], [11.0], [12.0]])
    assert neighbour_overlap(retain, forget, k=2) == pytest.approx((2 + 1 + 1) / 6 / (3 / 5))
    # Nearest one: 1; 10, as retain comes first in a tie; 11.
    assert neighbour_overlap(retain, forget, k=1) == pytest.approx(2 / 3 / (3 / 5))


def test_neighbour_overlap_of_mixed_and_of_separate_sets():
    points = normal(2000, 8)
    assert neighbour_overlap(points[:1600], points[1600:]) == pytest.approx(1, abs=0.05)
    assert neighbour_overlap(points[:400], points[400:]) == pytest.approx(1, abs=0.05)
    assert neighbour_overlap(points[:1600], points[1600:] + 20) == 0
    # All others are neighbours: chance itself.
    assert neighbour_overlap(points[:5], points[5:8], k=7) == pytest.approx(1)
    # A lone forget example has retain neighbours only, and so it would by chance.
    assert neighbour_overlap(points[:50], points[50:51] + 20, k=3) == 1


def test_neighbour_overlap_among_duplicates_never_counts_the_example_itself():
    # Three forget copies of one point, far from retain: the two others are the nearest, then retain.
    forget, retain = torch.zeros(3, 2), 5 + torch.zeros(4, 2)
    assert neighbour_overlap(retain, forget, k=2) == 0
    assert neighbour_overlap(retain, forget, k=3) == pytest.approx(1 / 3 / (4 / 6))
    # Four retain copies come first at distance 0, so that none of the three finds itself.
    assert neighbour_overlap(torch.zeros(4, 2), forget, k=2) == pytest.approx(1 / (4 / 6))
    assert neighbour_overlap(torch.zeros(4, 2), forget, k=4) == pytest.approx(1 / (4 / 6))


@pytest.mark.parametrize(
    "retain, forget", [((0, 3), (2, 3)), ((2, 3), (0, 3)), ((2, 3), (2, 4)), ((3,), (3,))]
)
def test_empty_sets_and_other_widths(retain, forget):
    for score, least in ((mmd2, 2), (neighbour_overlap, 1)):
        with pytest.raises(DataError, match=rf"two sets \[≥ {least}, D\] of one width expected, got \("):
            score(torch.ones(retain), torch.ones(forget))


def test_one_point_has_no_unbiased_mmd2():
    with pytest.raises(DataError, match=r"mmd2: two sets \[≥ 2, D\]"):
        mmd2(torch.ones(1, 3), torch.ones(2, 3))


def test_bad_options():
    points = torch.ones(3, 2)
    for bandwidths in ([], [0.0], [1.0, math.inf]):
        with pytest.raises(UsageError, match="bandwidths: got .*, expected one or more positive numbers"):
            mmd2(points, points, bandwidths)
    for k in (0, 6):
        with pytest.raises(UsageError, match=f"k: got {k}, expected 1..5"):
            neighbour_overlap(points, points, k)
