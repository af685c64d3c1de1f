"""Rank correlations with intervals, the ceiling, and rows by class."""

import numpy as np
import pytest
from scipy import stats

from rumfast.errors import DataError
from rumfast.evaluation import t_interval
from rumfast.scores.agreement import _weighted, ceiling, class_summary, rank_agreement

N = 301


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    a_N = rng.normal(size=N)
    b_N = (2 * a_N + rng.normal(size=N)).round()  # ties
    return {"a": a_N, "b": b_N, "c": -np.exp(a_N), "constant": np.ones(N)}


def test_it_is_scipys(scores):
    found = rank_agreement(scores, resamples=20)
    for i, j in ((0, 1), (1, 0), (0, 2), (1, 2)):
        expected = stats.spearmanr(scores[found.names[i]], scores[found.names[j]]).statistic
        assert found.rho_KK[i, j] == pytest.approx(expected, abs=1e-12)
    assert found.rho_KK[0, 2] == pytest.approx(-1) and found.rho_KK[0, 0] == pytest.approx(1)
    assert np.isnan(found.rho_KK[3]).all() and (found.count_KK == N).all()


def test_resamples_are_ranked_anew(scores):
    """What the running sums say of a resample is what sorting it says."""
    rng = np.random.default_rng(1)
    drawn_N = rng.integers(N, size=N)
    rank_2N = np.stack([stats.rankdata(scores[name], method="dense").astype(np.int64) - 1 for name in "ab"])
    found_22 = _weighted(rank_2N, np.bincount(drawn_N, minlength=N)[None])[0]
    expected = stats.spearmanr(scores["a"][drawn_N], scores["b"][drawn_N]).statistic
    assert found_22[0, 1] == pytest.approx(expected, abs=1e-12)


def test_missing_scores_are_left_out_of_their_pairs_alone(scores):
    holes = {name: score.copy() for name, score in scores.items()}
    holes["a"][:10], holes["b"][5:30] = np.nan, np.nan
    found = rank_agreement(holes, resamples=50)
    assert found.count_KK[0, 1] == N - 30 and found.count_KK[1, 2] == N - 25 and found.count_KK[2, 2] == N
    expected = stats.spearmanr(scores["a"][30:], scores["b"][30:]).statistic
    assert found.rho_KK[0, 1] == pytest.approx(expected, abs=1e-12)
    whole = rank_agreement(scores, resamples=50)
    assert found.rho_KK[2, 3:] == pytest.approx(whole.rho_KK[2, 3:], nan_ok=True)
    nothing = rank_agreement({"a": holes["a"][:4], "b": holes["b"][:4]}, resamples=5)
    assert np.isnan(nothing.rho_KK).tolist() == [[True, True], [True, False]]


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of 200 draws with ρ_S = 6/π · asin(0.6 / 2), 95 % of the intervals hold it."""
    rng, truth, inside = np.random.default_rng(2), 6 / np.pi * np.arcsin(0.3), 0
    for _ in range(200):
        x_N = rng.normal(size=150)
        y_N = 0.6 * x_N + 0.8 * rng.normal(size=150)
        found = rank_agreement({"x": x_N, "y": y_N}, resamples=200)
        inside += found.low_KK[0, 1] <= truth <= found.high_KK[0, 1]
        assert found.low_KK[0, 1] <= found.rho_KK[0, 1] <= found.high_KK[0, 1]
    assert 180 <= inside <= 198


def test_same_seed_same_intervals_whatever_else_is_asked(scores):
    two = rank_agreement({name: scores[name] for name in "ab"}, resamples=40)
    three = rank_agreement({name: scores[name] for name in "abc"}, resamples=40)
    np.testing.assert_array_equal(two.low_KK, three.low_KK[:2, :2])


def test_what_cannot_be_compared():
    with pytest.raises(DataError, match="expected one shape"):
        rank_agreement({})
    with pytest.raises(DataError, match="expected one shape"):
        rank_agreement({"a": np.ones(3), "b": np.ones(4)})


def test_noise_attenuates_as_the_ceiling_says():
    """A perfect score, against an estimate whose repetitions correlate at r, reaches √r."""
    rng = np.random.default_rng(3)
    truth_N = rng.normal(size=20_000)
    first_N, second_N = (truth_N + rng.normal(size=20_000) for _ in range(2))
    reliability = np.corrcoef(first_N, second_N)[0, 1]
    assert np.corrcoef(truth_N, first_N)[0, 1] == pytest.approx(ceiling(reliability), abs=0.01)
    assert ceiling(-0.2) == 0


def test_rows_by_class():
    label_N = np.array([0, 2, 0, 2, 0])
    score_N = {
        "memorization": np.array([0.1, 0.5, 0.3, np.nan, 0.2]),
        "confidence": np.array([0.9, np.nan, 0.7, np.nan, 0.8]),
    }
    flipped_N = np.array([True, False, False, True, False])
    first, empty, last = class_summary(label_N, ("cat", "dog", "elk"), score_N, flipped_N)
    assert (first["name"], first["count"], first["flipped"]) == ("cat", 3, pytest.approx(1 / 3))
    assert first["means"] == {"memorization": pytest.approx(0.2), "confidence": pytest.approx(0.8)}
    assert first["interval"] == pytest.approx(t_interval([0.1, 0.3, 0.2], (-1, 1))[1:3])
    assert empty["count"] == 0 and empty["interval"] is None and empty["means"]["memorization"] is None
    assert last["means"] == {"memorization": 0.5, "confidence": None} and last["interval"] is None
    assert class_summary(label_N, ("cat",), score_N)[0]["flipped"] == 0
