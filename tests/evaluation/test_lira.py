import numpy as np
import pytest
from scipy import stats

from rumfast.errors import DataError
from rumfast.evaluation.lira import LEAST_DEVIATION, u_lira
from rumfast.evaluation.roc import auc


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def refitted(margin, others, left_out):
    """log N(margin) under a fit to all others but one."""
    kept = np.delete(others, left_out)
    return stats.norm.logpdf(margin, kept.mean(), max(kept.std(), LEAST_DEVIATION))


@pytest.mark.parametrize("models, oracles", [(5, 5), (3, 7), (8, 2)])
def test_against_fitting_anew_without_each_target(models, oracles):
    ours, theirs = normal(models, 4, seed=1) * 3 + 40, normal(oracles, 4, seed=2)
    found = u_lira(ours, theirs)
    members = [
        [refitted(m, ours[:, f], i) - refitted(m, theirs[:, f], i % oracles) for f, m in enumerate(row)]
        for i, row in enumerate(ours)
    ]
    non_members = [
        [refitted(m, ours[:, f], i % models) - refitted(m, theirs[:, f], i) for f, m in enumerate(row)]
        for i, row in enumerate(theirs)
    ]
    np.testing.assert_allclose(found.member_P, np.ravel(members), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.non_member_Q, np.ravel(non_members), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shift", [0.5, 1.0, -2.0])
def test_shifted_gaussians_against_the_closed_form(shift):
    # The ratio grows with m·shift, so that the AUC is P(N(shift, 1) > N(0, 1)) = Φ(|shift|/√2), whatever the
    # examples' own levels. Fitting to 200 models costs about 0.002; 40 000 scores of each kind have a
    # standard error of 0.002.
    level = normal(200, seed=3) * 20
    found = auc(u_lira(level + shift + normal(200, 200, seed=1), level + normal(200, 200, seed=2)))
    assert found == pytest.approx(stats.norm.cdf(abs(shift) / np.sqrt(2)), abs=0.008)


@pytest.mark.parametrize("spread", [0.25, 2.0])
def test_gaussians_of_another_spread_against_the_closed_form(spread):
    # Equal means: the ratio is monotone in |m|, and P(|N(0, s²)| > |N(0, 1)|) = (2/π)·arctan s. No threshold
    # on the margin itself would tell these apart.
    found = auc(u_lira(spread * normal(200, 200, seed=1), normal(200, 200, seed=2)))
    assert found == pytest.approx(2 / np.pi * np.arctan(max(spread, 1 / spread)), abs=0.012)


@pytest.mark.parametrize("models", [2, 4, 8, 32])
def test_oracles_against_oracles_are_even(models):
    # Without leaving a model out of the other fit, too, this would be 0.01 with 2 models and 0.43 with 4.
    values = [auc(u_lira(normal(models, 1000, seed=s), normal(models, 1000, seed=s + 50))) for s in range(6)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.015)


def test_order_of_examples_and_of_models():
    ours, theirs = normal(16, 300, seed=1) + 1, normal(16, 300, seed=2)
    found = u_lira(ours, theirs)
    examples = np.random.default_rng(0).permutation(300)
    moved = u_lira(ours[:, examples], theirs[:, examples])
    np.testing.assert_allclose(moved.member_P.reshape(16, 300), found.member_P.reshape(16, 300)[:, examples])
    # Both populations alike: the scores are the same ones; one alone: other pairs, much the same AUC.
    turned = u_lira(ours[::-1], theirs[::-1])
    np.testing.assert_allclose(
        np.sort(turned.non_member_Q), np.sort(found.non_member_Q), rtol=1e-9, atol=1e-9
    )
    assert auc(u_lira(ours[::-1], theirs)) == pytest.approx(auc(found), abs=0.005)


def test_constant_and_huge_margins_stay_finite():
    same, apart = (
        u_lira(np.ones((3, 4)), np.ones((2, 4))),
        u_lira(np.full((2, 1), 1e4), np.full((2, 1), -1e4)),
    )
    assert not np.concatenate(same).any() and auc(same) == 0.5
    assert np.isfinite(np.concatenate(apart)).all() and auc(apart) == 1
    # Unlearned models at one point that oracles spread around: caught by their lack of spread.
    assert auc(u_lira(np.full((8, 50), 0.3), normal(8, 50))) > 0.99


def test_float32_is_scored_like_float64():
    ours, theirs = normal(4, 9, seed=1).astype(np.float32) + 60, normal(4, 9, seed=2).astype(np.float32) + 60
    double = u_lira(ours.astype(np.float64), theirs.astype(np.float64))
    assert (u_lira(ours, theirs).member_P == double.member_P).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_margin_that_is_not_finite_is_named(value):
    wrong = normal(3, 4)
    wrong[1, :2] = value
    with pytest.raises(
        DataError, match=rf"u_lira: 2 of 12 margins of the audited models are .* {value} at \[1, 0\]"
    ):
        u_lira(wrong, normal(3, 4))


def test_one_model_has_no_spread():
    with pytest.raises(DataError, match="u_lira: got 1 oracles, expected at least 2"):
        u_lira(normal(3, 4), normal(1, 4))
