import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from rumfast.errors import DataError, UsageError
from rumfast.evaluation.rmia import OFFLINE_A, choose_offline_a, rmia
from rumfast.evaluation.roc import Attack, auc, tpr_at


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def by_definition(margin_F, margin_Z, oracle_KF, oracle_KZ, left_out, gamma, a):
    """One target's scores, pair by pair."""

    def ratios(margin_N, oracle_KN):
        out_N = expit(np.delete(oracle_KN, left_out, 0)).mean(0)
        in_N = a * out_N + 1 - a
        return expit(margin_N) / ((in_N + out_N) / 2)

    def score(x):
        share = np.mean(x / ratio_Z >= gamma)
        # Beyond all, the greatest γ that leaves the share at 1 is min ratio(x)/ratio(z); below all, the least
        # that leaves it at 0 is the maximum.
        return {1: 2 - gamma / min(x / ratio_Z), 0: max(x / ratio_Z) / gamma - 1}.get(share, share)

    ratio_Z = ratios(margin_Z, oracle_KZ)
    return [score(x) for x in ratios(margin_F, oracle_KF)]


@pytest.mark.parametrize("gamma, a", [(0.5, 1.0), (1.0, 0.3), (1.0, 1.0), (2.0, 0.0)])
@pytest.mark.parametrize("models, oracles", [(3, 4), (5, 2)])
def test_against_the_definition(models, oracles, gamma, a):
    ours, theirs = normal(models, 6, seed=1) * 3, normal(oracles, 6, seed=2) * 3
    ours_z, theirs_z = normal(models, 9, seed=3) * 3, normal(oracles, 9, seed=4) * 3
    found = rmia(ours, theirs, ours_z, theirs_z, gamma=gamma, offline_a=a)
    sets = theirs, theirs_z
    members = [by_definition(ours[i], ours_z[i], *sets, i % oracles, gamma, a) for i in range(models)]
    non_members = [by_definition(theirs[i], theirs_z[i], *sets, i, gamma, a) for i in range(oracles)]
    np.testing.assert_allclose(found.member_P, np.ravel(members), atol=1e-12)
    np.testing.assert_allclose(found.non_member_Q, np.ravel(non_members), atol=1e-12)


def test_a_by_hand():
    # A hard example, to which oracles give 0.01 and the target 0.02, an easy one, 0.9 and 0.98, and a test
    # example, 0.5 and 0.5. At a = 1 the hard one's ratio is 2, that of the easy one 0.98/0.9; at 0.3 they are
    # 0.02/0.3565 and 0.98/0.935, and the test example's is 0.5/0.675.
    forget, oracles, even = logit([[0.02, 0.98]] * 2), logit([[0.01, 0.9]] * 2), logit([[0.5]] * 2)
    for a, scores in (
        (1.0, [2 - 1 / 2, 2 - 0.9 / 0.98]),
        (0.3, [0.02 / 0.3565 / (0.5 / 0.675) - 1, 2 - 0.5 / 0.675 / (0.98 / 0.935)]),
    ):
        found = rmia(forget, oracles, even, even, offline_a=a)
        np.testing.assert_allclose(found.member_P, scores * 2, rtol=1e-12)


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
    assert scores == pytest.approx([2 - np.exp(-1), 2 - np.exp(-0.1), np.exp(-0.1) - 1], rel=1e-9)


def test_beyond_all_test_examples_by_hand():
    # Probabilities 0.8 and 0.9 where oracles have 0.2 and 0.1: ratios 4 and 9, of the test example 1.
    ours, theirs = logit([[0.8, 0.9]] * 2), logit([[0.2, 0.1]] * 2)
    even = logit([[0.5]] * 2)
    found = rmia(ours, theirs, even, even)
    np.testing.assert_allclose(found.member_P, [2 - 1 / 4, 2 - 1 / 9] * 2)
    np.testing.assert_allclose(found.non_member_Q, 1)
    np.testing.assert_allclose(rmia(ours, theirs, even, even, gamma=5).member_P, [4 / 5 - 1, 2 - 5 / 9] * 2)
    np.testing.assert_allclose(rmia(theirs, ours, even, even).member_P, [1 / 4 - 1, 1 / 9 - 1] * 2)


