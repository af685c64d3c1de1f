"""Verdicts on a run's plans: null bands, findings and power, from the scores of a few models of each kind."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from rumfast.data import Dataset, Split
from rumfast.evaluation import (
    METRICS,
    Interval,
    ModelScores,
    NullBand,
    compare,
    null_band,
    score_model,
    t_interval,
)
from rumfast.evaluation.bands import interval_dict, least_deviation
from rumfast.evaluation.guards import LEAST_UTILITY, useless_text
from rumfast.evaluation.model_scores import scored_by
from rumfast.evaluation.outputs import of_kept_classes
from rumfast.evaluation.verdicts import (
    Finding,
    conclude,
    has_power,
    judge_models,
    models_to_tell,
    without_power,
)
from rumfast.sweeps import Population


def score_population(
    population: Population, members: int, data: Dataset, split: Split, mia_examples: int
) -> list[ModelScores]:
    """Scores of a population's models, from their stored logits."""
    found = (population.outputs(index) for index in range(members))
    return [score_logits(outputs["train"], outputs["test"], data, split, mia_examples) for outputs in found]


def score_logits(
    train_NC: np.ndarray, test_NC: np.ndarray, data: Dataset, split: Split, mia_examples: int = 5000
) -> ModelScores:
    return score_model(
        train_NC,
        test_NC,
        data.train.label_N,
        data.test.label_N,
        split.forget,
        split.retain,
        mia_examples=mia_examples,
    )


def bands_of(oracles: Sequence[ModelScores], sizes: Mapping[str, int]) -> dict[str, NullBand]:
    """Null band of every metric that applies.

    Args:
        sizes: of examples that each metric is a share of, see ``set_sizes``.
    """
    return {
        name: null_band(
            oracles,
            partial(compare, name),
            METRICS[name].range,
            least_deviation(sizes[name]),
            pairs=METRICS[name].kind == "pair",
        )
        for name in scored_by(oracles[0])
    }


def set_sizes(data: Dataset, split: Split) -> dict[str, int]:
    """Examples that each metric of an evaluation is a share of; ToW is as fine as its smallest set."""
    kept = int(of_kept_classes(data.test.label_N, data.train.label_N[split.retain]).sum())
    forget, retain, test = len(split.forget), len(split.retain), len(data.test)
    return {
        "tow": min(forget, retain, test),
        "tow_mia": min(forget, retain, test),
        "accuracy_forget": forget,
        "accuracy_retain": retain,
        "accuracy_test": test,
        "mia": forget,
        "accuracy_test_forgotten": max(1, test - kept),
        "accuracy_test_kept": kept,
    }


def findings_of(
    models: Sequence[ModelScores], oracles: Sequence[ModelScores], bands: Mapping[str, NullBand]
) -> dict[str, tuple[Interval, Finding]]:
    """Every metric of a population: its interval over seeds, and the verdict against the null band."""
    found = {}
    for name, band in bands.items():
        values = [compare(name, model, oracles) for model in models]
        found[name] = t_interval(values, METRICS[name].range), judge_models(values, band, METRICS[name])
    return found


def judged(
    found: Mapping[str, tuple[Interval, Finding]],
    originals: Mapping[str, tuple[Interval, Finding]],
    further: Sequence[str] = (),
) -> dict[str, Any]:
    """A plan's metrics and verdict as JSON, where metrics without power over the originals support nothing.

    ``inside``: the mean lies in the null band, or beyond its good end where the metric has one.

    Args:
        further: other reasons why the plan differs: lost utility, earlier requests.
    """
    untold = {name: finding for name, (_, finding) in originals.items()}
    own = {name: finding for name, (_, finding) in found.items()}
    final = without_power(own, untold, {name: None for name in own})
    verdict, reasons = conclude(final, METRICS)
    if further:
        verdict, reasons = "differs", (*(reasons if verdict == "differs" else ()), *further)
    metrics = {
        name: interval_dict(interval)
        | {
            "inside": own[name].verdict == "inside",
            "verdict": final[name].verdict,
            "over_forgotten": final[name].over_forgotten,
        }
        for name, (interval, _) in found.items()
    }
    return {"metrics": metrics, "verdict": verdict, "reasons": list(reasons)}


def lost_utility(models: Sequence[ModelScores], oracles: Sequence[ModelScores]) -> list[str]:
    """The reason, if there is one, why a plan differs by its usefulness.

    Utility is (RA_u / RA_r) · (TA_u / TA_r) as in an audit, with the test accuracy on kept classes.
    """
    ours, theirs = (np.mean([_useful(one) for one in each], axis=0) for each in (models, oracles))
    with np.errstate(invalid="ignore", divide="ignore"):
        utility = float(np.prod(ours / theirs))
    return [] if utility >= LEAST_UTILITY else [useless_text(utility)]


def _useful(one: ModelScores) -> tuple[float, float]:
    kept = one.accuracy_test_kept
    return one.accuracy_retain, one.accuracy_test if np.isnan(kept) else kept


def power_of(
    originals: Mapping[str, tuple[Interval, Finding]], bands: Mapping[str, NullBand]
) -> dict[str, dict[str, Any]]:
    """Power of each metric: if it tells the originals from retrained models, or how many models would."""
    found = {name: finding for name, (_, finding) in originals.items()}
    return {
        name: {
            "power": has_power(name, found),
            "needed": None
            if found[name].verdict == "outside"
            else models_to_tell(interval.values, bands[name], METRICS[name]),
        }
        for name, (interval, _) in originals.items()
    }


def accuracies_of(models: Sequence[ModelScores]) -> dict[str, dict[str, Any]]:
    """Scores of reference models with intervals over seeds."""
    return {
        key: interval_dict(t_interval([getattr(model, key) for model in models], (0, 1)))
        for key in scored_by(models[0])
        if key in ModelScores._fields
    }
