"""Influence of training examples on test examples, from the same models as memorization."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from rumfast.errors import DataError, UsageError

CELLS_AT_ONCE = 2**24  # of a block of [M, N] or [N, T] that is there as floats


class Influence(NamedTuple):
    """The training examples that help each of T test examples most.

    Attributes:
        score_TK: influences, falling along K, in [−1, 1].
        id_TK: their training ids; ties go to the smaller id.
    """

    score_TK: np.ndarray
    id_TK: np.ndarray


def influence_scores(include_MN: np.ndarray, correct_MT: np.ndarray) -> np.ndarray:
    """Estimate all influences [N, T] as Feldman & Zhang (2020, arXiv 2008.03703, section 2) do.

    infl_ij = mean(correct_tj | i in subset t) − mean(correct_tj | i not in subset t), NaN where training
    example i was never, or always, in a subset. Use :func:`top_influences` where [N, T] floats are too many.

    Args:
        include_MN: [M, N] boolean; may be memory-mapped, as it is read in blocks of members.
        correct_MT: [M, T] boolean, of test examples.

    Raises:
        DataError: the arrays are not boolean, or of different numbers of members.

    >>> seen, right = np.array([[True], [True], [False]]), np.array([[True], [False], [False]])
    >>> influence_scores(seen, right).tolist()
    [[0.5]]
    """
    return np.concatenate(list(_blocks(include_MN, correct_MT)), axis=1)


def top_influences(include_MN: np.ndarray, correct_MT: np.ndarray, k: int) -> Influence:
    """The ``k`` most helpful training examples of each test example, never holding [N, T] floats.

    Arguments and errors as of :func:`influence_scores`; undefined influences come last, as NaN.

    Raises:
        UsageError: k is not in 1..N.
    """
    if not 1 <= k <= include_MN.shape[1]:
        raise UsageError(f"k: got {k}, expected 1..{include_MN.shape[1]}")
    best = [_top(column_N, k) for block_NT in _blocks(include_MN, correct_MT) for column_N in block_NT.T]
    return Influence(np.stack([score for score, _ in best]), np.stack([ids for _, ids in best]))


def _top(score_N: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    known_N = np.where(np.isnan(score_N), -np.inf, score_N)
    least = np.partition(known_N, -k)[-k]
    above, tied = np.flatnonzero(known_N > least), np.flatnonzero(known_N == least)
    ids = np.concatenate([above, tied[: k - len(above)]])
    ids = ids[np.lexsort((ids, -known_N[ids]))]
    return score_N[ids], ids


def _blocks(include_MN: np.ndarray, correct_MT: np.ndarray) -> Iterator[np.ndarray]:
    """Influences [N, B] of test examples in order, B at a time."""
    for name, array in (("include_MN", include_MN), ("correct_MT", correct_MT)):
        if array.ndim != 2 or array.dtype != bool:
            raise DataError(f"{name}: expected booleans, two axes, got {array.dtype} {array.shape}")
    if len(include_MN) != len(correct_MT):
        raise DataError(f"correct_MT: got {len(correct_MT)} members, expected {len(include_MN)} as included")
    members, examples = include_MN.shape
    size = max(1, CELLS_AT_ONCE // max(examples, 1))
    rows = [slice(start, start + size) for start in range(0, members, size)]
    included_N1 = sum((include_MN[row].sum(0) for row in rows), np.zeros(examples, np.int64))[:, None]
    excluded_N1 = members - included_N1
    for start in range(0, correct_MT.shape[1], size):
        correct_MB = torch.from_numpy(correct_MT[:, start : start + size].astype(np.float32))
        both_NB = torch.zeros(examples, correct_MB.shape[1])
        for row in rows:  # counts below 2²⁴ are exact in float32
            both_NB.addmm_(torch.from_numpy(include_MN[row].astype(np.float32)).T, correct_MB[row])
        only_NB = correct_MB.sum(0) - both_NB
        with np.errstate(invalid="ignore", divide="ignore"):
            yield both_NB.numpy() / included_N1 - only_NB.numpy() / excluded_N1