def test_memorized_examples_are_found_at_few_false_positives():
    # Oracles get them wrong, one more surely than the other, and test examples right: far more than 1 % of
    # the oracles' ratios are beyond those of all test examples, so that shares alone would find nothing.
    theirs, ours = 1.5 * normal(32, 100, seed=1) - 3, normal(32, 100, seed=2) + 5
    theirs_z, ours_z = 0.5 * normal(32, 200, seed=3) + 3, 0.5 * normal(32, 200, seed=4) + 3
    attack = rmia(ours, theirs, ours_z, theirs_z)
    assert (attack.non_member_Q >= 1).mean() > 0.05
    assert tpr_at(attack, 0.01) > 0.3


def test_examples_forgotten_beyond_what_retraining_forgets_are_found_at_few_false_positives():
    # Both prevail over no test example, in models that overshot and in some oracles: shares would tie at 0.
    theirs, ours = 1.5 * normal(32, 100, seed=1) - 3, normal(32, 100, seed=2) - 12
    theirs_z, ours_z = 0.5 * normal(32, 200, seed=3) + 3, 0.5 * normal(32, 200, seed=4) + 3
    attack = rmia(ours, theirs, ours_z, theirs_z)
    assert auc(attack) < 0.05 and (attack.non_member_Q < 0).mean() > 0.05
    assert tpr_at(attack, 0.01) > 0.9
    shares = Attack(*(scores.clip(0, 1) for scores in attack))
    assert tpr_at(shares, 0.01) < 0.01


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
    with pytest.raises(DataError, match="choose_offline_a: got 1 oracles"):
        choose_offline_a(x[:1], x[:1], z[:1])
    for a in (-0.1, 1.1, np.nan):
        with pytest.raises(UsageError, match="rmia: got an offline_a of"):
            rmia(x, x, z, z, offline_a=a)
    for gamma in (0, -1, np.nan):
        with pytest.raises(UsageError, match="rmia: got a gamma of"):
            rmia(x, x, z, z, gamma=gamma)


def oracles_like(probability_F, seed=0, spread=0.05):
    """Eight oracles that give each example about its probability."""
    return logit(probability_F) + spread * normal(8, len(probability_F), seed=seed)


def test_a_is_small_where_trained_examples_are_certain_and_1_where_they_stay_as_hard():
    forget, test = np.linspace(0.05, 0.6, 60), np.linspace(0.05, 0.9, 40)
    chosen = {
        name: choose_offline_a(oracles_like(forget), oracles_like(retain, 1), oracles_like(test, 2))
        for name, retain in {"certain": np.full(90, 0.99), "as hard": np.linspace(0.08, 0.9, 90)}.items()
    }
    # What trained examples would gain by a factor of 1.5 shows in Pr(x | θ)/Pr_OUT(x) alone.
    assert chosen == {"certain": 0.0, "as hard": 1.0}


def test_the_chosen_a_is_the_best_for_members_that_are_as_hard_as_retained_examples():
    forget, retain, test = (np.linspace(*ends, 50) for ends in ((0.01, 0.9), (0.5, 0.99), (0.2, 0.99)))
    oracles, oracles_z = oracles_like(forget, 1, 1.5), oracles_like(test, 2, 1.0)
    originals, originals_z = oracles_like(retain, 3, 1.0), oracles_like(test, 4, 1.0)
    value = {a: auc(rmia(originals, oracles, originals_z, oracles_z, offline_a=a)) for a in OFFLINE_A}
    chosen = choose_offline_a(oracles, oracles_like(retain, 5, 1.0), oracles_z)
    assert value[chosen] == pytest.approx(max(value.values()), abs=0.005)
    assert value[chosen] > value[1.0] + 0.01


def test_a_does_not_depend_on_the_order_of_examples():
    sets = normal(5, 30, seed=1) - 1, 2 * normal(5, 50, seed=2) + 2, normal(5, 40, seed=3)
    moved = (each[:, np.random.default_rng(0).permutation(each.shape[1])] for each in sets)
    assert choose_offline_a(*moved) == choose_offline_a(*sets)
