import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from rumfast.errors import DataError, UsageError
from rumfast.evaluation.roc import Attack, auc, curve, tpr_at


def attack(members=300, non_members=200, shift=0.7, decimals=1, seed=0):
    rng = np.random.default_rng(seed)
    return Attack(
        (rng.normal(size=members) + shift).round(decimals), rng.normal(size=non_members).round(decimals)
    )


def labelled(attack):
    return np.repeat([1, 0], [len(attack[0]), len(attack[1])]), np.concatenate(attack)


@pytest.mark.parametrize("decimals", [0, 1, 9])
@pytest.mark.parametrize("shift", [-2, 0, 0.7])
def test_auc_against_sklearn(decimals, shift):
    found = attack(shift=shift, decimals=decimals)
    assert auc(found) == pytest.approx(roc_auc_score(*labelled(found)), rel=1e-12)


@pytest.mark.parametrize("decimals", [0, 1, 9])
@pytest.mark.parametrize("fpr", [0.0, 0.001, 0.005, 0.01, 0.37, 0.999, 1.0])
@pytest.mark.parametrize("shift", [-1, 0.7])
def test_tpr_against_sklearn(decimals, fpr, shift):
    found = attack(shift=shift, decimals=decimals)
    label, score = labelled(found)
    sides = (roc_curve(label, sign * score, drop_intermediate=False) for sign in (1, -1))
    assert tpr_at(found, fpr) == max(true[false <= fpr + 1e-12].max() for false, true, _ in sides)


def test_a_rate_means_the_count_next_to_it():
    # 0.29 · 100 is 28.999… in binary: still 29 of the non-members may be accused.
    scores = Attack(np.arange(100) + 0.5, np.arange(100.0))
    assert [tpr_at(scores, fpr) for fpr in (0.28, 0.29, 0.3)] == [0.29, 0.30, 0.31]


def test_scores_that_say_nothing():
    equal = Attack(np.zeros(4), np.zeros(7))
    assert auc(equal) == 0.5
    assert [tpr_at(equal, fpr) for fpr in (0, 0.5, 1)] == [0, 0, 1]


def test_separated_scores_and_the_order_of_scores():
    apart = Attack(np.array([3.0, 2.0]), np.array([1.0, 0.0, -np.inf]))
    assert auc(apart) == 1 and tpr_at(apart, 0) == 1
    assert auc(Attack(*apart[::-1])) == 0 and tpr_at(Attack(*apart[::-1]), 0.4) == 1  # from below
    assert tpr_at(Attack(np.array([-np.inf]), np.zeros(2)), 1) == 1  # all accused, all found
    found = attack()
    turned = Attack(found.member_P[::-1], np.random.default_rng(1).permutation(found.non_member_Q))
    assert (auc(turned), tpr_at(turned, 0.01)) == (auc(found), tpr_at(found, 0.01))


def test_members_below_are_found_as_members_above_are():
    # At most one of four non-members may be accused: above 4 lie no members, below 2 half of them.
    below = Attack(np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0, 5.0]))
    assert tpr_at(below, 0.25) == 0.5
    opposite = Attack(*(-scores for scores in below))
    assert tpr_at(opposite, 0.25) == 0.5 and auc(opposite) == 1 - auc(below)


def test_curve_rises_from_its_value_at_zero_to_one():
    found = attack(decimals=9)
    fpr_T, tpr_T = curve(found)
    assert fpr_T[0] == 0 and fpr_T[-1] == tpr_T[-1] == 1 and len(fpr_T) == len(tpr_T)
    assert (np.diff(fpr_T) > 0).all() and (np.diff(tpr_T) >= 0).all()
    assert tpr_T.tolist() == [tpr_at(found, fpr) for fpr in fpr_T]
    assert np.isclose(fpr_T, 0.01).sum() == np.isclose(fpr_T, 0.001).sum() == 1


def test_a_curve_is_the_callers_own():
    curve(attack()).fpr_T[:] = 7
    assert curve(attack()).fpr_T.max() == 1


SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=12).map(np.array)


@given(SCORES, SCORES)
def test_exchanging_members_and_non_members_turns_the_auc_round(ours, theirs):
    assert auc(Attack(ours, theirs)) + auc(Attack(theirs, ours)) == pytest.approx(1, abs=1e-15)


@given(SCORES, SCORES, st.sampled_from([0, 0.1, 0.5, 0.9, 1]))
def test_an_attack_and_its_opposite_find_the_same_share(ours, theirs, fpr):
    found, opposite = Attack(ours, theirs), Attack(-ours, -theirs)
    assert tpr_at(found, fpr) == tpr_at(opposite, fpr)
    np.testing.assert_array_equal(curve(found).tpr_T, curve(opposite).tpr_T)


@pytest.mark.parametrize("wrong", [np.empty(0), np.array([1.0, np.nan]), np.zeros((2, 2))])
def test_scores_that_are_none(wrong):
    for function in (auc, curve):
        with pytest.raises(DataError, match="scores of non-members must be a non-empty vector"):
            function(Attack(np.ones(2), wrong))
    with pytest.raises(DataError, match="scores of members must be a non-empty vector"):
        tpr_at(Attack(wrong, np.ones(2)), 0.5)


@pytest.mark.parametrize("fpr", [-0.1, 1.1, np.nan])
def test_a_rate_that_is_none(fpr):
    with pytest.raises(UsageError, match="tpr_at: got a false positive rate of"):
        tpr_at(attack(), fpr)
