import numpy as np
import pytest

from rumfast import memorization_scores
from rumfast.errors import DataError
from rumfast.scores import MemberTotals, worst_standard_error

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


# ---- totals, member by member ------------------------------------------------------------------------------


def members_of(seed, members=30, n=11):
    rng = np.random.default_rng(seed)
    include_MN, correct_MN = rng.random((members, n)) < 0.7, rng.random((members, n)) < 0.5
    return include_MN, correct_MN, rng.normal(500, 0.01, (members, n)).astype(np.float32)


def totals_of(include_MN, correct_MN, margin_MN):
    totals = MemberTotals(include_MN.shape[1])
    for row in zip(include_MN, correct_MN, margin_MN, strict=True):
        totals.add(*row)
    return totals


def assert_margins(found, include_MN, margin_MN):
    """Against two passes in float64; margins are large and alike, where sums of squares would cancel."""
    for side, keep_MN in (("in", include_MN), ("out", ~include_MN)):
        kept = np.ma.array(margin_MN.astype(np.float64), mask=~keep_MN)
        mean_N, variance_N = getattr(found, f"mean_{side}_N"), getattr(found, f"variance_{side}_N")
        np.testing.assert_allclose(mean_N, kept.mean(0).filled(np.nan), rtol=1e-13)
        expected_N = np.ma.array(kept.var(0, ddof=1), mask=keep_MN.sum(0) < 2).filled(np.nan)
        np.testing.assert_allclose(variance_N, expected_N, rtol=1e-9)
    np.testing.assert_array_equal(found.included_N, include_MN.sum(0))


def test_totals_give_what_the_arrays_give():
    include_MN, correct_MN, margin_MN = members_of(0)
    include_MN[:, 0], include_MN[:, 1], include_MN[1:, 2], include_MN[0, 2] = True, False, False, True
    totals = totals_of(include_MN, correct_MN, margin_MN)
    for streamed, stacked in zip(
        totals.memorization(), memorization_scores(correct_MN, include_MN), strict=True
    ):
        np.testing.assert_array_equal(streamed, stacked)
    assert_margins(totals.margins(), include_MN, margin_MN)
    assert np.isnan(totals.margins().variance_in_N[2]) and np.isfinite(totals.margins().mean_in_N[2])


@pytest.mark.parametrize("cut", [0, 1, 13, 30])
def test_totals_of_parts_add_up(cut):
    arrays = members_of(1)
    both = totals_of(*(array[:cut] for array in arrays)) + totals_of(*(array[cut:] for array in arrays))
    assert both.members == 30
    for found, expected in zip(both.memorization(), totals_of(*arrays).memorization(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert_margins(both.margins(), arrays[0], arrays[2])


def test_margin_valued_scores_and_their_error():
    rng = np.random.default_rng(2)
    include_MN = rng.random((4000, 3)) < 0.7
    margin_MN = rng.normal(0, 2, (4000, 3)) + include_MN * np.array([0.0, 1.0, 5.0])
    found = totals_of(include_MN, margin_MN > 0, margin_MN).margin_memorization()
    np.testing.assert_allclose(found.score_N, [0, 1, 5], atol=0.3)
    np.testing.assert_allclose(found.standard_error_N, 2 * np.sqrt(1 / 2800 + 1 / 1200), rtol=0.1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"include_N": np.ones(3)}, "include_N: expected 3 booleans, got float64"),
        ({"correct_N": np.ones(2, bool)}, "correct_N: expected 3 booleans"),
        ({"margin_N": np.ones(3, int)}, "margin_N: expected 3 floats, got int64"),
        ({"margin_N": np.ones(4)}, "margin_N: expected 3 floats"),
    ],
)
def test_a_member_of_other_examples_is_refused_and_not_counted(change, message):
    member = {"include_N": np.ones(3, bool), "correct_N": np.ones(3, bool), "margin_N": np.ones(3)}
    totals = MemberTotals(3)
    with pytest.raises(DataError, match=message):
        totals.add(**member | change)
    assert totals.members == 0 and not totals.memorization().included_N.any()


def test_the_worst_error_is_reached_at_even_odds():
    rng = np.random.default_rng(4)
    include_MN = rng.random((400, 2000)) < 0.7
    found = memorization_scores(rng.random((400, 2000)) < 0.5, include_MN)
    assert np.std(found.score_N) == pytest.approx(worst_standard_error(400, 0.7), rel=0.05)
    assert np.median(found.standard_error_N) == pytest.approx(worst_standard_error(400, 0.7), rel=0.05)
