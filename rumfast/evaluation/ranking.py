"""Do audits agree on which algorithm forgets best?"""

from collections.abc import Sequence

import numpy as np

from rumfast.evaluation.metrics import Metric


def badness(values_PSQ: np.ndarray, null_mean_Q: np.ndarray, metrics: Sequence[Metric]) -> np.ndarray:
    """How far each population is from the goal by each metric, [P, S, Q]; larger is worse.

    Args:
        values_PSQ: of P populations, over S halves.
        null_mean_Q: what oracles get: the goal of metrics without a good end.
    """
    result_PSQ = np.empty_like(values_PSQ)
    for q, metric in enumerate(metrics):
        value_PS = values_PSQ[..., q]
        if metric.better == "oracle":
            result_PSQ[..., q] = np.abs(value_PS - null_mean_Q[q])
        else:
            result_PSQ[..., q] = value_PS if metric.better == "lower" else -value_PS
    return result_PSQ


def rank_agreement(badness_PSQ: np.ndarray) -> np.ndarray:
    """Kendall's τ-b between the orders in which metrics put populations, [S, Q, Q] in [−1, 1].

    τ-b = Σ sign(a_i − a_j) sign(b_i − b_j) / √(pairs that a orders · pairs that b orders) over pairs i < j
    (Kendall 1945); NaN for a metric that puts all populations level.

    >>> rank_agreement(np.array([[[1.0, 3.0]], [[2.0, 2.0]], [[3.0, 1.0]]]))[0, 0]
    array([ 1., -1.])
    """
    one_I, other_I = np.triu_indices(len(badness_PSQ), 1)
    sign_ISQ = np.sign(badness_PSQ[one_I] - badness_PSQ[other_I])
    agreed_SQQ = np.einsum("isq,isr->sqr", sign_ISQ, sign_ISQ)
    ordered_SQ = np.abs(sign_ISQ).sum(0)
    scale_SQQ = np.sqrt(ordered_SQ[:, :, None] * ordered_SQ[:, None, :])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale_SQQ > 0, agreed_SQQ / scale_SQQ, np.nan)
