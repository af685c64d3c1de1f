import numpy as np
import pytest

from rumfast import memorization_scores
from rumfast.errors import DataError

T, F = True, False


def test_hand_made():
    include_MN = np.array([[T, T, T, F], [T, T, F, F], [F, T, F, F], [F, T, T, F]])
    correct_MN = np.array([[T, T, T, F], [T, F, T, T], [F, T, F, T], [T, T, F, F]])
    found = memorization_scores(correct_MN, include_MN)
    # Example 0: in 2/2, out 1/2. Example 1: never out. Example 2: in 1/2, out 1/2. Example 3: never in.
    np.testing.assert_array_equal(found.score_N, [0.5, np.nan, 0.0, np.nan])
    assert found.included_N.tolist() == [2, 4, 2, 0] and found.excluded_N.tolist() == [2, 0, 2, 4]
    # p̃ = (k+1)/(n+2): in 3/4, out 2/4; variance p̃(1−p̃)/n.
    expected = np.sqrt(0.75 * 0.25 / 2 + 0.5 * 0.5 / 2)
    np.testing.assert_allclose(found.standard_error_N, [expected, np.nan, np.sqrt(0.25), np.nan])


def test_extremes_are_reached_and_still_carry_an_error():
    include_MN = np.array([[T, T, F], [T, T, F], [F, F, T], [F, F, T]])
    found = memorization_scores(include_MN & np.array([T, F, T]), include_MN)
    assert found.score_N.tolist() == [1.0, 0.0, 1.0]
    inverse = memorization_scores(~include_MN, include_MN)
    assert inverse.score_N.tolist() == [-1.0, -1.0, -1.0]
    assert (found.standard_error_N > 0.2).all()


def test_order_of_members_and_examples_does_not_matter():
    rng = np.random.default_rng(0)
    correct_MN, include_MN = rng.random((2, 31, 17)) < 0.6
    found = memorization_scores(correct_MN, include_MN)
    rows, columns = rng.permutation(31), rng.permutation(17)
    shuffled = memorization_scores(correct_MN[rows][:, columns], include_MN[rows][:, columns])
    for before, after in zip(found, shuffled, strict=True):
        np.testing.assert_array_equal(before[columns], after)


@pytest.mark.parametrize("inside, outside", [(0.99, 0.2), (0.7, 0.7), (0.95, 0.9), (0.5, 0.05)])
def test_the_standard_error_is_that_of_repeated_sweeps(inside, outside):
    rng = np.random.default_rng(1)
    members, sweeps = 400, 4000  # every column is one sweep's estimate of the same example
    include = rng.random((members, sweeps)) < 0.7
    correct = rng.random((members, sweeps)) < np.where(include, inside, outside)
    found = memorization_scores(correct, include)
    assert found.score_N.mean() == pytest.approx(inside - outside, abs=0.003)
    assert found.standard_error_N.mean() == pytest.approx(found.score_N.std(), rel=0.06)


def test_worst_case_error_at_400_members_is_the_published_one():
    include = np.arange(400)[:, None] < 280
    correct = np.arange(400)[:, None] % 2 == 0
    assert memorization_scores(correct, include).standard_error_N[0] == pytest.approx(0.055, abs=5e-4)


def test_no_members_at_all_is_undefined():
    found = memorization_scores(np.zeros((0, 3), bool), np.zeros((0, 3), bool))
    assert np.isnan(found.score_N).all() and found.included_N.tolist() == [0, 0, 0]


BOOLEAN = np.ones((4, 3), bool)


@pytest.mark.parametrize(
    "correct_MN, include_MN, message",
    [
        (BOOLEAN.astype(float), BOOLEAN, r"correct_MN: expected booleans \[M, N\], got float64 \(4, 3\)"),
        (BOOLEAN, BOOLEAN.astype(np.uint8), "include_MN: expected booleans .* got uint8"),
        (BOOLEAN[0], BOOLEAN[0], r"got bool \(3,\)"),
        (BOOLEAN, BOOLEAN[:, :2], r"include_MN: got shape \(4, 2\), expected correct_MN's \(4, 3\)"),
    ],
)
def test_errors(correct_MN, include_MN, message):
    with pytest.raises(DataError, match=message):
        memorization_scores(correct_MN, include_MN)
