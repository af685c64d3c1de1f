import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rumfast.errors import DataError, UsageError
from rumfast.evaluation import forgetting
from rumfast.evaluation.forgetting import epsilon, final_score, forgetting_quality


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def best(positive, negative, low_A, high_A, delta):
    """ε of the best attack that calls margins within [low, high] positive, by the competition's rules."""
    fnr_A = ((positive < low_A[:, None]) | (positive > high_A[:, None])).mean(1)
    fpr_A = ((negative >= low_A[:, None]) & (negative <= high_A[:, None])).mean(1)
    if ((fpr_A == 0) & (fnr_A == 0)).any():
        return 50.0
    counted_A = (fpr_A > 0) & (fnr_A > 0)
    fpr_A, fnr_A = fpr_A[counted_A], fnr_A[counted_A]
    ratios = np.concatenate([(1 - delta - fpr_A) / fnr_A, (1 - delta - fnr_A) / fpr_A, [1]])
    return np.log(ratios.max())


def every_attack(ours_M, theirs_K, delta=1e-5, tiny=1e-9):
    """As the competition has it, with thresholds at and next to every margin and every limit."""
    theirs_higher = np.median(theirs_K) > np.median(ours_M)
    higher, lower = (theirs_K, ours_M) if theirs_higher else (ours_M, theirs_K)
    peaky, wide = (lower, higher) if np.ptp(lower) <= np.ptp(higher) else (higher, lower)
    if np.ptp(peaky) < 0.01 * np.ptp(wide):
        return 50.0
    cuts = np.concatenate([ours_M, theirs_K, ours_M + tiny, theirs_K + tiny])
    single = best(higher, lower, cuts, np.full(len(cuts), np.inf), delta)
    length = np.ptp(peaky) + np.array([[-2], [2]])
    ends = np.concatenate([cuts, cuts - 2 * tiny, *(cuts + length), peaky.max() + [-2, 2]])
    ends = ends[np.abs(ends - peaky.max()) <= 2]
    low, high = np.broadcast_arrays(cuts[:, None], ends)
    low = np.concatenate([low.ravel(), *(ends - length)])
    high = np.concatenate([high.ravel(), ends, ends])
    near = np.abs(high - low - np.ptp(peaky)) <= 2 + tiny / 10
    return max(single, best(peaky, wide, low[near], high[near], delta))


COUNT = st.integers(2, 9)


