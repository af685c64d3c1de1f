import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rumfast.errors import DataError, UsageError
from rumfast.evaluation.klom import EXAMPLES_AT_ONCE, klom


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_definition(ours_M, theirs_K, bins=20, clip=100.0, floor=1e-5):
    ours_M, theirs_K = (np.clip(margin.astype(np.float64), -clip, clip) for margin in (ours_M, theirs_K))
    both = np.concatenate([ours_M, theirs_K])
    p, q = (np.histogram(margin, bins, (both.min(), both.max()))[0] for margin in (ours_M, theirs_K))
    q = q / q.sum()
    q[(p > 0) & (q < floor)] = floor
    return stats.entropy(p, q)  # scales both to sum to 1


@pytest.mark.parametrize("models, oracles", [(7, 11), (32, 32), (1, 3), (2, 2)])
def test_against_numpys_histograms(models, oracles):
    ours = np.exp(normal(models, 60, seed=1)) * 5
    theirs = np.exp(normal(oracles, 60, seed=2)) * 4
    expected = [by_definition(ours[:, n], theirs[:, n]) for n in range(60)]
    np.testing.assert_allclose(klom(ours, theirs), expected, rtol=1e-9, atol=1e-12)


def test_a_population_is_at_no_distance_from_itself_in_whatever_order():
    margin = normal(50, 300) * 10
    assert (klom(margin, margin) == 0).all()
    np.testing.assert_allclose(klom(margin, np.random.default_rng(3).permutation(margin)), 0, atol=1e-12)


def test_disjoint_supports_by_hand():
    # Bins of 5 from 0 to 100: the models share 3 : 1 over two of them, each with q floored at 1e-5, and
    # q sums to 1 + 2e-5.
    ours, theirs = np.array([[100.0], [100.0], [97.0], [90.0]]), np.zeros((6, 1))
    entropy = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    expected = np.log(1e5) - entropy + np.log(1 + 2e-5)
    assert 10.5 < expected < 11.5
    assert klom(ours, theirs)[0] == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(klom(ours[:3], theirs), np.log(1e5) + np.log1p(1e-5), rtol=1e-12)  # one bin


def test_far_gaussians_are_at_ten_and_a_half_or_more():
    found = klom(normal(64, 500, seed=1) * 0.1 + 50, normal(64, 500, seed=2) * 0.1)
    assert (found > 10.5).all() and (found < np.log(1e5) + 1e-4).all()


def test_the_null_of_a_hundred_models():
    found = [klom(normal(100, 500, seed=seed), normal(100, 500, seed=100 + seed)) for seed in range(20)]
    # About 0.34 and 0.65 in print, from code that loses the maximum, a margin in 200; all of them give 0.352
    # and 0.68, with standard errors over the seeds of 0.002 and 0.005.
    assert np.mean([found_N.mean() for found_N in found]) == pytest.approx(0.352, abs=0.006)
    assert np.mean([np.quantile(found_N, 0.95) for found_N in found]) == pytest.approx(0.68, abs=0.02)


def test_the_maximum_belongs_to_the_last_bin():
    # 1.0 and 0.96 share the last of 20 bins over [0, 1]; a bin of its own would make this log(1e5).
    ours, theirs = np.ones((4, 1)), np.array([[0.0], [0.96], [0.97], [0.98]])
    assert klom(ours, theirs)[0] == pytest.approx(np.log(4 / 3), rel=1e-12)


def test_margins_are_clipped():
    far = np.array([[150.0, -1e6], [3000.0, -101.0]])
    assert (klom(far, np.array([[100.0, -100.0]])) == 0).all()
    assert (klom(far, np.array([[99.0, -99.0]])) > 11).all()
    assert (klom(far, np.array([[99.0, -99.0]]), clip=50) == 0).all()


def test_blocks_of_examples_and_their_order_make_no_difference():
    ours, theirs = normal(3, EXAMPLES_AT_ONCE + 7, seed=1), normal(4, EXAMPLES_AT_ONCE + 7, seed=2)
    whole = klom(ours, theirs)
    order = np.random.default_rng(0).permutation(len(whole))
    assert (klom(ours[:, order], theirs[:, order]) == whole[order]).all()
    assert klom(ours[:, -1:], theirs[:, -1:])[0] == whole[-1]
    assert (klom(ours[::-1], theirs[[2, 0, 3, 1]]) == whole).all()


def test_constant_margins():
    assert klom(np.full((5, 2), 3.0), np.full((4, 2), 3.0)).tolist() == [0, 0]
    # All models in one of the oracles' bins: log 1/q there.
    assert klom(np.full((5, 1), 0.5), np.array([[0.0], [0.5], [1.0]]))[0] == pytest.approx(np.log(3))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from([1e-30, 1.0, 1e3]))
@settings(max_examples=60, deadline=None)
def test_never_negative_nor_above_the_floors_logarithm(models, oracles, seed, scale):
    rng = np.random.default_rng(seed)
    ours, theirs = (rng.integers(-5, 6, (n, 8)) * scale for n in (models, oracles))
    found = klom(ours, theirs)
    assert (found >= 0).all() and (found <= np.log(1e5) + 1e-3).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_margin_that_is_not_finite_is_named(value):
    wrong = normal(3, 4)
    wrong[2, 1] = value
    with pytest.raises(
        DataError, match=rf"klom: 1 of 12 margins of the oracles is not finite, first {value}"
    ):
        klom(normal(2, 4), wrong)


def test_what_cannot_be_compared():
    with pytest.raises(DataError, match=r"shapes \(2, 4\) and \(2, 5\)"):
        klom(normal(2, 4), normal(2, 5))
    for wrong in ({"bins": 0}, {"clip": 0}, {"floor": 0}, {"floor": 1}):
        with pytest.raises(UsageError, match="klom: got bins"):
            klom(normal(2, 4), normal(2, 4), **wrong)
