"""KLoM: does an example's margin vary over unlearned models as it does over oracles?"""

import numpy as np
from scipy.special import rel_entr

from rumfast.errors import UsageError
from rumfast.evaluation.divergence import populations

EXAMPLES_AT_ONCE = 2048  # margins of a few dozen models, and their histograms, stay in the L2 cache


def klom(
    margin_MN: np.ndarray, oracle_KN: np.ndarray, *, bins: int = 20, clip: float = 100.0, floor: float = 1e-5
) -> np.ndarray:
    """KL divergence of each example's margins over M models from those over K oracles.

    KLoM(n) = Σ_b p_b log(p_b / q_b), p and q the two histograms of example n's margin over equal bins from
    the least to the greatest of all M + K margins, the maximum in the last bin; q_b is at least ``floor``
    where p_b > 0, and q is scaled to sum to 1 again (Georgiev et al. 2024, arXiv 2410.23232, section 2, and
    Rinberg et al. 2026, arXiv 2602.16400; the scaling is their code's, and keeps the value from falling below
    0).

    Two samples of one distribution are not at 0: of normal margins the mean is 0.35 and the 95th percentile
    0.68 with 100 models of each kind (0.34 and 0.66 where, as in that code, the maximum falls out of the last
    bin), 1.7 and 3.1 with 32. Compare with the value of oracles among themselves.

    Args:
        margin_MN, oracle_KN: margins in nats of M models and K oracles on the same N examples.
        bins: of each histogram.
        clip: margins beyond ±clip count as ±clip.
        floor: least probability of a bin that models fall into and oracles do not.

    Returns:
        [N] in nats, 0 at least. Without a shared bin it is log(1/floor) − H(p) + log(1 + floor · bins of p),
        at most 11.51 for the floor of 1e-5.

    Raises:
        DataError: shapes that do not fit, no model or example, or a margin that is not finite.
        UsageError: no bin, or a clip or floor that is not positive.

    >>> klom(np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]])).tolist()
    [0.0]
    >>> klom(np.array([[9.0], [9.5]]), np.array([[1.0], [1.5]])).round(3).tolist()  # 11.513 − log 2
    [10.82]
    """
    margin_MN, oracle_KN = populations("klom", margin_MN, oracle_KN)
    if bins < 1 or not clip > 0 or not 0 < floor < 1:
        raise UsageError(
            f"klom: got bins {bins}, clip {clip}, floor {floor}; expected at least 1, above 0, within (0, 1)"
        )
    found = []
    for start in range(0, margin_MN.shape[1], EXAMPLES_AT_ONCE):
        block = slice(start, start + EXAMPLES_AT_ONCE)
        ours, theirs = (
            np.clip(array[:, block].astype(np.float64), -clip, clip) for array in (margin_MN, oracle_KN)
        )
        p_BH, q_BH = _histograms(ours, theirs, bins)
        floored_BH = np.where(p_BH > 0, np.maximum(q_BH, floor), q_BH)
        # The scaling: q sums to 1 and what the floor has added to it.
        scale_B = 1 + (floored_BH - q_BH).sum(1)
        found.append(rel_entr(p_BH, floored_BH).sum(1) + np.log(scale_B))
    # Nearly equal histograms may leave rounding below 0.
    return np.maximum(np.concatenate(found), 0)


def _histograms(ours_MB: np.ndarray, theirs_KB: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares [B, bins] of both populations in the bins of each example's joint range."""
    low_B = np.minimum(ours_MB.min(0), theirs_KB.min(0))
    width_B = np.maximum(ours_MB.max(0), theirs_KB.max(0)) - low_B
    width_B[width_B == 0] = 1  # one margin for all: everything falls into the first bin
    first_B = np.arange(len(low_B)) * bins

    def shares(margin: np.ndarray) -> np.ndarray:
        place = np.minimum(((margin - low_B) / width_B * bins).astype(np.intp), bins - 1) + first_B
        counts = np.bincount(place.ravel(), minlength=len(low_B) * bins)
        return counts.reshape(-1, bins) / len(margin)

    return shares(ours_MB), shares(theirs_KB)
