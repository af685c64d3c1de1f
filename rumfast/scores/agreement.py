"""Do the scores agree? Rank correlations with intervals, and what each class looks like."""

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from rumfast.errors import DataError
from rumfast.evaluation import t_interval

RESAMPLES = 1000
CELLS_AT_ONCE = 2**22  # ranks that are held at a time, float64


class Agreement(NamedTuple):
    """Spearman's rank correlation of every pair of K scores, with its 95 % interval.

    Attributes:
        names: of the scores.
        rho_KK, low_KK, high_KK: in [−1, 1]; NaN where a score is constant, or fewer than three examples have
            both.
        count_KK: examples that have both.
    """

    names: tuple[str, ...]
    rho_KK: np.ndarray
    low_KK: np.ndarray
    high_KK: np.ndarray
    count_KK: np.ndarray


def rank_agreement(score_N: Mapping[str, np.ndarray], resamples: int = RESAMPLES, seed: int = 0) -> Agreement:
    """Correlate the ranks of scores pairwise, ties at their mean rank.

    Intervals are percentiles of the bootstrap over examples: each resample draws N examples with replacement
    and ranks them anew (Efron & Tibshirani 1993, chapter 13). They say what other examples would have given,
    not what other models would.

    Args:
        score_N: scores [N] by name; NaN where an example has none, which leaves it out of that pair alone.
        resamples: of the bootstrap.

    Raises:
        DataError: no score, or of different numbers of examples.

    >>> found = rank_agreement({"a": np.arange(9.0), "b": -np.arange(9.0)}, resamples=10)
    >>> round(float(found.rho_KK[0, 1]), 6), int(found.count_KK[0, 1])
    (-1.0, 9)
    """
    if not score_N or len({score.shape for score in score_N.values()}) > 1:
        raise DataError(f"scores: got {[score.shape for score in score_N.values()]}, expected one shape [N]")
    score_KN = np.stack([np.asarray(score, np.float64) for score in score_N.values()])
    known_KN = np.isfinite(score_KN)
    k = len(score_KN)
    rho_KK, low_KK, high_KK = np.full((3, k, k), np.nan)
    count_KK = known_KN.astype(np.int64) @ known_KN.T
    for both_N, pairs in _pairs_by_examples(known_KN).items():
        mask_N = np.frombuffer(both_N, bool)
        used = sorted({index for pair in pairs for index in pair})
        if mask_N.sum() < 3:
            continue
        exact_LL, drawn_BLL = _correlations(score_KN[used][:, mask_N], resamples, seed)
        with np.errstate(invalid="ignore"):
            low_LL, high_LL = np.percentile(drawn_BLL, [2.5, 97.5], axis=0)
        for i, j in pairs:
            at = used.index(i), used.index(j)
            for to_KK, from_LL in ((rho_KK, exact_LL), (low_KK, low_LL), (high_KK, high_LL)):
                to_KK[i, j] = to_KK[j, i] = from_LL[at]
    return Agreement(tuple(score_N), rho_KK, low_KK, high_KK, count_KK)


def _pairs_by_examples(known_KN: np.ndarray) -> dict[bytes, list[tuple[int, int]]]:
    """The pairs of scores that share their examples, so that these are ranked and drawn once."""
    found: dict[bytes, list[tuple[int, int]]] = {}
    for i, j in combinations_with_replacement(range(len(known_KN)), 2):
        found.setdefault((known_KN[i] & known_KN[j]).tobytes(), []).append((i, j))
    return found


def _correlations(score_LN: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Spearman [L, L] of the examples as they are, and [B, L, L] of resamples of them."""
    rank_LN = stats.rankdata(score_LN, method="dense", axis=1).astype(np.int64) - 1
    n, rng = score_LN.shape[1], np.random.default_rng([seed, score_LN.shape[1]])
    exact_LL = _weighted(rank_LN, np.ones((1, n)))[0]
    size = max(1, CELLS_AT_ONCE // score_LN.size)
    drawn = []
    for start in range(0, resamples, size):
        draws = min(size, resamples - start)
        times_BN = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(draws)])
        drawn.append(_weighted(rank_LN, times_BN))
    return exact_LL, np.concatenate(drawn)


def _weighted(rank_LN: np.ndarray, times_BN: np.ndarray) -> np.ndarray:
    """Spearman [B, L, L] of resamples in which example n occurs ``times_BN[b, n]`` times.

    A value's mean rank among the drawn follows from how many were drawn of each value, hence from a running
    sum over values, without sorting the resample.
    """
    weight_BN = times_BN.astype(np.float64)
    middle_BLN = np.empty((len(weight_BN), *rank_LN.shape))
    for row, rank_N in enumerate(rank_LN):
        order_N = np.argsort(rank_N, kind="stable")
        first_V = np.flatnonzero(np.diff(rank_N[order_N], prepend=-1))
        drawn_BV = np.add.reduceat(weight_BN[:, order_N], first_V, axis=1)
        mean_rank_BV = np.cumsum(drawn_BV, axis=1) - (drawn_BV - 1) / 2
        middle_BLN[:, row] = mean_rank_BV[:, rank_N]
    # The mean of the ranks 1 … n, whatever is tied.
    middle_BLN -= (weight_BN.sum(1)[:, None, None] + 1) / 2
    covariance_BLL = (middle_BLN * weight_BN[:, None]) @ middle_BLN.transpose(0, 2, 1)
    deviation_BL = np.sqrt(np.diagonal(covariance_BLL, axis1=1, axis2=2))
    with np.errstate(invalid="ignore", divide="ignore"):
        rho_BLL = covariance_BLL / (deviation_BL[:, :, None] * deviation_BL[:, None, :])
    return np.clip(rho_BLL, -1, 1)


def ceiling(reliability: float) -> float:
    """The largest rank correlation that a perfect score would show with a noisy estimate: √reliability.

    Spearman's correction for attenuation (1904): ρ(score, estimate) = ρ(score, truth) · √ρ(estimate, another
    like it). ``reliability`` is ``Reliability.spearman_whole`` of a sweep.

    >>> ceiling(0.81)
    0.9
    """
    return float(np.sqrt(max(reliability, 0.0)))


def class_summary(
    label_N: np.ndarray,
    classes: Sequence[str],
    score_N: Mapping[str, np.ndarray],
    flipped_N: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """What the examples of each class look like, one row per class in order of its label.

    Args:
        label_N: [N] labels as trained on.
        score_N: scores [N] by name, NaN where an example has none.
        flipped_N: [N] boolean, was the label flipped? None: none was.

    Returns:
        Rows with ``name``, ``count``, ``flipped`` (a share), ``interval`` (95 % t-interval of mean
        memorization over the class's examples; None for fewer than two), and ``means`` of all scores; None
        where no example has one.
    """
    rows = []
    for label, name in enumerate(classes):
        mine_N = label_N == label
        known = {key: score[mine_N & np.isfinite(score)] for key, score in score_N.items()}
        memorization = known.get("memorization", np.empty(0))
        found = t_interval(memorization.tolist(), (-1, 1)) if len(memorization) > 1 else None
        count = int(mine_N.sum())
        flipped = 0 if flipped_N is None else int((flipped_N & mine_N).sum())
        rows.append(
            {
                "name": name,
                "count": count,
                "flipped": flipped / count if count else 0.0,
                "interval": None if found is None else [found.low, found.high],
                "means": {key: float(score.mean()) if len(score) else None for key, score in known.items()},
            }
        )
    return rows