@given(COUNT, COUNT, st.integers(0, 2**32 - 1), st.sampled_from([3, 10, 30, 10**6]))
@settings(max_examples=150, deadline=None)
def test_against_trying_every_threshold(models, oracles, seed, values):
    # Up to 12 nats, in steps that 2 nats are no multiple of.
    rng = np.random.default_rng(seed)
    ours, theirs = (rng.integers(0, values, (n, 3)) * (12.3 / max(values, 12)) for n in (models, oracles))
    expected = [every_attack(ours[:, f], theirs[:, f]) for f in range(3)]
    np.testing.assert_allclose(epsilon(ours, theirs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("models", [32, 64, 501])
@pytest.mark.parametrize("shift", [1.0, 2.0, 3.0])
def test_gaussians_against_the_closed_form(models, shift):
    # Margins at the quantiles z_i = Φ⁻¹((i − ½)/n) of N(shift, 1) and N(0, 1). The likelihood ratio is
    # monotone, so the best attack accuses all but the lowest member: FNR = 1/n, and 1 − FPR = c/n with
    # c = #{j: z_j < shift + z_2} = ⌈n·Φ(shift + z_2) − ½⌉ non-members spared.
    quantile = stats.norm.ppf((np.arange(models) + 0.5) / models)[:, None]
    spared = np.ceil(models * stats.norm.cdf(shift + quantile[1, 0]) - 0.5)
    expected = np.log((spared / models - 1e-5) * models)
    assert epsilon(quantile + shift, quantile)[0] == pytest.approx(expected, rel=1e-9)
    assert epsilon(quantile, quantile + shift)[0] == pytest.approx(expected, rel=1e-9)


def test_populations_that_one_threshold_or_two_can_part():
    theirs = np.array([[-3.0, 0.0], [-2.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    ours = np.array([[-1.0, 4.0], [0.0, 5.0], [1.0, 6.0], [0.5, 7.0]])
    assert epsilon(ours, theirs).tolist() == [50, 50]
    assert epsilon(theirs, ours).tolist() == [50, 50]
    # A single model of the wide population within the narrow one: FPR = 1/4, and FNR = 0 does not count
    # without it, so the best gives one of ours away: FNR = 1/4, FPR = 0 or 1/4.
    theirs[1, 0] = 0.25
    assert epsilon(ours, theirs, delta=0)[0] == pytest.approx(np.log(3))


def test_equal_populations_and_few_models():
    margin = normal(20, 30)
    assert not epsilon(margin, margin[::-1]).any()
    assert not epsilon(np.ones((5, 2)), np.ones((4, 2))).any()
    assert epsilon(np.ones((5, 2)), np.zeros((2, 2))).tolist() == [50, 50]
    with pytest.raises(DataError, match="got 1 oracles, expected at least 2"):
        epsilon(np.ones((5, 2)), np.ones((1, 2)))
    assert np.isfinite(epsilon(normal(2, 50, seed=1), normal(2, 50, seed=2))).all()


def test_no_more_than_the_models_can_show():
    found = epsilon(normal(32, 2000, seed=1) + 1.5, normal(32, 2000, seed=2))
    assert found[found < 50].max() <= np.log(31) and found.min() > 0


def test_a_population_far_narrower_than_the_other_is_told():
    # One wide margin within the narrow population, so that no threshold parts the two. A range of 1 is 1 % of
    # one of 100, and not below it.
    narrow = np.array([[0.0], [0.5], [1.0]])
    wide = np.array([[-49.5], [0.5], [50.5]])
    assert epsilon(narrow, wide)[0] < 50
    assert epsilon(narrow * 0.99, wide)[0] == epsilon(wide, narrow * 0.99)[0] == 50


def test_intervals_are_laid_around_the_narrower_population():
    # [5, 5.2] holds three of five narrow margins and one wide one, which shows log 3; but an interval must be
    # 8 to 12 nats long here, like the narrow range, and the best one shows log 2: [0.1, 10.1] holds four
    # narrow margins and three wide ones. A fifth as wide, all intervals are near enough.
    narrow = np.array([[0.0], [5.0], [5.1], [5.2], [10.0]])
    wide = np.array([[-0.5], [2.5], [5.05], [7.7], [10.4]])
    assert epsilon(wide, narrow, delta=0)[0] == pytest.approx(np.log(2))
    assert epsilon(wide * 0.19, narrow * 0.19, delta=0)[0] == pytest.approx(np.log(3))
    # Nor may it be longer: [−3.2, 3.5] would hold four of five and one wide margin, which shows log 4.
    narrow = np.arange(5.0)[:, None]
    wide = np.array([[-3.6], [-3.2], [4.0], [4.0], [20.0]])
    assert epsilon(wide, narrow, delta=0)[0] == pytest.approx(np.log(3))


def test_order_shift_blocks_and_sides_make_no_difference(monkeypatch):
    ours, theirs = normal(12, 40, seed=1) + 0.5, normal(12, 40, seed=2)
    found = epsilon(ours, theirs)
    assert (epsilon(ours[::-1], np.random.default_rng(0).permutation(theirs)) == found).all()
    assert (epsilon(ours[:, ::-1], theirs[:, ::-1])[::-1] == found).all()
    assert (epsilon(ours + 64, theirs + 64) == found).all()
    np.testing.assert_allclose(epsilon(theirs, ours), found, rtol=1e-12)
    monkeypatch.setattr(forgetting, "CELLS_AT_ONCE", 75)  # three examples at a time
    assert (epsilon(ours, theirs) == found).all()


def test_delta_forgives():
    ours, theirs = normal(30, 50, seed=1) + 1, normal(30, 50, seed=2)
    strict, lenient = epsilon(ours, theirs, delta=0), epsilon(ours, theirs, delta=0.3)
    counted = strict < 50
    assert (lenient[counted] < strict[counted]).all() and counted.any()
    for delta in (-0.1, 1.0):
        with pytest.raises(UsageError, match="epsilon: got a delta of"):
            epsilon(ours, theirs, delta=delta)


def test_quality_by_hand():
    assert forgetting_quality(np.array([0.0, 0.2, 0.4999])) == 1
    # Bins [0, ½), [½, 1), [1, 1½), …: 2^0, 2^−1, 2^−1, 2^−2, 2^−4
    assert forgetting_quality(np.array([0.4, 0.5, 0.99, 1.0, 2.0])) == pytest.approx(2.3125 / 5)
    assert forgetting_quality(np.array([50.0])) == 2.0**-100
    for wrong in ([], [-0.1], [0.1, np.nan]):
        with pytest.raises(DataError, match="forgetting_quality"):
            forgetting_quality(np.array(wrong))


def test_final_score_by_hand():
    assert final_score(0.4, 0.9, 0.6, 0.5, 1.0) == pytest.approx(0.3)
    with pytest.raises(DataError, match="expected both above 0"):
        final_score(0.4, 0.9, 0.9, 0.5, 0.0)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_margin_that_is_not_finite_is_named(value):
    wrong = normal(3, 4)
    wrong[2, 2] = value
    with pytest.raises(
        DataError, match=rf"epsilon: 1 of 12 margins of the oracles is not finite, first {value}"
    ):
        epsilon(normal(3, 4), wrong)
