"""RMIA: is an example more probable to a model, against what oracles make of it, than test examples are?"""

import numpy as np
from scipy.special import expit

from rumfast.errors import DataError, UsageError
from rumfast.evaluation.divergence import populations
from rumfast.evaluation.roc import Attack, auc

STEEPEST = 500.0  # nats; ratios of probabilities stay well within float64
OFFLINE_A = tuple(tenth / 10 for tenth in range(11))  # that are tried


def choose_offline_a(oracle_KF: np.ndarray, oracle_KR: np.ndarray, oracle_KZ: np.ndarray) -> float:
    """The a of ``OFFLINE_A`` at which RMIA best tells oracles' probabilities from those of trained examples.

    No model that was trained on the forget set is looked at: attacked is each oracle, with the others as
    reference. Non-members are its margins on the forget set. Members are its margins on the retain set, which
    it was trained on, in the forget examples' place: the quantile (r + ½)/F of them for the example of rank
    r in Pr_OUT, the mean over the other oracles, since what is hard stays hard when trained on. The authors'
    code attacks a reference model too, one that was trained on half of the examples.

    Args:
        oracle_KF, oracle_KR, oracle_KZ: margins in nats of K oracles on forget, retain and test examples.

    Returns:
        The a with the largest AUC, the smallest of equals.

    Raises:
        DataError: fewer than two oracles, shapes that do not fit, or a margin that is not finite.

    >>> forget, retain = np.array([[-4.0, 3.0], [-1.0, 4.0]]), np.full((2, 5), 4.0)
    >>> test = np.full((2, 3), 3.0)
    >>> choose_offline_a(forget, retain, test)
    0.0
    """
    if len(oracle_KF) < 2:
        raise DataError(f"choose_offline_a: got {len(oracle_KF)} oracles, expected at least 2")
    if not oracle_KR.size:
        raise DataError("choose_offline_a: no retain example")
    member_KF = _as_if_trained_on(oracle_KF, oracle_KR)
    sets = member_KF, oracle_KF, oracle_KZ, oracle_KZ
    return max(OFFLINE_A, key=lambda a: auc(rmia(*sets, offline_a=a)))


def _as_if_trained_on(oracle_KF: np.ndarray, oracle_KR: np.ndarray) -> np.ndarray:
    """Margins [K, F] of each oracle on its retain set, ordered as the others' mean on the forget set is."""
    rank_KF = _means_without_each(_probabilities(oracle_KF)).argsort(1, kind="stable").argsort(1)
    quantile_FK = np.quantile(oracle_KR, (np.arange(rank_KF.shape[1]) + 0.5) / rank_KF.shape[1], axis=1)
    return np.take_along_axis(quantile_FK.T, rank_KF, axis=1)


