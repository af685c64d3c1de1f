"""What a population of models does on forget, retain and test set, kept small enough to hold all of it."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import softmax

from rumfast.errors import DataError
from rumfast.evaluation.membership import FEATURES, features, svc_mia
from rumfast.kernels.margins import margins


class SetOutputs(NamedTuple):
    """M models on N examples."""

    margin_MN: np.ndarray  # of the label, z_y − logsumexp of the others, nats
    prediction_MN: np.ndarray
    label_N: np.ndarray

    @property
    def correct_MN(self) -> np.ndarray:
        """Which predictions are right."""
        return self.prediction_MN == self.label_N

    @property
    def accuracy_M(self) -> np.ndarray:
        """Share of right predictions of each model."""
        return self.correct_MN.mean(1)


class Outputs(NamedTuple):
    """M models on the three sets; row m of everything is model m."""

    forget: SetOutputs
    retain: SetOutputs
    test: SetOutputs
    probability_MFC: np.ndarray  # softmax on the forget set
    mia: Mapping[str, np.ndarray]  # by feature: shares [M] of the forget set that SVC-MIA calls non-member
    extra: Mapping[str, np.ndarray]  # measured on each model beside its logits [M], by metric

    @property
    def models(self) -> int:
        """M."""
        return len(self.probability_MFC)

    def take(self, rows: np.ndarray) -> "Outputs":
        """The models ``rows``, in that order."""

        def some(outputs: SetOutputs) -> SetOutputs:
            return SetOutputs(outputs.margin_MN[rows], outputs.prediction_MN[rows], outputs.label_N)

        return Outputs(
            some(self.forget),
            some(self.retain),
            some(self.test),
            self.probability_MFC[rows],
            {name: value_M[rows] for name, value_M in self.mia.items()},
            {name: value_M[rows] for name, value_M in self.extra.items()},
        )


def of_kept_classes(test_label_N: np.ndarray, retain_label_R: np.ndarray) -> np.ndarray:
    """True [N] for test examples of classes that some retain example has; for all where none is of these.

    Oracles know nothing of a class that was forgotten as a whole: its test examples are no non-members to
    compare forgotten examples with.

    >>> of_kept_classes(np.array([0, 1, 2, 1]), np.array([2, 0, 0])).tolist()
    [True, False, True, False]
    """
    kept_N = np.isin(test_label_N, retain_label_R)
    return kept_N if kept_N.any() else np.ones_like(kept_N)


def _margins(logits_NC: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    found = margins(torch.from_numpy(logits_NC), torch.from_numpy(label_N), ("margin",)).margin
    assert found is not None
    return found.numpy()


def collect(
    logits: Iterable[tuple[np.ndarray, np.ndarray]],
    train_label_N: np.ndarray,
    test_label_N: np.ndarray,
    forget: np.ndarray,
    retain: np.ndarray,
    *,
    mia_examples: int = 5000,
    extra: Mapping[str, np.ndarray] | None = None,
) -> Outputs:
    """Reduce models' logits, one model after another, to what metrics read.

    Args:
        logits: of each model, on all training examples [N, C] and on all test examples.
        forget, retain: example ids.
        mia_examples: most members, and non-members, that each attack is fitted on.

    Raises:
        DataError: no model, or logits that are not finite.
    """
    sets = (("forget", forget, train_label_N), ("retain", retain, train_label_N))
    margin_sets: dict[str, list[np.ndarray]] = {"forget": [], "retain": [], "test": []}
    predictions: dict[str, list[np.ndarray]] = {"forget": [], "retain": [], "test": []}
    probabilities, shares = [], []
    for number, (train_NC, test_NC) in enumerate(logits):
        if not (np.isfinite(train_NC).all() and np.isfinite(test_NC).all()):
            raise DataError(f"collect: model {number} has logits that are not finite")
        chosen = {name: (train_NC[ids], label_N[ids]) for name, ids, label_N in sets}
        chosen["test"] = (test_NC, test_label_N)
        for name, (logits_NC, label_N) in chosen.items():
            margin_sets[name].append(_margins(logits_NC, label_N))
            predictions[name].append(logits_NC.argmax(1).astype(np.int32))
        probabilities.append(softmax(chosen["forget"][0].astype(np.float32), axis=1))
        known = {name: features(*pair) for name, pair in chosen.items()}
        shares.append(
            [
                svc_mia(known["retain"][f], known["test"][f], known["forget"][f], most=mia_examples)
                for f in FEATURES
            ]
        )
    if not shares:
        raise DataError("collect: no models")
    labels = {"forget": train_label_N[forget], "retain": train_label_N[retain], "test": test_label_N}
    forget_set, retain_set, test_set = (
        SetOutputs(np.stack(margin_sets[name]), np.stack(predictions[name]), labels[name])
        for name in margin_sets
    )
    mia = dict(zip(FEATURES, np.array(shares).T, strict=True))
    return Outputs(forget_set, retain_set, test_set, np.stack(probabilities), mia, dict(extra or {}))
