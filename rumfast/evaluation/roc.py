"""What an attack's scores are worth: area under the ROC curve, and what it finds at few false alarms."""

from typing import NamedTuple

import numpy as np

from rumfast.errors import DataError, UsageError

# Attacks are compared where they accuse few (Carlini et al. 2022, arXiv 2112.03570, section III): 20 points a
# decade from 0.01 % of false positives on.
FPR_T = np.concatenate([[0.0], np.geomspace(1e-4, 1, 81)])


class Attack(NamedTuple):
    """Scores of an attack; higher means "was trained on it".

    Attributes:
        member_P: of forget examples on audited models, which were trained on them once.
        non_member_Q: of the same examples on oracles, which never were.
    """

    member_P: np.ndarray
    non_member_Q: np.ndarray


class Curve(NamedTuple):
    """True positive rates [T] at false positive rates [T], both rising from 0 to 1."""

    fpr_T: np.ndarray
    tpr_T: np.ndarray


def auc(attack: Attack) -> float:
    """Probability that a member scores higher than a non-member, ties counting half: the area under the ROC.

    AUC = [#(member > non-member) + ½ #(member = non-member)] / (P·Q) (Hanley & McNeil 1982).

    Returns:
        A value in [0, 1]; 0.5 where scores say nothing.

    Raises:
        DataError: no score of either kind, or one that is NaN.

    >>> auc(Attack(np.array([2.0, 3.0]), np.array([1.0, 2.0])))
    0.875
    """
    member_P, non_member_Q = _sorted(attack)
    # Sorted queries walk through memory in order.
    below = np.searchsorted(non_member_Q, member_P, "left").sum()
    not_above = np.searchsorted(non_member_Q, member_P, "right").sum()
    return float((below + not_above) / (2 * len(member_P) * len(non_member_Q)))


def tpr_at(attack: Attack, fpr: float) -> float:
    """Largest share of members found by a threshold that accuses at most ``fpr`` of the non-members.

    TPR = max {share of members > t : share of non-members > t ≤ fpr} (Carlini et al. 2022, arXiv 2112.03570,
    section III), of the attack or of its opposite, which accuses below t, whichever finds more: scores far
    below the non-members' tell members as surely as scores far above. Nothing is interpolated: below 1/Q no
    non-member may be accused at all.

    Args:
        fpr: in [0, 1].

    Returns:
        A share in [0, 1].

    Raises:
        DataError: no score of either kind, or one that is NaN.
        UsageError: a false positive rate that is none.

    >>> tpr_at(Attack(np.array([1.0, 3.0, 5.0, 6.0]), np.array([0.0, 2.0, 4.0, 4.5])), fpr=0.25)
    0.5
    """
    if not 0 <= fpr <= 1:
        raise UsageError(f"tpr_at: got a false positive rate of {fpr}, expected one in [0, 1]")
    return float(_true_positives(attack, np.array([fpr]))[0])


def curve(attack: Attack) -> Curve:
    """The ROC at 82 false positive rates, 0 and 20 a decade from 1e-4 to 1, each as ``tpr_at`` has it.

    At each rate it is that of the attack or of its opposite, whichever finds more.

    Raises:
        DataError: no score of either kind, or one that is NaN.

    >>> float(curve(Attack(np.array([1.0]), np.array([0.0]))).tpr_T.min())
    1.0
    """
    return Curve(FPR_T.copy(), _true_positives(attack, FPR_T))


def _true_positives(attack: Attack, fpr_T: np.ndarray) -> np.ndarray:
    """The greater true positive rate [T] of the attack and its opposite."""
    member_P, non_member_Q = _sorted(attack)
    opposite = -member_P[::-1], -non_member_Q[::-1]
    return np.maximum(_found_above(member_P, non_member_Q, fpr_T), _found_above(*opposite, fpr_T))


def _found_above(member_P: np.ndarray, non_member_Q: np.ndarray, fpr_T: np.ndarray) -> np.ndarray:
    """Share [T] of members above the lowest threshold that accuses few enough; scores are in rising order."""
    # 0.29 · 100 is 28.999…: a rate means the whole count next to it.
    allowed_T = np.floor(fpr_T * len(non_member_Q) + 1e-9).astype(np.intp)
    # The threshold is the greatest non-member that must not be accused; none is left at fpr = 1.
    threshold_T = np.append(non_member_Q[::-1], -np.inf)[allowed_T]
    found_T = len(member_P) - np.searchsorted(member_P, threshold_T, "right")
    found_T[allowed_T == len(non_member_Q)] = len(member_P)
    return found_T / len(member_P)


def _sorted(attack: Attack) -> tuple[np.ndarray, np.ndarray]:
    for who, scores in zip(("members", "non-members"), attack, strict=True):
        if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
            raise DataError(
                f"attack: scores of {who} must be a non-empty vector without NaN, got shape {scores.shape}"
            )
    return np.sort(attack.member_P), np.sort(attack.non_member_Q)
