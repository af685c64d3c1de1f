import numpy as np
import pytest

from rumfast.errors import DataError
from rumfast.surrogates import draw_surrogate, other_classes

SCORE_N = np.random.default_rng(0).random(1000)
POOL = np.arange(1000)


@pytest.mark.parametrize("level", [slice(0, 100), slice(450, 550), slice(800, 900)])
def test_a_surrogate_has_the_same_profile_and_no_forgotten_example(level):
    forget = np.argsort(SCORE_N)[level]
    found = draw_surrogate(forget, SCORE_N[:, None], POOL, seed=1)
    assert len(found) == 100 == len(np.unique(found)) and not np.intersect1d(found, forget).size
    expected = np.quantile(SCORE_N[forget], [0.1, 0.5, 0.9])
    # It must take what lies beside the range, and so is a little wider or beside it.
    assert np.quantile(SCORE_N[found], [0.1, 0.5, 0.9]) == pytest.approx(expected, abs=0.12)


def test_a_mixed_set_is_imitated_in_each_of_its_parts():
    order = np.argsort(SCORE_N)
    forget = np.concatenate([order[:30], order[485:515], order[-30:]])
    found = np.sort(SCORE_N[draw_surrogate(forget, SCORE_N[:, None], POOL, seed=2)])
    assert found[:30].max() < 0.2 and found[-30:].min() > 0.8
    assert 0.3 < found[30] and found[-31] < 0.7


def test_several_scores_count_together():
    score_N2 = np.random.default_rng(1).random((2000, 2))
    forget = np.flatnonzero((score_N2 > 0.8).all(1))[:40]
    found = draw_surrogate(forget, score_N2, np.arange(2000), seed=0)
    assert (score_N2[found].mean(0) > 0.75).all()


def test_seeds_give_other_surrogates_and_one_seed_the_same():
    forget = np.argsort(SCORE_N)[400:450]
    draws = [draw_surrogate(forget, SCORE_N[:, None], POOL, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(draws[0], draws[1])
    assert len(np.intersect1d(draws[0], draws[2])) < 45


def test_equal_scores_can_be_drawn_and_missing_ones_are_not():
    assert len(draw_surrogate(np.arange(10), np.ones((30, 1)), np.arange(30), seed=0)) == 10
    score_N1 = np.where(np.arange(30) < 8, np.nan, 1.0)[:, None]
    assert draw_surrogate(np.arange(4, 15), score_N1, np.arange(30), seed=0).min() >= 15
    with pytest.raises(DataError, match="11 examples to forget and 4 others"):
        draw_surrogate(np.arange(4, 15), score_N1, np.arange(19), seed=0)


def test_only_the_pool_is_drawn_from():
    pool = np.arange(500, 1000)
    found = draw_surrogate(np.arange(600, 700), SCORE_N[:, None], pool, seed=0)
    assert found.min() >= 500 and not np.isin(found, np.arange(600, 700)).any()


def test_more_than_half_of_the_pool_is_refused():
    with pytest.raises(DataError, match="501 examples to forget and 499 others"):
        draw_surrogate(np.arange(501), SCORE_N[:, None], POOL, seed=0)


def test_a_class_is_imitated_by_other_classes_and_nothing_else_is():
    label_N = np.array([0, 0, 1, 1, 2, 2])
    pool = np.array([0, 1, 2, 3, 4])
    assert [ids.tolist() for ids in other_classes(np.array([1, 0]), label_N, pool)] == [[2, 3], [4]]
    assert other_classes(np.array([0]), label_N, pool) == []
    assert other_classes(np.array([0, 2]), label_N, pool) == []
