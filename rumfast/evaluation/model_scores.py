"""Scores of one model on the three sets, and the metrics that need no more than these."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from rumfast.evaluation.membership import confidence, svc_mia
from rumfast.evaluation.outputs import of_kept_classes


class ModelScores(NamedTuple):
    """Scores of one model on the three sets; all in [0, 1], NaN where there is nothing to score."""

    accuracy_forget: float
    accuracy_retain: float
    accuracy_test: float
    mia: float  # share of the forget set that SVC-MIA on confidence calls non-member
    # Of the test examples whose class is forgotten as a whole, and of all others; NaN where no class is.
    accuracy_test_forgotten: float = float("nan")
    accuracy_test_kept: float = float("nan")

    def known(self) -> dict[str, float]:
        """The scores that there are, by name: all but NaN."""
        return {key: value for key, value in self._asdict().items() if not np.isnan(value)}


class ScoreArrays(NamedTuple):
    """:class:`ModelScores` of M models."""

    accuracy_forget: np.ndarray
    accuracy_retain: np.ndarray
    accuracy_test: np.ndarray
    mia: np.ndarray
    accuracy_test_forgotten: np.ndarray = np.array(np.nan)
    accuracy_test_kept: np.ndarray = np.array(np.nan)


def score_model(
    train_NC: np.ndarray,
    test_NC: np.ndarray,
    train_label_N: np.ndarray,
    test_label_N: np.ndarray,
    forget: np.ndarray,
    retain: np.ndarray,
    *,
    mia_examples: int = 5000,
) -> ModelScores:
    """Score one model from its logits.

    Args:
        train_NC, test_NC: logits of all training and test examples; labels beside them.
        forget, retain: example ids of the two sets.
        mia_examples: most members, and non-members, the attack is fitted on. Non-members are test examples
            of classes that are kept.
    """
    correct_N, test_correct_N = train_NC.argmax(1) == train_label_N, test_NC.argmax(1) == test_label_N
    confidence_N, test_confidence_N = confidence(train_NC, train_label_N), confidence(test_NC, test_label_N)
    kept_N = of_kept_classes(test_label_N, train_label_N[retain])
    by_class = () if kept_N.all() else (test_correct_N[~kept_N].mean(), test_correct_N[kept_N].mean())
    return ModelScores(
        float(correct_N[forget].mean()),
        float(correct_N[retain].mean()),
        float(test_correct_N.mean()),
        svc_mia(confidence_N[retain], test_confidence_N[kept_N], confidence_N[forget], most=mia_examples),
        *map(float, by_class),
    )


Scores = ModelScores | ScoreArrays


def _tow(keys: tuple[str, ...], ours: Scores, theirs: ScoreArrays) -> np.ndarray:
    """ToW of all pairs, [M, K]."""
    gaps = [np.abs(np.subtract.outer(getattr(ours, key), getattr(theirs, key))) for key in keys]
    return np.round(np.prod([1 - gap_MK for gap_MK in gaps], axis=0), 12)


def _own(key: str, ours: Scores, theirs: ScoreArrays) -> np.ndarray:
    return np.asarray(getattr(ours, key))


# Metrics that need no more than a model's scores: those of an evaluation
SCORED: dict[str, Callable[[Scores, ScoreArrays], np.ndarray]] = {
    "tow": partial(_tow, ("accuracy_forget", "accuracy_retain", "accuracy_test")),
    "tow_mia": partial(_tow, ("mia", "accuracy_retain", "accuracy_test")),
    **{key: partial(_own, key) for key in ModelScores._fields},
}


def scored_by(scores: ModelScores) -> tuple[str, ...]:
    """Metrics of ``SCORED`` that apply: those by class only where a class is forgotten as a whole."""
    absent = set(ModelScores._fields) - scores.known().keys()
    return tuple(name for name in SCORED if name not in absent)


def compare(metric: str, model: ModelScores, oracles: Sequence[ModelScores]) -> float:
    """Value of a metric of ``SCORED`` for a model against oracles (the mean where it compares pairs)."""
    theirs = ScoreArrays(*map(np.array, zip(*oracles, strict=True)))
    return float(np.mean(SCORED[metric](model, theirs)))
