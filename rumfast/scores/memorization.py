"""Memorization of training examples, from models trained on random subsets."""

from typing import NamedTuple

import numpy as np

from rumfast.errors import DataError


class Memorization(NamedTuple):
    """Memorization estimates of N examples with their uncertainty.

    Attributes:
        score_N: P(correct | trained on it) − P(correct | not), in [−1, 1]; NaN where one of them was never
            seen.
        standard_error_N: of the score; NaN with it.
        included_N, excluded_N: members that were, and were not, trained on the example.
    """

    score_N: np.ndarray
    standard_error_N: np.ndarray
    included_N: np.ndarray
    excluded_N: np.ndarray


def memorization_scores(correct_MN: np.ndarray, include_MN: np.ndarray) -> Memorization:
    """Estimate memorization as Feldman & Zhang (2020, arXiv 2008.03703, section 2) do.

    mem_i = mean(correct_ti | i in subset t) − mean(correct_ti | i not in subset t). The standard error is
    that of two independent proportions, each shrunk to (k + 1) / (n + 2), since the plain estimate is 0
    wherever all members agree, which no finite number of members can show.

    Args:
        correct_MN: [M, N] boolean: does member t classify example i as labelled?
        include_MN: [M, N] boolean: was it trained on i?

    Raises:
        DataError: shapes differ, or the arrays are not boolean [M, N].

    >>> correct = np.array([[True], [True], [False], [False]])
    >>> memorization_scores(correct, np.array([[True], [True], [False], [False]])).score_N.tolist()
    [1.0]
    """
    for name, array in (("correct_MN", correct_MN), ("include_MN", include_MN)):
        if array.ndim != 2 or array.dtype != bool:
            raise DataError(f"{name}: expected booleans [M, N], got {array.dtype} {array.shape}")
    if correct_MN.shape != include_MN.shape:
        raise DataError(f"include_MN: got shape {include_MN.shape}, expected correct_MN's {correct_MN.shape}")
    included_N = include_MN.sum(0)
    excluded_N = len(include_MN) - included_N
    correct_in_N = (correct_MN & include_MN).sum(0)
    correct_out_N = (correct_MN & ~include_MN).sum(0)
    defined_N = (included_N > 0) & (excluded_N > 0)
    with np.errstate(invalid="ignore"):
        score_N = np.where(defined_N, correct_in_N / included_N - correct_out_N / excluded_N, np.nan)
    variance_N = _variance(correct_in_N, included_N) + _variance(correct_out_N, excluded_N)
    return Memorization(score_N, np.where(defined_N, np.sqrt(variance_N), np.nan), included_N, excluded_N)


def _variance(successes_N: np.ndarray, trials_N: np.ndarray) -> np.ndarray:
    shrunk_N = (successes_N + 1) / (trials_N + 2)
    return shrunk_N * (1 - shrunk_N) / np.maximum(trials_N, 1)
