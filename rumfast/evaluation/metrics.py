"""Every metric by name: of one model, of pairs of models, and of whole populations held against oracles."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from rumfast.evaluation import sources
from rumfast.evaluation.divergence import disagreement, js_divergence
from rumfast.evaluation.model_scores import SCORED, ScoreArrays
from rumfast.evaluation.outputs import Outputs, of_kept_classes
from rumfast.evaluation.pairing import Pairing
from rumfast.evaluation.roc import Attack, auc, tpr_at

Kind = Literal["model", "pair", "population"]


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
    forgotten: Literal["lower", "higher"] | None = None  # where values lie once more is forgotten, if one-way


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


def _accuracy(which: str, forgotten: Literal["lower"] | None = None) -> Metric:
    return Metric(
        f"{which} accuracy",
        f"share of the {which} set classified as labelled",
        sources.TOW,
        "oracle",
        (0, 1),
        "model",
        lambda outputs: getattr(outputs, which).accuracy_M,
        forgotten=forgotten,
    )


def _test_accuracy(kept: bool) -> Metric:
    """Accuracy on the test examples of the classes that are kept, or of those forgotten as a whole."""
    which = "kept" if kept else "forgotten"

    def accuracy(outputs: Outputs) -> np.ndarray:
        kept_N = of_kept_classes(outputs.test.label_N, outputs.retain.label_N)
        return outputs.test.correct_MN[:, kept_N == kept].mean(1)

    return _accuracy("test", None if kept else "lower")._replace(
        label=f"test accuracy, {which} classes",
        definition=f"share of the test examples of {which} classes classified as labelled",
        function=accuracy,
    )


def _mia(feature: str, label: str, of: str | None = None) -> Metric:
    of = of or feature.replace("_", " ")
    return Metric(
        label,
        f"share of the forget set that an SVC on {of}, fitted on retain examples and test examples of kept "
        "classes, calls non-member",
        sources.SVC_MIA,
        "oracle",
        (0, 1),
        "model",
        _feature(feature),
        membership=True,
        forgotten=None if feature == "entropy" else "higher",  # entropy does not see the label
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
        # U-LiRA is fitted to the models it attacks: whichever way they differ from oracles, its AUC rises.
        forgotten: Literal["lower"] | None = "lower" if (which, better) == ("rmia", "oracle") else None
        function = _attack(which, reduce)
        return Metric(
            f"{label} {name}", text, source, better, (0, 1), "population", function, True, forgotten
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
BY_CLASS = ("accuracy_test_forgotten", "accuracy_test_kept")  # where a class is forgotten as a whole
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
    "accuracy_forget": _accuracy("forget", "lower"),
    "accuracy_retain": _accuracy("retain"),
    "accuracy_test": _accuracy("test"),
    "accuracy_test_forgotten": _test_accuracy(kept=False),
    "accuracy_test_kept": _test_accuracy(kept=True),
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
        forgotten="higher",
    ),
}  # fmt: skip


def applies(name: str, outputs: Outputs) -> bool:
    """True if a metric can be computed of these outputs: it was measured, or there is something to score."""
    if name in BY_CLASS:
        return not of_kept_classes(outputs.test.label_N, outputs.retain.label_N).all()
    return name not in MEASURED or name in outputs.extra


def definitions(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The meaning of metrics, as JSON."""
    return {
        name: {key: value for key, value in METRICS[name]._asdict().items() if key != "function"}
        | {"range": list(METRICS[name].range)}
        for name in names
    }
