import numpy as np
import pytest

from rumfast.errors import DataError, UsageError
from rumfast.scores import influence, influence_scores, top_influences


def naive(include_MN, correct_MT):
    with np.errstate(invalid="ignore"):
        return np.array(
            [
                [
                    correct_MT[include_MN[:, i], j].sum() / include_MN[:, i].sum()
                    - correct_MT[~include_MN[:, i], j].sum() / (~include_MN[:, i]).sum()
                    for j in range(correct_MT.shape[1])
                ]
                for i in range(include_MN.shape[1])
            ]
        )


@pytest.fixture(params=[influence.CELLS_AT_ONCE, 40, 1], ids=["one block", "blocks", "single cells"])
def cells(request, monkeypatch):
    monkeypatch.setattr(influence, "CELLS_AT_ONCE", request.param)


@pytest.mark.parametrize("members, n, tests", [(23, 17, 9), (2, 1, 1), (300, 7, 5)])
def test_influence_is_the_difference_of_the_means(cells, members, n, tests):
    rng = np.random.default_rng(members)
    include_MN, correct_MT = rng.random((members, n)) < 0.7, rng.random((members, tests)) < 0.5
    include_MN[:, 0] = True  # never left out
    expected_NT = naive(include_MN, correct_MT)
    assert np.isnan(expected_NT[0]).all()
    np.testing.assert_allclose(influence_scores(include_MN, correct_MT), expected_NT, atol=1e-12)


def test_an_example_that_decides_a_test_example_has_influence_one():
    include_MN = np.random.default_rng(0).random((40, 6)) < 0.5
    correct_MT = np.stack([include_MN[:, 4], ~include_MN[:, 2]], axis=1)
    found_NT = influence_scores(include_MN, correct_MT)
    assert found_NT[4, 0] == 1 and found_NT[2, 1] == -1
    assert top_influences(include_MN, correct_MT, 1).id_TK[0].tolist() == [4]


def test_memorization_is_influence_on_oneself():
    from rumfast import memorization_scores

    rng = np.random.default_rng(3)
    include_MN, correct_MN = rng.random((50, 12)) < 0.7, rng.random((50, 12)) < 0.4
    diagonal_N = np.diag(influence_scores(include_MN, correct_MN))
    np.testing.assert_allclose(diagonal_N, memorization_scores(correct_MN, include_MN).score_N, atol=1e-12)


def test_the_top_falls_and_ties_go_to_the_smaller_id(cells):
    rng = np.random.default_rng(1)
    include_MN, correct_MT = rng.random((9, 30)) < 0.7, rng.random((9, 4)) < 0.5  # few members: many ties
    score_NT = influence_scores(include_MN, correct_MT)
    score_NT = np.where(np.isnan(score_NT), -np.inf, score_NT)
    for k in (1, 5, 30):
        found = top_influences(include_MN, correct_MT, k)
        expected_TK = np.lexsort((np.arange(30)[:, None].repeat(4, 1), -score_NT), axis=0)[:k].T
        np.testing.assert_array_equal(found.id_TK, expected_TK)
        filled_TK = np.where(np.isnan(found.score_TK), -np.inf, found.score_TK)
        np.testing.assert_array_equal(filled_TK, np.take_along_axis(score_NT.T, expected_TK, 1))


def test_wrong_arguments_are_named():
    masks = np.ones((4, 3), bool)
    with pytest.raises(DataError, match="correct_MT: got 5 members, expected 4"):
        influence_scores(masks, np.ones((5, 2), bool))
    with pytest.raises(DataError, match="include_MN: expected booleans"):
        influence_scores(masks.astype(int), masks)
    for k in (0, 4):
        with pytest.raises(UsageError, match=f"k: got {k}, expected 1..3"):
            top_influences(masks, masks, k)
