"""Memorization of training examples, from models trained on random subsets."""

from typing import NamedTuple

import numpy as np

from rumfast.errors import DataError


class Memorization(NamedTuple):
    """Memorization estimates of N examples with their uncertainty.

    Attributes:
        score_N: P(correct | trained on it) − P(correct | not), in [−1, 1]; NaN where one of them was never
            seen. Margin-valued scores are differences of mean margins and have no bounds.
        standard_error_N: of the score; NaN with it.
        included_N, excluded_N: members that were, and were not, trained on the example.
    """

    score_N: np.ndarray
    standard_error_N: np.ndarray
    included_N: np.ndarray
    excluded_N: np.ndarray


class MarginStatistics(NamedTuple):
    """Margins of N examples over the members that were trained on them, and over those that were not.

    Means are NaN where there is no such member, unbiased variances where there are fewer than two.
    """

    mean_in_N: np.ndarray
    variance_in_N: np.ndarray
    included_N: np.ndarray
    mean_out_N: np.ndarray
    variance_out_N: np.ndarray
    excluded_N: np.ndarray


class MemberTotals:
    """Sums over the members of a sweep, added one by one: all of its scores in O(N) memory.

    >>> totals = MemberTotals(1)
    >>> for seen in (True, False):
    ...     totals.add(np.array([seen]), np.array([seen]), np.array([3.0 if seen else -1.0]))
    >>> totals.memorization().score_N.tolist(), totals.margins().mean_out_N.tolist()
    ([1.0], [-1.0])
    """

    def __init__(self, examples: int) -> None:
        self.members = 0
        self._included_N = np.zeros(examples, np.int64)
        self._correct_N = np.zeros(examples, np.int64)
        self._correct_in_N = np.zeros(examples, np.int64)
        # Of margins less the first member's, so that squares do not cancel where margins are large and alike.
        self._pilot_N = np.zeros(examples)
        self._margin_2N = np.zeros((2, examples))  # excluded, included
        self._square_2N = np.zeros((2, examples))

    def add(self, include_N: np.ndarray, correct_N: np.ndarray, margin_N: np.ndarray | None = None) -> None:
        """Count one member.

        Args:
            include_N: [N] boolean, was it trained on the example?
            correct_N: [N] boolean, does it classify the example as labelled?
            margin_N: [N] finite floats; None for all members where margins are not wanted.

        Raises:
            DataError: an array is not of N booleans, or of N floats.
        """
        self._check(include_N, correct_N, margin_N)
        self._included_N += include_N
        self._correct_N += correct_N
        self._correct_in_N += correct_N & include_N
        if margin_N is not None:
            shifted_N = margin_N.astype(np.float64)
            if not self.members:
                self._pilot_N = shifted_N.copy()
            shifted_N -= self._pilot_N
            for of_2N in (self._margin_2N, self._square_2N):
                included_N = np.where(include_N, shifted_N, 0.0)
                of_2N[1] += included_N
                of_2N[0] += shifted_N - included_N
                shifted_N *= shifted_N
        self.members += 1

    def __add__(self, other: "MemberTotals") -> "MemberTotals":
        """Totals of the members of both."""
        if not (self.members and other.members):
            return self if self.members else other
        both = MemberTotals(len(self._included_N))
        both.members = self.members + other.members
        both._pilot_N = self._pilot_N
        for totals in (self, other):
            both._included_N += totals._included_N
            both._correct_N += totals._correct_N
            both._correct_in_N += totals._correct_in_N
            # Moved to the common pilot: Σ(x + d) and Σ(x + d)² from Σx and Σx².
            shift_N = totals._pilot_N - both._pilot_N
            count_2N = np.stack([totals.members - totals._included_N, totals._included_N])
            both._margin_2N += totals._margin_2N + count_2N * shift_N
            both._square_2N += totals._square_2N + shift_N * (2 * totals._margin_2N + count_2N * shift_N)
        return both

    def _check(self, include_N: np.ndarray, correct_N: np.ndarray, margin_N: np.ndarray | None) -> None:
        shape = self._included_N.shape
        for name, array in (("include_N", include_N), ("correct_N", correct_N)):
            if array.shape != shape or array.dtype != bool:
                raise DataError(f"{name}: expected {shape[0]} booleans, got {array.dtype} {array.shape}")
        if margin_N is not None and (margin_N.shape != shape or margin_N.dtype.kind != "f"):
            raise DataError(f"margin_N: expected {shape[0]} floats, got {margin_N.dtype} {margin_N.shape}")

    def memorization(self) -> Memorization:
        """Accuracy-valued scores, as :func:`memorization_scores` gives them."""
        correct_out_N = self._correct_N - self._correct_in_N
        return _scores(self._correct_in_N, self._included_N, correct_out_N, self.members - self._included_N)

    def margins(self) -> MarginStatistics:
        """Mean and variance of the margins, for audits and for margin-valued scores."""
        excluded_N = self.members - self._included_N
        mean_in_N, variance_in_N = self._moments(1, self._included_N)
        mean_out_N, variance_out_N = self._moments(0, excluded_N)
        return MarginStatistics(
            mean_in_N, variance_in_N, self._included_N.copy(), mean_out_N, variance_out_N, excluded_N
        )

    def _moments(self, side: int, count_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_N = self._margin_2N[side] / count_N
            spread_N = np.maximum(self._square_2N[side] - count_N * mean_N**2, 0)
            variance_N = np.where(count_N > 1, spread_N / (count_N - 1), np.nan)
        return mean_N + self._pilot_N, variance_N

    def margin_memorization(self) -> Memorization:
        """Margin-valued scores: mean margin when included less mean margin when excluded.

        Their relative error is smaller than that of accuracies, which forget how far off a member was. The
        standard error is √(s²ᵢₙ/nᵢₙ + s²ₒᵤₜ/nₒᵤₜ), NaN where a side has fewer than two members.
        """
        found = self.margins()
        with np.errstate(invalid="ignore", divide="ignore"):
            variance_N = found.variance_in_N / found.included_N + found.variance_out_N / found.excluded_N
        score_N = found.mean_in_N - found.mean_out_N
        return Memorization(score_N, np.sqrt(variance_N), found.included_N, found.excluded_N)


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
    correct_in_N = (correct_MN & include_MN).sum(0)
    correct_out_N = (correct_MN & ~include_MN).sum(0)
    return _scores(correct_in_N, included_N, correct_out_N, len(include_MN) - included_N)


def _scores(
    correct_in_N: np.ndarray, included_N: np.ndarray, correct_out_N: np.ndarray, excluded_N: np.ndarray
) -> Memorization:
    defined_N = (included_N > 0) & (excluded_N > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        score_N = np.where(defined_N, correct_in_N / included_N - correct_out_N / excluded_N, np.nan)
    variance_N = _variance(correct_in_N, included_N) + _variance(correct_out_N, excluded_N)
    return Memorization(score_N, np.where(defined_N, np.sqrt(variance_N), np.nan), included_N, excluded_N)


def _variance(successes_N: np.ndarray, trials_N: np.ndarray) -> np.ndarray:
    shrunk_N = (successes_N + 1) / (trials_N + 2)
    return shrunk_N * (1 - shrunk_N) / np.maximum(trials_N, 1)


def worst_standard_error(members: int, include: float) -> float:
    """Standard error of a score at P(correct) = ½ on both sides: √(¼/(rM) + ¼/((1−r)M)), M members, ratio r.

    >>> round(worst_standard_error(400, 0.7), 3)
    0.055
    """
    return float(np.sqrt(0.25 / (include * members) + 0.25 / ((1 - include) * members)))
