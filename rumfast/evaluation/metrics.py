"""The metrics of a report: scores of one model, and its distance from oracles."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rumfast.evaluation.membership import confidence, svc_mia
from rumfast.evaluation.tow import tug_of_war


class ModelScores(NamedTuple):
    """What one model does on the three sets; all in [0, 1]."""

    accuracy_forget: float
    accuracy_retain: float
    accuracy_test: float
    mia: float  # share of the forget set that SVC-MIA on confidence calls non-member


class Metric(NamedTuple):
    """A number in [0, 1] for a model, given the oracles it is held against."""

    label: str
    definition: str
    better: str  # "higher", or "oracle" where the oracle's value is the goal
    function: Callable[[ModelScores, Sequence[ModelScores]], float]


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
        mia_examples: most members, and non-members, the attack is fitted on.
    """
    correct_N = train_NC.argmax(1) == train_label_N
    confidence_N = confidence(train_NC, train_label_N)
    return ModelScores(
        accuracy_forget=float(correct_N[forget].mean()),
        accuracy_retain=float(correct_N[retain].mean()),
        accuracy_test=float((test_NC.argmax(1) == test_label_N).mean()),
        mia=svc_mia(
            confidence_N[retain], confidence(test_NC, test_label_N), confidence_N[forget], most=mia_examples
        ),
    )


def compare(metric: str, model: ModelScores, oracles: Sequence[ModelScores]) -> float:
    """Value of ``metric`` for a model against oracles (the mean over oracles where it compares pairs)."""
    return METRICS[metric].function(model, oracles)


def _tow(keys: tuple[str, ...]) -> Callable[[ModelScores, Sequence[ModelScores]], float]:
    def function(model: ModelScores, oracles: Sequence[ModelScores]) -> float:
        ours = {key: getattr(model, key) for key in keys}
        return float(
            np.mean([tug_of_war(ours, {key: getattr(oracle, key) for key in keys}) for oracle in oracles])
        )

    return function


def _own(key: str) -> Callable[[ModelScores, Sequence[ModelScores]], float]:
    return lambda model, oracles: getattr(model, key)


METRICS: dict[str, Metric] = {
    "tow": Metric(
        "ToW",
        "product over forget, retain and test set of 1 − |accuracy − oracle's accuracy|, mean over oracles",
        "higher",
        _tow(("accuracy_forget", "accuracy_retain", "accuracy_test")),
    ),
    "tow_mia": Metric(
        "ToW-MIA",
        "ToW with the forget set's accuracy replaced by the SVC-MIA share",
        "higher",
        _tow(("mia", "accuracy_retain", "accuracy_test")),
    ),
    "accuracy_forget": Metric(
        "forget accuracy", "share of the forget set classified as labelled", "oracle", _own("accuracy_forget")
    ),
    "accuracy_retain": Metric(
        "retain accuracy", "share of the retain set classified as labelled", "oracle", _own("accuracy_retain")
    ),
    "accuracy_test": Metric(
        "test accuracy", "share of the test set classified as labelled", "oracle", _own("accuracy_test")
    ),
    "mia": Metric(
        "MIA",
        "share of the forget set that an SVC on confidence, fitted on retain and test examples, "
        "calls non-member",
        "oracle",
        _own("mia"),
    ),
}