def rmia(
    margin_MF: np.ndarray,
    oracle_KF: np.ndarray,
    margin_MZ: np.ndarray,
    oracle_KZ: np.ndarray,
    *,
    gamma: float = 1.0,
    offline_a: float = 1.0,
) -> Attack:
    """Share of population examples over which a forget example's likelihood ratio prevails.

    score(x; θ) = Pr_z[ratio(x)/ratio(z) ≥ γ], ratio(x) = Pr(x | θ)/Pr(x), Pr(x | θ) = p_y = sigmoid(margin)
    (Zarifzadeh et al. 2024, arXiv 2312.03262, section 3: the pairwise likelihood ratio, offline, with
    reference models that never saw x). Pr(x) is half of what models give x that saw it and half of what
    others do, Pr_OUT(x). The former is taken for a·Pr_OUT(x) + 1 − a, so that

        Pr(x) = ½[(1 + a)·Pr_OUT(x) + 1 − a],

    and likewise Pr(z), as in the authors' code. At a = 1, where Pr(x) = Pr_OUT(x), the ratio of a hard
    example that an oracle happens to like exceeds that of a member which oracles like too.
    Pr_OUT is the mean over the oracles but one: but the target where it is an oracle, but oracle i mod K for
    audited model i, so that all targets are held against K − 1 oracles.

    Memorized examples prevail over every z in models that know them, and in some oracles too. All of these
    would tie at 1, where no threshold accuses few oracles: from there on the score is
    2 − γ·max_z ratio(z)/ratio(x), which rises with the greatest γ that leaves it at 1. Examples that prevail
    over no z would tie at 0, where the opposite attack has no threshold: their score is
    ratio(x)/(γ·min_z ratio(z)) − 1, which rises with the least γ that leaves it at 0.

    Args:
        margin_MF, oracle_KF: margins in nats of M audited models and K oracles on the F forget examples.
        margin_MZ, oracle_KZ: the same models' margins on Z examples none was trained on, the test examples.
        gamma: how far ratio(x) must exceed ratio(z).
        offline_a: a in [0, 1]; see ``choose_offline_a``.

    Returns:
        Scores in [−1, 2], shares in [0, 1): of the forget examples on audited models, M·F, and on oracles,
        K·F.

    Raises:
        DataError: fewer than two oracles, shapes that do not fit, or a margin that is not finite.
        UsageError: a gamma that is not positive, or an ``offline_a`` outside [0, 1].

    >>> oracles = np.array([[0.0], [0.2], [-0.2]]), np.array([[1.0, 2.0], [1.1, 1.9], [1.2, 2.1]])
    >>> rmia(oracles[0] + 3, oracles[0], oracles[1], oracles[1]).member_P >= 1
    array([ True,  True,  True])
    """
    ours, theirs = populations("rmia on the forget set", margin_MF, oracle_KF)
    ours_z, theirs_z = populations("rmia on the test set", margin_MZ, oracle_KZ)
    models, others = (len(ours), len(theirs)), (len(ours_z), len(theirs_z))
    if models != others or len(theirs) < 2:
        raise DataError(
            f"rmia: got {models} models and oracles on the forget set and {others} on the test set, "
            "expected the same on both, and at least 2 oracles"
        )
    if not gamma > 0:
        raise UsageError(f"rmia: got a gamma of {gamma}, expected one above 0")
    if not 0 <= offline_a <= 1:
        raise UsageError(f"rmia: got an offline_a of {offline_a}, expected one in [0, 1]")
    ratio_MF, ratio_KF = _ratios(ours, theirs, offline_a)
    ratio_MZ, ratio_KZ = _ratios(ours_z, theirs_z, offline_a)
    return Attack(_shares(ratio_MF, gamma * ratio_MZ), _shares(ratio_KF, gamma * ratio_KZ))


def _ratios(margin_MN: np.ndarray, oracle_KN: np.ndarray, a: float) -> tuple[np.ndarray, np.ndarray]:
    """Pr(n | θ)/Pr(n) of the models [M, N] and of the oracles [K, N]."""
    ours_MN, theirs_KN = _probabilities(margin_MN), _probabilities(oracle_KN)
    mean_KN = (1 + a) / 2 * _means_without_each(theirs_KN) + (1 - a) / 2
    return ours_MN / mean_KN[np.arange(len(ours_MN)) % len(mean_KN)], theirs_KN / mean_KN


def _probabilities(margin_MN: np.ndarray) -> np.ndarray:
    return expit(np.clip(margin_MN.astype(np.float64), -STEEPEST, STEEPEST))


def _means_without_each(value_KN: np.ndarray) -> np.ndarray:
    """Means [K, N] over all rows but one.

    From sums from both ends: the sum of all less one cancels where that one is by far the greatest.
    """
    sum_KN = np.zeros_like(value_KN)
    np.cumsum(value_KN[:-1], axis=0, out=sum_KN[1:])
    sum_KN[:-1] += np.cumsum(value_KN[:0:-1], axis=0)[::-1]
    return sum_KN / (len(value_KN) - 1)


def _shares(ratio_MF: np.ndarray, bar_MZ: np.ndarray) -> np.ndarray:
    """For each of M·F ratios, the share of its model's Z bars that it reaches, ordered where all or none."""
    order_MF, bar_MZ = np.argsort(ratio_MF, axis=1), np.sort(bar_MZ, axis=1)
    reached_MF = np.empty(ratio_MF.shape)
    for ratio_F, order_F, bar_Z, reached_F in zip(ratio_MF, order_MF, bar_MZ, reached_MF, strict=True):
        # In order, look-ups find the next bar at hand: a third of the time.
        reached_F[order_F] = np.searchsorted(bar_Z, ratio_F[order_F], "right")
    all_MF, none_MF = reached_MF == bar_MZ.shape[1], reached_MF == 0
    least_MF, most_MF = (np.broadcast_to(bar_MZ[:, [z]], ratio_MF.shape) for z in (0, -1))
    score_MF = reached_MF / bar_MZ.shape[1]
    score_MF[all_MF] = 2 - most_MF[all_MF] / ratio_MF[all_MF]
    score_MF[none_MF] = ratio_MF[none_MF] / least_MF[none_MF] - 1
    return score_MF.ravel()
