import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from rumfast.errors import DataError, UsageError
from rumfast.evaluation.rmia import rmia
from rumfast.evaluation.roc import auc, tpr_at


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def by_definition(margin_F, margin_Z, oracle_KF, oracle_KZ, left_out, gamma):
    """One target's scores, pair by pair."""
    kept_KF, kept_KZ = np.delete(oracle_KF, left_out, 0), np.delete(oracle_KZ, left_out, 0)
    ratio_F = expit(margin_F) / expit(kept_KF).mean(0)
    ratio_Z = expit(margin_Z) / expit(kept_KZ).mean(0)
    shares = [np.mean([x / z >= gamma for z in ratio_Z]) for x in ratio_F]
    # Beyond all, the greatest γ that leaves the share at 1 is min ratio(x)/ratio(z).
    most = [min(x / z for z in ratio_Z) for x in ratio_F]
    return [2 - gamma / top if share == 1 else share for share, top in zip(shares, most, strict=True)]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("models, oracles", [(3, 4), (5, 2)])
def test_against_the_definition(models, oracles, gamma):
    ours, theirs = normal(models, 6, seed=1) * 3, normal(oracles, 6, seed=2) * 3
    ours_z, theirs_z = normal(models, 9, seed=3) * 3, normal(oracles, 9, seed=4) * 3
    found = rmia(ours, theirs, ours_z, theirs_z, gamma=gamma)
    members = [by_definition(ours[i], ours_z[i], theirs, theirs_z, i % oracles, gamma) for i in range(models)]
    non_members = [by_definition(theirs[i], theirs_z[i], theirs, theirs_z, i, gamma) for i in range(oracles)]
    np.testing.assert_allclose(found.member_P, np.ravel(members), rtol=1e-12)
    np.testing.assert_allclose(found.non_member_Q, np.ravel(non_members), rtol=1e-12)


@pytest.mark.parametrize("shift", [0.15, 0.3, -0.3])
def test_gaussian_margins_against_the_closed_form(shift):
    # Far below 0, sigmoid(m) = exp(m): log ratios are N(shift, s²) for members and N(0, s²) else, but for a
    # constant, around every example's own level. The score is a monotone function of the log ratio, so that
    # the AUC is Φ(shift/(s√2)); the mean over K − 1 oracles adds (exp(s²) − 1)/(K − 1) to s². 64 · 400 scores
    # of each kind have a standard error of 0.0026.
    s, k = 0.3, 64
    level, level_z = -20 + 3 * normal(400, seed=9), -20 + 3 * normal(1000, seed=8)
    ours, theirs = level + shift + s * normal(k, 400, seed=1), level + s * normal(k, 400, seed=2)
    ours_z, theirs_z = level_z + s * normal(k, 1000, seed=3), level_z + s * normal(k, 1000, seed=4)
    spread = np.sqrt(s**2 + np.expm1(s**2) / (k - 1))
    expected = stats.norm.cdf(shift / (spread * np.sqrt(2)))
    assert auc(rmia(ours, theirs, ours_z, theirs_z)) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("models", [2, 4, 32])
def test_oracles_against_oracles_are_even(models):
    def margins(seed):
        return 1.5 * normal(models, 500, seed=seed) - 1, 1.5 * normal(models, 800, seed=seed + 1) + 3

    values = []
    for seed in range(0, 40, 4):
        (ours, ours_z), (theirs, theirs_z) = margins(seed), margins(seed + 2)
        values.append(auc(rmia(ours, theirs, ours_z, theirs_z)))
    assert np.mean(values) == pytest.approx(0.5, abs=0.02)


def test_the_mean_without_a_target_survives_one_that_dwarfs_the_others():
    # Without the first oracle x has Pr(x) = e^−60, and z e^−59; the sum of all less the first would be 0.
    x, z = np.array([[40.0], [-60.0], [-60.0]]), np.array([[40.0], [-59.0], [-59.0]])
    scores = [rmia(x, x, z, z, gamma=np.exp(power)).non_member_Q[0] for power in (0, 0.9, 1.1)]
    assert scores == pytest.approx([2 - np.exp(-1), 2 - np.exp(-0.1), 0], rel=1e-9)


def test_beyond_all_test_examples_by_hand():
    # Probabilities 0.8 and 0.9 where oracles have 0.2 and 0.1: ratios 4 and 9, of the test example 1.
    ours, theirs = logit([[0.8, 0.9]] * 2), logit([[0.2, 0.1]] * 2)
    even = logit([[0.5]] * 2)
    found = rmia(ours, theirs, even, even)
    np.testing.assert_allclose(found.member_P, [2 - 1 / 4, 2 - 1 / 9] * 2)
    np.testing.assert_allclose(found.non_member_Q, 1)
    np.testing.assert_allclose(rmia(ours, theirs, even, even, gamma=5).member_P, [0, 2 - 5 / 9] * 2)


def test_memorized_examples_are_found_at_few_false_positives():
    # Oracles get them wrong, one more surely than the other, and test examples right: far more than 1 % of
    # the oracles' ratios are beyond those of all test examples, so that shares alone would find nothing.
    theirs, ours = 1.5 * normal(32, 100, seed=1) - 3, normal(32, 100, seed=2) + 5
    theirs_z, ours_z = 0.5 * normal(32, 200, seed=3) + 3, 0.5 * normal(32, 200, seed=4) + 3
    attack = rmia(ours, theirs, ours_z, theirs_z)
    assert (attack.non_member_Q >= 1).mean() > 0.05
    assert tpr_at(attack, 0.01) > 0.3


def test_certain_margins_and_ties_stay_finite():
    far = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]])
    found = rmia(far, -far, far, -far)
    assert np.isfinite(np.concatenate(found)).all()
    assert np.isfinite(np.concatenate(rmia(far, 0 * far - 1e4, far, 0 * far - 1e4))).all()
    even = rmia(*(np.ones((2, 3)),) * 4)
    assert (np.concatenate(even) == 1).all() and auc(even) == 0.5  # ratio(x)/ratio(z) = 1 counts


def test_order_of_examples():
    sets = [normal(3, n, seed=n) for n in (40, 40, 70, 70)]
    found = rmia(*sets)
    x, z = np.random.default_rng(0).permutation(40), np.random.default_rng(1).permutation(70)
    moved = rmia(sets[0][:, x], sets[1][:, x], sets[2][:, z], sets[3][:, z])
    assert (moved.member_P.reshape(3, 40) == found.member_P.reshape(3, 40)[:, x]).all()
    assert (moved.non_member_Q.reshape(3, 40) == found.non_member_Q.reshape(3, 40)[:, x]).all()


@pytest.mark.parametrize("place, who", [(0, "forget"), (1, "forget"), (2, "test"), (3, "test")])
def test_a_margin_that_is_not_finite_is_named(place, who):
    sets = [normal(3, 4) for _ in range(4)]
    sets[place][0, 3] = np.nan
    with pytest.raises(DataError, match=rf"rmia on the {who} set: 1 of 12 margins .* first nan at \[0, 3\]"):
        rmia(*sets)


def test_what_cannot_be_compared():
    x, z = normal(3, 4), normal(3, 5)
    with pytest.raises(DataError, match=r"got \(3, 3\) models and oracles .* and \(2, 3\) on the test set"):
        rmia(x, x, z[:2], z)
    with pytest.raises(DataError, match="at least 2 oracles"):
        rmia(x, x[:1], z, z[:1])
    for gamma in (0, -1, np.nan):
        with pytest.raises(UsageError, match="rmia: got a gamma of"):
            rmia(x, x, z, z, gamma=gamma)
