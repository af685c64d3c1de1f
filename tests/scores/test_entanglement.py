import math

import numpy as np
import pytest
import torch

from rumfast import entanglement_score
from rumfast.errors import DataError, UsageError


def clouds(retain=2000, forget=300, width=5, gap=3.0, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    shift = np.zeros(width)
    shift[0] = gap
    return rng.normal(offset, 1, (retain, width)), rng.normal(offset, 1, (forget, width)) + shift


def naive(retain, forget, pooled=True):
    """The formula, word for word, in float64."""
    mean_R, mean_S = retain.mean(0), forget.mean(0)
    centre = np.concatenate([retain, forget]).mean(0) if pooled else (mean_R + mean_S) / 2
    within = ((retain - mean_R) ** 2).sum(1).mean() + ((forget - mean_S) ** 2).sum(1).mean()
    return within / (0.5 * (((mean_R - centre) ** 2).sum() + ((mean_S - centre) ** 2).sum()))


def score(retain, forget, **options):
    return entanglement_score(torch.from_numpy(retain), torch.from_numpy(forget), **options)


@pytest.mark.parametrize("sizes", [(2000, 300), (1, 1), (1, 7), (50, 50)])
@pytest.mark.parametrize("center", ["pooled", "midpoint"])
def test_against_the_formula(sizes, center):
    retain, forget = clouds(*sizes)
    assert score(retain, forget, center=center) == pytest.approx(
        naive(retain, forget, center == "pooled"), rel=1e-10
    )


def test_hand_worked():
    retain, forget = np.array([[0.0], [2.0], [0.0], [2.0]]), np.array([[10.0], [12.0]])
    # Means 1 and 11, both variances 1; pooled mean 26/6, midpoint 6.
    assert score(retain, forget, center="midpoint") == pytest.approx(2 / 25)
    assert score(retain, forget) == pytest.approx(2 / (0.5 * ((26 / 6 - 1) ** 2 + (11 - 26 / 6) ** 2)))


def test_gaussian_clouds_in_closed_form():
    # N(a, I_d), N(b, I_d): 2d over the mean squared distance of a and b to the centre.
    retain, forget = clouds(200_000, 50_000, width=4, gap=2.0)
    share = 50_000 / 250_000
    pooled = 0.5 * ((share * 2) ** 2 + ((1 - share) * 2) ** 2)
    assert score(retain, forget) == pytest.approx(8 / pooled, rel=0.02)
    assert score(retain, forget, center="midpoint") == pytest.approx(8 / 1.0, rel=0.02)


def test_the_two_centres_differ_by_the_factor_of_the_set_sizes():
    # ES_midpoint / ES_pooled = 2·(w² + (1−w)²) with w the forget set's share: 1.75 at 3000 of 45000.
    retain, forget = clouds(42_000, 3_000, width=2, gap=1.0)
    factor = score(retain, forget, center="midpoint") / score(retain, forget)
    assert factor == pytest.approx(
        2 * ((1 / 15) ** 2 + (14 / 15) ** 2), rel=1e-9
    ) and factor == pytest.approx(1.75, 0.01)


def test_swapping_rotating_and_scaling_do_not_matter_and_separation_does():
    retain, forget = clouds()
    value = score(retain, forget)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))
    assert score(forget, retain) == pytest.approx(value, rel=1e-10)
    assert score(7 * retain @ rotation + 3, 7 * forget @ rotation + 3) == pytest.approx(value, rel=1e-9)
    assert score(retain, forget + np.eye(5)[0]) < value < score(retain, forget - np.eye(5)[0])


def test_float32_embeddings_far_from_the_origin_lose_nothing():
    # Σ‖x‖² − n‖μ‖² in float32 would be off by several times the truth.
    retain, forget = (points.astype(np.float32) for points in clouds(offset=300.0))
    assert score(retain, forget) == pytest.approx(naive(retain.astype(float), forget.astype(float)), rel=3e-7)


def test_coinciding_means_are_infinitely_entangled():
    points = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    assert entanglement_score(points, 2 * points) == math.inf


@pytest.mark.parametrize("retain, forget", [((0, 3), (2, 3)), ((2, 3), (0, 3)), ((2, 3), (2, 4))])
def test_empty_sets_and_other_widths(retain, forget):
    with pytest.raises(DataError, match="entanglement: two non-empty sets of one width expected"):
        entanglement_score(torch.ones(retain), torch.ones(forget))


def test_an_unknown_centre():
    with pytest.raises(UsageError, match="center: got 'mean', expected pooled or midpoint"):
        entanglement_score(torch.ones(2, 2), torch.zeros(2, 2), center="mean")
