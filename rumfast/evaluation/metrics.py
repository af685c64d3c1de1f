"""Every metric by name: of one model, of pairs of models, and of whole populations held against oracles."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from rumfast.evaluation import sources
from rumfast.evaluation.divergence import disagreement, js_divergence
from rumfast.evaluation.membership import confidence, svc_mia
from rumfast.evaluation.outputs import Outputs
from rumfast.evaluation.pairing import Pairing
from rumfast.evaluation.roc import Attack, auc, tpr_at

Kind = Literal["model", "pair", "population"]


class ModelScores(NamedTuple):
    """What one model does on the three sets; all in [0, 1]."""

    accuracy_forget: float
    accuracy_retain: float
    accuracy_test: float
    mia: float  # share of the forget set that SVC-MIA on confidence calls non-member


class ScoreArrays(NamedTuple):
    """:class:`ModelScores` of M models."""

    accuracy_forget: np.ndarray
    accuracy_retain: np.ndarray
    accuracy_test: np.ndarray
    mia: np.ndarray


class Metric(NamedTuple):
    """A number that says how near models are to oracles.

    ``function`` depends on ``kind``: *model*, from :class:`Outputs` of M models to [M]; *pair*, from M models
    and K oracles to [M, K]; *population*, from a :class:`Pairing` to one number.
    """

    label: str
    definition: str
    source: str
    better: Literal["higher", "lower", "oracle"]  # "oracle": the oracle's value is the goal
    range: tuple[float, float | None]
    kind: Kind
    function: Callable[..., Any]
    membership: bool = False  # does it ask whether the forget set looks as if trained on?


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


def compare(metric: str, model: ModelScores, oracles: Sequence[ModelScores]) -> float:
    """Value of a metric of ``SCORED`` for a model against oracles (the mean where it compares pairs)."""
    theirs = ScoreArrays(*map(np.array, zip(*oracles, strict=True)))
    return float(np.mean(SCORED[metric](model, theirs)))


def scores_of(outputs: Outputs) -> ScoreArrays:
    """Scores of M models."""
    return ScoreArrays(
        outputs.forget.accuracy_M,
        outputs.retain.accuracy_M,
        outputs.test.accuracy_M,
        outputs.mia["confidence"],
    )


def _pairs(name: str) -> Callable[[Outputs, Outputs], np.ndarray]:
    return lambda ours, theirs: SCORED[name](scores_of(ours), scores_of(theirs))


def _feature(name: str) -> Callable[[Outputs], np.ndarray]:
    return lambda outputs: outputs.mia[name]


def _measured(name: str) -> Callable[[Outputs], np.ndarray]:
    return lambda outputs: outputs.extra[name]


def _attack(which: str, reduce: Callable[[Attack], float]) -> Callable[[Pairing], float]:
    return lambda pairing: reduce(getattr(pairing, which))


def _accuracy(which: str) -> Metric:
    return Metric(
        f"{which} accuracy",
        f"share of the {which} set classified as labelled",
        sources.TOW,
        "oracle",
        (0, 1),
        "model",
        lambda outputs: getattr(outputs, which).accuracy_M,
    )


def _mia(feature: str, label: str, of: str | None = None) -> Metric:
    of = of or feature.replace("_", " ")
    return Metric(
        label,
        f"share of the forget set that an SVC on {of}, fitted on retain and test examples, calls non-member",
        sources.SVC_MIA,
        "oracle",
        (0, 1),
        "model",
        _feature(feature),
        membership=True,
    )


def _klom(which: str, statistic: str, reduce: Callable[[np.ndarray], float]) -> Metric:
    return Metric(
        f"KLoM {which}" + ("" if statistic == "mean" else f" {statistic}"),
        f"{statistic} over the {which} set of the divergence KL(models ‖ oracles) between histograms of an "
        "example's margin, in nats",
        sources.KLOM,
        "lower",
        (0, None),
        "population",
        lambda pairing: reduce(pairing.klom(which)),
        membership=which == "forget",
    )


def _roc(which: str, label: str, definition: str, source: str) -> dict[str, Metric]:
    def entry(
        name: str,
        what: str,
        reduce: Callable[[Attack], float],
        better: Literal["lower", "oracle"] = "lower",
    ) -> Metric:
        text = f"{what} of an attack that tells models from oracles on the forget set: {definition}"
        return Metric(
            f"{label} {name}", text, source, better, (0, 1), "population", _attack(which, reduce), True
        )

    either = "false positives, by scores above or below a threshold, whichever finds more,"
    return {
        # An AUC below the oracles' gives as much away: its opposite is an attack.
        f"{which}_auc": entry("AUC", "area under the ROC curve", auc, "oracle"),
        f"{which}_tpr_1": entry("TPR@1%", f"true positive rate at 1 % {either}", partial(tpr_at, fpr=0.01)),
        f"{which}_tpr_01": entry(
            "TPR@0.1%", f"true positive rate at 0.1 % {either}", partial(tpr_at, fpr=0.001)
        ),
    }


MEASURED = ("entanglement", "relearning")  # on each model, beside its logits
METRICS: Mapping[str, Metric] = {
    "tow": Metric(
        "ToW",
        "product over forget, retain and test set of 1 − |accuracy − oracle's accuracy|, mean over oracles",
        sources.TOW,
        "higher",
        (0, 1),
        "pair",
        _pairs("tow"),
    ),
    "tow_mia": Metric(
        "ToW-MIA",
        "ToW with the forget set's accuracy replaced by the SVC-MIA share",
        sources.TOW,
        "higher",
        (0, 1),
        "pair",
        _pairs("tow_mia"),
        membership=True,
    ),
    "accuracy_forget": _accuracy("forget"),
    "accuracy_retain": _accuracy("retain"),
    "accuracy_test": _accuracy("test"),
    "mia": _mia("confidence", "MIA"),
    "mia_correctness": _mia("correctness", "MIA correctness"),
    "mia_entropy": _mia("entropy", "MIA entropy"),
    "mia_modified_entropy": _mia("modified_entropy", "MIA modified entropy"),
    "mia_probabilities": _mia("probabilities", "MIA probabilities", "all probabilities, the label's first"),
    **{
        f"disagreement_{which}": Metric(
            f"disagreement {which}",
            f"share of the {which} set that a model and an oracle classify differently, mean over oracles",
            sources.DISAGREEMENT,
            "lower",
            (0, 1),
            "pair",
            lambda ours, theirs, which=which: disagreement(
                getattr(ours, which).prediction_MN, getattr(theirs, which).prediction_MN
            ),
        )
        for which in ("forget", "test")
    },
    "js_forget": Metric(
        "JS forget",
        "Jensen-Shannon divergence between a model's and an oracle's probabilities on the forget set, in "
        "nats, mean over examples and oracles",
        sources.JS,
        "lower",
        (0, float(np.log(2))),
        "pair",
        lambda ours, theirs: js_divergence(ours.probability_MFC, theirs.probability_MFC),
    ),
    "klom_forget": _klom("forget", "mean", lambda klom_N: float(klom_N.mean())),
    "klom_forget_p95": _klom("forget", "P95", lambda klom_N: float(np.quantile(klom_N, 0.95))),
    "klom_retain": _klom("retain", "mean", lambda klom_N: float(klom_N.mean())),
    "klom_test": _klom("test", "mean", lambda klom_N: float(klom_N.mean())),
    **_roc(
        "u_lira", "U-LiRA", "likelihood ratio of Gaussians fitted to each example's margins", sources.U_LIRA
    ),
    **_roc(
        "rmia",
        "RMIA",
        "share of test examples of kept classes whose probability over ½[(1 + a)·p + 1 − a], p its mean "
        "over oracles, is exceeded by the example's, and by how much where all or none are; a is chosen on "
        "the oracles alone",
        sources.RMIA,
    ),
    "forgetting_quality": Metric(
        "forgetting quality",
        "mean over the forget set of 2^−bin of ε in bins of 0.5, where ε is what the best threshold attack "
        "on an example's margins shows about privacy",
        sources.COMPETITION,
        "higher",
        (0, 1),
        "population",
        lambda pairing: pairing.quality,
        membership=True,
    ),
    "final_score": Metric(
        "final score",
        "forgetting quality times the ratios of retain and test accuracy to the oracles'",
        sources.COMPETITION,
        "higher",
        (0, None),
        "population",
        lambda pairing: pairing.final_score,
    ),
    "entanglement": Metric(
        "ES after",
        "entanglement score of forget and retain set in the model's own embedding space",
        sources.ENTANGLEMENT,
        "oracle",
        (0, None),
        "model",
        _measured("entanglement"),
    ),
    "relearning": Metric(
        "relearning",
        "steps of fine-tuning on the forget set until its accuracy is 0.95 of the originals'",
        sources.RELEARNING,
        "oracle",
        (0, None),
        "model",
        _measured("relearning"),
        membership=True,
    ),
}  # fmt: skip
