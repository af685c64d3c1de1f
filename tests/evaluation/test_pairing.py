"""The population examples of RMIA: test examples of kept classes, and one a for all."""

import numpy as np
import pytest
from populations import population

from rumfast.evaluation.pairing import Pairing, offline_a_of


def without_retained(outputs, classes):
    """The same models, whose retain set has none of these classes."""
    retain = outputs.retain
    kept_R = ~np.isin(retain.label_N, classes)
    margin_MR, prediction_MR = retain.margin_MN[:, kept_R], retain.prediction_MN[:, kept_R]
    return outputs._replace(retain=type(retain)(margin_MR, prediction_MR, retain.label_N[kept_R]))


def with_test_margins(outputs, which_N, margin):
    margin_MN = outputs.test.margin_MN.copy()
    margin_MN[:, which_N] = margin
    return outputs._replace(test=outputs.test._replace(margin_MN=margin_MN))


@pytest.fixture
def both():
    return population(8, forget=2.0, seed=1), population(8, seed=2)


def test_test_examples_of_a_forgotten_class_are_compared_with_nothing(both):
    both = [without_retained(outputs, [2]) for outputs in both]
    forgotten_N = both[0].test.label_N == 2
    moved = [with_test_margins(outputs, forgotten_N, -9.0) for outputs in both]
    found, again = (Pairing(*outputs, 0.5).rmia for outputs in (both, moved))
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(again))
    assert offline_a_of(both[1]) == offline_a_of(moved[1])
    kept = Pairing(*(with_test_margins(outputs, ~forgotten_N, -9.0) for outputs in both), 0.5).rmia
    assert not np.array_equal(kept.member_P, found.member_P)


def test_where_no_class_is_kept_all_test_examples_serve(both):
    kept = Pairing(*both, 0.5).rmia
    none_kept = [without_retained(outputs, [0, 1, 2]) for outputs in both]
    np.testing.assert_array_equal(Pairing(*none_kept, 0.5).rmia.member_P, kept.member_P)


def test_the_attack_takes_the_a_it_is_given(both):
    scores = [Pairing(*both, a).rmia.member_P for a in (0.0, 1.0)]
    assert not np.array_equal(*scores)
