"""Every difficulty score by name: what it is, where it comes from, and which way it points."""

from typing import Literal, NamedTuple

import numpy as np

from rumfast.errors import UsageError

Need = Literal["sweep", "original", "proxies", "embedding"]


class Score(NamedTuple):
    """A difficulty score of a training example.

    Attributes:
        label: for tables.
        definition: in one line.
        needs: what it is computed from: the sweep, the training of an ``original``, the population of
            ``proxies``, or the original's ``embedding``.
        low, high: its range; ``high`` depends on the number of classes where it is None.
        rises: with memorization? False where it falls. Distance counts as rising, from near to far as the
            paper orders it, although it need not go with memorization.
        source: where it was proposed.
    """

    label: str
    definition: str
    needs: Need
    low: float
    high: float | None
    rises: bool
    source: str


PROXIES = "Zhao & Triantafillou 2024, arXiv 2410.16516, section 3"
INF = float("inf")

SCORES: dict[str, Score] = {
    "memorization": Score(
        "memorization",
        "P(correct | trained on it) − P(correct | not), over the sweep's members",
        "sweep",
        -1.0,
        1.0,
        True,
        "Feldman & Zhang 2020, arXiv 2008.03703, section 2",
    ),
    "margin_memorization": Score(
        "margin memorization",
        "mean margin when trained on it less mean margin when not, over the sweep's members",
        "sweep",
        -INF,
        INF,
        True,
        "as memorization, of margins",
    ),
    "confidence": Score(
        "confidence", "mean over training epochs of p_y", "original", 0.0, 1.0, False, PROXIES
    ),
    "max_confidence": Score(
        "max confidence", "mean over training epochs of max_c p_c", "original", 0.0, 1.0, False, PROXIES
    ),
    "entropy": Score(
        "entropy", "mean over training epochs of −Σ p log p, nats", "original", 0.0, None, True, PROXIES
    ),
    "binary_accuracy": Score(
        "binary accuracy",
        "share of training epochs in which argmax_c p_c = y",
        "original",
        0.0,
        1.0,
        False,
        PROXIES,
    ),
    "curvature": Score(
        "loss curvature",
        "‖∇ₓL(x + hv) − ∇ₓL(x)‖₂ along the gradient's sign, h = 0.01 in pixels of [0, 1], mean over epochs",
        "proxies",
        0.0,
        INF,
        True,
        PROXIES,
    ),
    "holdout": Score(
        "holdout retraining",
        "½[KL(p‖q) + KL(q‖p)] between outputs before and after fine-tuning on held-out training examples",
        "proxies",
        0.0,
        INF,
        True,
        PROXIES,
    ),
    "distance": Score(
        "embedding distance",
        "‖φ − mean φ‖₂ in the first original's embeddings",
        "embedding",
        0.0,
        INF,
        True,
        "Zhao et al. 2024, arXiv 2406.01257, section 4.1",
    ),
}


def rising(name: str, score_N: np.ndarray) -> np.ndarray:
    """A score turned so that it rises with memorization: refined by it, groups go from low to high.

    Raises:
        UsageError: no such score.

    >>> rising("confidence", np.array([0.9, 0.1])).tolist()
    [-0.9, -0.1]
    """
    if name not in SCORES:
        raise UsageError(f"score: got {name!r}, expected one of {', '.join(SCORES)}")
    return score_N if SCORES[name].rises else -score_N
