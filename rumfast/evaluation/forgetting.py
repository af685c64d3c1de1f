"""Forgetting quality of the NeurIPS 2023 unlearning competition: what the best of simple attacks shows."""

from typing import NamedTuple

import numpy as np

from rumfast.errors import DataError, UsageError
from rumfast.evaluation.divergence import populations

MOST = 50.0  # the competition's ε where an attack never errs
BIN = 0.5  # width of a bin of ε
NEAR = 2.0  # nats that an interval's end and length may be off those of the population it is laid around
NARROW = 0.01  # a range below this share of the other's is taken for a point
CELLS_AT_ONCE = 2**15  # counts that are held at a time: 256 KiB of int64, and margins beside them


def epsilon(margin_MF: np.ndarray, oracle_KF: np.ndarray, *, delta: float = 1e-5) -> np.ndarray:
    """Least ε at which each example's margins could come from (ε, δ)-unlearning: what its best attack shows.

    ε = max over attacks of max(log(1 − δ − FPR) − log FNR, log(1 − δ − FNR) − log FPR, 0). An attack names a
    set of margins and calls the models within positive: a half-line [t, ∞), positive being the population of
    the greater median; or an interval, positive being the population of the smaller range, that ends within 2
    nats of its maximum and is as long as its range within 2 nats (Triantafillou et al. 2024, arXiv
    2406.09073, section 3, and the competition's code). FPR = FNR = 0 shows 50, the most, and so does a range
    below 1 % of the other one; attacks for which only one of FPR and FNR is 0 are not counted, as a sign of
    too few models.

    That code lays thresholds on a grid of 0.01 nats; here all that part the margins are tried, so that ε is
    the value on an ever finer grid, and at least the code's. n models of each kind cannot show more than
    log(n − 1), unless 50, and the best of many attacks shows something of oracles, too: on normal margins of
    standard deviation 1, 1.6 on average with 32. Compare with the value of oracles among themselves.

    Args:
        margin_MF, oracle_KF: margins in nats of M unlearned models and K oracles on the F forget examples.
        delta: in [0, 1).

    Returns:
        [F] in [0, 50]; 0 where no attack counts.

    Raises:
        DataError: fewer than two models of a kind, shapes that do not fit, or a margin that is not finite.
        UsageError: a delta that is none.

    >>> epsilon(np.array([[1.0, 1.0], [2.0, 2.0]]), np.array([[3.0, 1.0], [4.0, 2.0]])).tolist()
    [50.0, 0.0]
    """
    ours, theirs = populations("epsilon", margin_MF, oracle_KF, least=2)
    if not 0 <= delta < 1:
        raise UsageError(f"epsilon: got a delta of {delta}, expected one in [0, 1)")
    table = _by_counts(len(ours), len(theirs), delta)
    width = max(1, CELLS_AT_ONCE // (len(ours) + len(theirs) + 1))
    blocks = (slice(start, start + width) for start in range(0, ours.shape[1], width))
    return np.concatenate([_best(ours[:, block], theirs[:, block], table) for block in blocks])


def _by_counts(ours: int, theirs: int, delta: float) -> np.ndarray:
    """ε of the attacks that hold i of our models and j of their oracles, at i·(theirs + 1) + j.

    Once with ours as the positive population, and once more, further on, with theirs.
    """
    ours_share, theirs_share = np.meshgrid(
        np.arange(ours + 1) / ours, np.arange(theirs + 1) / theirs, indexing="ij"
    )
    attacks = ((theirs_share, 1 - ours_share), (ours_share, 1 - theirs_share))
    return np.concatenate([_of_attack(fpr, fnr, delta).ravel() for fpr, fnr in attacks])


def _of_attack(fpr: np.ndarray, fnr: np.ndarray, delta: float) -> np.ndarray:
    counted = (fpr > 0) & (fnr > 0)
    shown = [
        np.log(np.maximum((1 - delta - one) / np.where(counted, other, 1), 1))  # at least 0
        for one, other in ((fpr, fnr), (fnr, fpr))
    ]
    return np.where(counted, np.maximum(*shown), np.where((fpr == 0) & (fnr == 0), MOST, 0))


def _best(ours_MB: np.ndarray, theirs_KB: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Greatest ε of all half-lines and intervals, [B]."""
    (m, examples), k = ours_MB.shape, len(theirs_KB)
    margin_TB = np.concatenate([ours_MB, theirs_KB]).astype(np.float64)
    order_TB = np.argsort(margin_TB, axis=0)
    margin_TB = np.take_along_axis(margin_TB, order_TB, axis=0)
    # What lies below each of T + 1 cuts, both counts in one number: differences of cuts index the table.
    count_CB = np.zeros((m + k + 1, examples), np.intp)
    np.cumsum(np.where(order_TB < m, k + 1, 1), axis=0, out=count_CB[1:])
    end_1B = np.full((1, examples), np.inf)
    cuts = _Cuts(count_CB, np.concatenate([-end_1B, margin_TB]), np.concatenate([margin_TB, end_1B]))

    lower_B = np.median(ours_MB, axis=0) < np.median(theirs_KB, axis=0)
    top_2B = np.stack([ours_MB.max(0), theirs_KB.max(0)]).astype(np.float64)
    range_2B = top_2B - [ours_MB.min(0), theirs_KB.min(0)]
    theirs_B = np.where(lower_B, range_2B[1] < range_2B[0], range_2B[1] <= range_2B[0])  # theirs is narrower
    half = len(table) // 2
    above_CB = table[count_CB[-1] - count_CB + half * lower_B]
    found_B = np.where(cuts.below_CB < cuts.above_CB, above_CB, 0).max(0)
    narrow_B, wide_B = np.sort(range_2B, axis=0)
    inside_B = _best_interval(
        cuts, np.where(theirs_B, top_2B[1], top_2B[0]), narrow_B, table, half * theirs_B
    )
    return np.where(narrow_B < NARROW * wide_B, MOST, np.maximum(found_B, inside_B))


class _Cuts(NamedTuple):
    """Where T sorted margins can be parted: what lies below each place, and the margins to both sides."""

    count_CB: np.ndarray
    below_CB: np.ndarray
    above_CB: np.ndarray


def _best_interval(
    cuts: _Cuts, top_B: np.ndarray, range_B: np.ndarray, table: np.ndarray, offset_B: np.ndarray
) -> np.ndarray:
    """Greatest ε of intervals around the population with this maximum and range, [B].

    An interval from cut i to cut j may start anywhere in (below_i, above_i] and end in [below_j, above_j).
    """
    equal_CB = cuts.below_CB == cuts.above_CB
    least_end_CB = np.maximum(cuts.below_CB, top_B - NEAR)
    last_end_CB = np.minimum(cuts.above_CB, top_B + NEAR)
    least_end_CB[equal_CB | (least_end_CB > last_end_CB)] = np.inf  # no interval ends here
    least_start_CB = np.where(equal_CB, np.inf, cuts.below_CB)  # nor starts where equal margins meet
    upper_CB = cuts.count_CB + offset_B
    found_CB = np.zeros(upper_CB.shape)
    for span in range(1, len(upper_CB)):
        fits = least_end_CB[span:] - cuts.above_CB[:-span] <= range_B + NEAR
        fits &= last_end_CB[span:] - least_start_CB[:-span] > range_B - NEAR
        shown = table[upper_CB[span:] - cuts.count_CB[:-span]]
        shown *= fits
        np.maximum(found_CB[span:], shown, out=found_CB[span:])
    return found_CB.max(0)


def forgetting_quality(epsilon_F: np.ndarray) -> float:
    """Mean over forget examples of 2^−⌊ε/0.5⌋ (Triantafillou et al. 2024, arXiv 2406.09073, section 3).

    The competition awards nothing from ε = ⌈log(n − 1)⌉ on; there n models of each kind show 50 alone, which
    is worth 2^−100 here.

    Args:
        epsilon_F: [F], 0 at least.

    Returns:
        A value in (0, 1]; 1 where all ε lie below 0.5.

    Raises:
        DataError: no example, or an ε that is negative or NaN.

    >>> forgetting_quality(np.array([0.0, 0.49, 0.5, 1.2]))
    0.6875
    """
    if epsilon_F.ndim != 1 or not len(epsilon_F) or not (epsilon_F >= 0).all():
        raise DataError(
            f"forgetting_quality: got shape {epsilon_F.shape}, expected some values, all from 0 on"
        )
    return float(np.exp2(-np.floor(epsilon_F / BIN)).mean())


def final_score(
    quality: float,
    accuracy_retain: float,
    oracle_accuracy_retain: float,
    accuracy_test: float,
    oracle_accuracy_test: float,
) -> float:
    """Forgetting quality times what is left of utility: F · (RA_u/RA_r) · (TA_u/TA_r).

    The competition's final score (Triantafillou et al. 2024, arXiv 2406.09073, section 3).

    Args:
        quality: F, of ``forgetting_quality``.
        accuracy_retain, oracle_accuracy_retain: mean accuracy of unlearned models and oracles on the retain
            set, in [0, 1]; likewise on the test set.

    Returns:
        0 at least; above F where unlearned models are more accurate than oracles.

    Raises:
        DataError: oracles that classify nothing right.

    >>> final_score(0.5, 0.9, 1.0, 0.8, 0.8)
    0.45
    """
    if not (oracle_accuracy_retain > 0 and oracle_accuracy_test > 0):
        raise DataError(
            f"final_score: got oracle accuracies {oracle_accuracy_retain} and {oracle_accuracy_test}, "
            "expected both above 0"
        )
    return quality * (accuracy_retain / oracle_accuracy_retain) * (accuracy_test / oracle_accuracy_test)
