"""Surrogate forget sets: other examples that are as hard to forget, to try plans on."""

import numpy as np
from scipy.spatial import cKDTree
from scipy.stats import rankdata

from rumfast.errors import DataError

JITTER = 0.02  # of a rank in [0, 1]: what makes two surrogates differ


def draw_surrogate(forget: np.ndarray, score_NK: np.ndarray, pool: np.ndarray, seed: int) -> np.ndarray:
    """Draw a forget set with the same profile of scores from ``pool``, without any forgotten example.

    Scores become ranks in [0, 1] within the pool, and the ranks of those to draw from are jittered. Then
    each forgotten example, in random order, takes the nearest example that is still free.

    Args:
        forget: [F] ids of the set to imitate; it lies in the pool.
        score_NK: [N, K] scores per example id, for instance memorization; one with a NaN is never drawn.
        pool: ids that may be trained on.
        seed: of order and jitter.

    Returns:
        [F] sorted ids.

    Raises:
        DataError: fewer than F examples are left to draw from.

    >>> score_NK = np.linspace(0, 1, 100)[:, None]
    >>> draw_surrogate(np.array([98, 99]), score_NK, np.arange(100), seed=0).min() > 85
    np.True_
    """
    scored = pool[~np.isnan(score_NK[pool]).any(1)]
    free = np.setdiff1d(scored, forget)
    if len(free) < len(forget):
        raise DataError(
            f"surrogate: got {len(forget)} examples to forget and {len(free)} others with scores, "
            "expected at least as many others"
        )
    draw = np.random.default_rng(seed)
    rank_NK = np.full(score_NK.shape, 0.5)
    rank_NK[pool] = _ranks(score_NK[pool])
    tree = cKDTree(rank_NK[free] + JITTER * draw.standard_normal((len(free), score_NK.shape[1])))
    taken = np.zeros(len(free), bool)
    for example in draw.permutation(np.sort(forget)):
        taken[_nearest_free(tree, rank_NK[example], taken)] = True
    return np.sort(free[taken])


def other_classes(forget: np.ndarray, label_N: np.ndarray, pool: np.ndarray) -> list[np.ndarray]:
    """The whole classes beside the one that ``forget`` is: what imitates a class. Empty where it is none.

    >>> [ids.tolist() for ids in other_classes(np.array([0, 1]), np.array([5, 5, 7, 8]), np.arange(4))]
    [[2], [3]]
    """
    label_P = label_N[pool]
    mine = np.unique(label_N[forget])
    if len(mine) != 1 or not np.array_equal(np.sort(forget), np.sort(pool[label_P == mine[0]])):
        return []
    return [np.sort(pool[label_P == label]) for label in np.unique(label_P) if label != mine[0]]


def _ranks(score_PK: np.ndarray) -> np.ndarray:
    """Ranks in [0, 1] of each column, ties sharing theirs; NaN in the middle."""
    rank_PK = np.full(score_PK.shape, 0.5)
    for column, score_P in enumerate(score_PK.T):
        known = ~np.isnan(score_P)
        rank_PK[known, column] = (rankdata(score_P[known]) - 0.5) / max(1, known.sum())
    return rank_PK


def _nearest_free(tree: cKDTree, point_K: np.ndarray, taken: np.ndarray) -> int:
    wanted = 8
    while True:
        _, found = tree.query(point_K, min(wanted, len(taken)))
        for index in np.atleast_1d(found):
            if not taken[index]:
                return int(index)
        wanted *= 4
