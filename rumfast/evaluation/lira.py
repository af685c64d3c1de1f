"""U-LiRA: the attack that knows how each example's margin varies, in unlearned models and in oracles."""

import numpy as np

from rumfast.evaluation.divergence import populations
from rumfast.evaluation.roc import Attack

LEAST_DEVIATION = 1e-2  # nats; trained anew, a model's margin varies by far more


def u_lira(margin_MF: np.ndarray, oracle_KF: np.ndarray) -> Attack:
    """Log likelihood ratio of every model for having been trained on each example.

    Λ(m) = log N(m; μ_u, σ_u) − log N(m; μ_r, σ_r), with Gaussians fitted per example by maximum likelihood to
    its margins over unlearned models and over oracles (Hayes et al. 2024, arXiv 2403.01218, section 4, after
    Carlini et al. 2022, arXiv 2112.03570, section IV). The margin is the logit-scaled confidence of both.

    The models serve as shadow models and as targets: a target's own margin is left out of its population's
    fit, by a closed-form update, and one model, number i mod n, out of the other population's. Otherwise the
    fit of fewer models would tell on its target: under the null, the AUC would be 0.43 with four models of
    each kind and 0.49 with eight, where it is 0.5.

    Args:
        margin_MF, oracle_KF: margins in nats of M unlearned models and K oracles on the F forget examples.

    Returns:
        Scores of all M·F targets that were trained on their example, and of the K·F that never were. σ is
        at least 0.01 nats, which keeps constant margins finite.

    Raises:
        DataError: fewer than two models of a kind, shapes that do not fit, or a margin that is not finite.

    >>> attack = u_lira(np.array([[5.0], [5.1], [5.3]]), np.array([[0.1], [0.0], [0.3]]))
    >>> bool((attack.member_P > 0).all() and (attack.non_member_Q < 0).all())
    True
    """
    ours_MF, theirs_KF = (
        array.astype(np.float64) for array in populations("u_lira", margin_MF, oracle_KF, least=2)
    )
    ours, theirs = _fits_without_each(ours_MF), _fits_without_each(theirs_KF)
    return Attack(
        (_log_density(ours_MF, *ours) - _log_density(ours_MF, *_paired(theirs, len(ours_MF)))).ravel(),
        (_log_density(theirs_KF, *_paired(ours, len(theirs_KF))) - _log_density(theirs_KF, *theirs)).ravel(),
    )


def _fits_without_each(margin_MF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations [M, F] over all models but one.

    Without m, of n margins with mean μ and squares S = Σ (m_i − μ)²: the mean is μ − (m − μ)/(n − 1), and the
    squares about it are S − (m − μ)²·n/(n − 1).
    """
    n = len(margin_MF)
    mean_F = margin_MF.mean(0)
    offset_MF = margin_MF - mean_F
    square_MF = offset_MF**2
    variance_MF = (square_MF.sum(0) - square_MF * (n / (n - 1))) / (n - 1)
    return mean_F - offset_MF / (n - 1), np.sqrt(np.maximum(variance_MF, LEAST_DEVIATION**2))


def _paired(fits: tuple[np.ndarray, np.ndarray], targets: int) -> tuple[np.ndarray, np.ndarray]:
    """For each target a fit from one model fewer, as many as its own population's fit has lost."""
    index = np.arange(targets) % len(fits[0])
    return fits[0][index], fits[1][index]


def _log_density(margin_MF: np.ndarray, mean_MF: np.ndarray, deviation_MF: np.ndarray) -> np.ndarray:
    """Log density of N(mean, deviation²), but for the constant that ratios lose."""
    return -np.log(deviation_MF) - ((margin_MF - mean_MF) / deviation_MF) ** 2 / 2
