"""How far two populations of models lie apart: in what they predict, and in how sure they are."""

import numpy as np
from scipy.special import entr

from rumfast.errors import DataError

CELLS_AT_ONCE = 2**18  # probabilities that are worked on at a time: 2 MiB of float64


def populations(
    name: str, audited: np.ndarray, oracles: np.ndarray, *, least: int = 1, values: str = "margins"
) -> tuple[np.ndarray, np.ndarray]:
    """Two populations' values on the same examples, checked: [M, …] and [K, …].

    Args:
        name: of the metric, for the message.
        least: fewest models of each kind.
        values: what the arrays hold, for the message.

    Raises:
        DataError: shapes that do not fit, nothing to compare, too few models, or a value that is not finite.

    >>> populations("klom", np.array([[1.0, np.nan]]), np.array([[0.0, 2.0]]))
    Traceback (most recent call last):
    rumfast.errors.DataError: klom: 1 of 2 margins of the audited models is not finite, first nan at [0, 1]
    """
    audited, oracles = np.asarray(audited), np.asarray(oracles)
    if audited.ndim < 2 or audited.shape[1:] != oracles.shape[1:] or not audited[:1].size:
        raise DataError(
            f"{name}: got {values} of shapes {audited.shape} and {oracles.shape}, "
            "expected models × examples, with the same examples, at least one"
        )
    for who, array in (("audited models", audited), ("oracles", oracles)):
        if len(array) < least:
            raise DataError(f"{name}: got {len(array)} {who}, expected at least {least}")
        finite = np.isfinite(array)
        if not finite.all():
            wrong = np.argwhere(~finite)
            raise DataError(
                f"{name}: {len(wrong)} of {array.size} {values} of the {who} "
                f"{'is' if len(wrong) == 1 else 'are'} not finite, "
                f"first {array[tuple(wrong[0])]} at {wrong[0].tolist()}"
            )
    return audited, oracles


def disagreement(prediction_MN: np.ndarray, oracle_KN: np.ndarray) -> np.ndarray:
    """Share of examples that a model and an oracle classify differently, for every pair.

    d(m, k) = mean_n [ŷ_m(n) ≠ ŷ_k(n)]: the churn of Milani Fard et al. 2016. Two retrains differ
    as well, from seed to seed, so the value means something beside that of oracles among themselves.

    Args:
        prediction_MN, oracle_KN: predicted classes of M models and K oracles on the same N examples.

    Returns:
        [M, K] in [0, 1].

    Raises:
        DataError: shapes that do not fit, or no model or example.

    >>> disagreement(np.array([[0, 1, 2, 2]]), np.array([[0, 1, 2, 2], [0, 0, 0, 2]])).tolist()
    [[0.0, 0.5]]
    """
    prediction_MN, oracle_KN = populations("disagreement", prediction_MN, oracle_KN, values="predictions")
    return np.stack([(mine_N != oracle_KN).mean(1) for mine_N in prediction_MN])


def js_divergence(probability_MFC: np.ndarray, oracle_KFC: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of a model's probabilities from an oracle's, for every pair.

    The mean over examples of JS(p, q) = H((p + q)/2) − (H(p) + H(q))/2, H the entropy (Lin 1991,
    section IV; between unlearned and retrained models in Chundawat et al. 2023, arXiv 2205.08096, section 5).

    Args:
        probability_MFC, oracle_KFC: class probabilities of M models and K oracles on the same F examples.

    Returns:
        [M, K] in nats, in [0, ln 2]; 0 where all probabilities are equal, ln 2 where no class is shared.

    Raises:
        DataError: shapes that do not fit, no model or example, or rows that are not probabilities.

    >>> sure, other = np.array([[[1.0, 0.0]]]), np.array([[[0.0, 1.0]], [[1.0, 0.0]]])
    >>> js_divergence(sure, other).round(4).tolist()
    [[0.6931, 0.0]]
    """
    both = populations("js_divergence", probability_MFC, oracle_KFC, values="probabilities")
    if both[0].ndim != 3:
        raise DataError(f"js_divergence: got shape {both[0].shape}, expected models × examples × classes")
    for array in both:
        if array.min() < 0 or np.abs(array.sum(2, dtype=np.float64) - 1).max() > 1e-3:
            raise DataError("js_divergence: got values below 0 or rows that do not sum to 1")
    examples = both[0].shape[1]
    ours_ML, theirs_KL = (array.reshape(len(array), -1) for array in both)
    width = max(1, CELLS_AT_ONCE // len(theirs_KL))
    total_MK = np.zeros((len(ours_ML), len(theirs_KL)))
    for start in range(0, ours_ML.shape[1], width):
        p_ML, q_KL = (array[:, start : start + width].astype(np.float64) for array in (ours_ML, theirs_KL))
        own_M, own_K = entr(p_ML).sum(1), entr(q_KL).sum(1)
        for row, p_L in enumerate(p_ML):
            total_MK[row] += entr((p_L + q_KL) / 2).sum(1) - (own_M[row] + own_K) / 2
    # Rounding may leave the ends by 1e-16.
    return np.clip(total_MK / examples, 0, np.log(2))
