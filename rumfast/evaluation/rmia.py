"""RMIA: is an example more probable to a model, against what oracles make of it, than test examples are?"""

import numpy as np
from scipy.special import expit

from rumfast.errors import DataError, UsageError
from rumfast.evaluation.divergence import populations
from rumfast.evaluation.roc import Attack

STEEPEST = 500.0  # nats; ratios of probabilities stay well within float64


def rmia(
    margin_MF: np.ndarray,
    oracle_KF: np.ndarray,
    margin_MZ: np.ndarray,
    oracle_KZ: np.ndarray,
    *,
    gamma: float = 1.0,
) -> Attack:
    """Share of population examples over which a forget example's likelihood ratio prevails.

    score(x; θ) = Pr_z[ratio(x)/ratio(z) ≥ γ], ratio(x) = Pr(x | θ)/Pr(x), Pr(x | θ) = p_y = sigmoid(margin)
    (Zarifzadeh et al. 2024, arXiv 2312.03262, section 3: the pairwise likelihood ratio, with reference models
    that never saw x). Pr(x) is the mean over the oracles but one: but the target where it is an oracle, but
    oracle i mod K for audited model i, so that all targets are held against K − 1 oracles.

    Memorized examples prevail over every z in models that know them, and in some oracles too. All of these
    would tie at 1, where no threshold accuses few oracles: from there on the score is
    2 − γ·max_z ratio(z)/ratio(x), which rises with the greatest γ that leaves it at 1.

    Args:
        margin_MF, oracle_KF: margins in nats of M audited models and K oracles on the F forget examples.
        margin_MZ, oracle_KZ: the same models' margins on Z examples none was trained on, the test examples.
        gamma: how far ratio(x) must exceed ratio(z).

    Returns:
        Scores in [0, 2), shares below 1: of the forget examples on audited models, M·F, and on oracles, K·F.

    Raises:
        DataError: fewer than two oracles, shapes that do not fit, or a margin that is not finite.
        UsageError: a gamma that is not positive.

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
    ratio_MF, ratio_KF = _ratios(ours, theirs)
    ratio_MZ, ratio_KZ = _ratios(ours_z, theirs_z)
    return Attack(_shares(ratio_MF, gamma * ratio_MZ), _shares(ratio_KF, gamma * ratio_KZ))


def _ratios(margin_MN: np.ndarray, oracle_KN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pr(n | θ)/Pr(n) of the models [M, N] and of the oracles [K, N]."""
    ours_MN, theirs_KN = (
        expit(np.clip(array.astype(np.float64), -STEEPEST, STEEPEST)) for array in (margin_MN, oracle_KN)
    )
    # Sums from both ends: the sum of all less one cancels where that one is by far the greatest.
    mean_KN = np.zeros_like(theirs_KN)
    np.cumsum(theirs_KN[:-1], axis=0, out=mean_KN[1:])
    mean_KN[:-1] += np.cumsum(theirs_KN[:0:-1], axis=0)[::-1]
    mean_KN /= len(theirs_KN) - 1
    return ours_MN / mean_KN[np.arange(len(ours_MN)) % len(mean_KN)], theirs_KN / mean_KN


def _shares(ratio_MF: np.ndarray, bar_MZ: np.ndarray) -> np.ndarray:
    """For each of M·F ratios, the share of its model's Z bars that it reaches, and more where it is all."""
    order_MF, bar_MZ = np.argsort(ratio_MF, axis=1), np.sort(bar_MZ, axis=1)
    reached_MF = np.empty(ratio_MF.shape)
    for ratio_F, order_F, bar_Z, reached_F in zip(ratio_MF, order_MF, bar_MZ, reached_MF, strict=True):
        # In order, look-ups find the next bar at hand: a third of the time.
        reached_F[order_F] = np.searchsorted(bar_Z, ratio_F[order_F], "right")
    score_MF, most_MF = reached_MF / bar_MZ.shape[1], np.broadcast_to(bar_MZ[:, -1:], ratio_MF.shape)
    all_MF = score_MF == 1
    score_MF[all_MF] = 2 - most_MF[all_MF] / ratio_MF[all_MF]
    return score_MF.ravel()
