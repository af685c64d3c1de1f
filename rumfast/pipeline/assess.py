"""From models' logits to the numbers of a report."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from rumfast.data import Dataset, Split
from rumfast.evaluation import (
    METRICS,
    SCORED,
    Interval,
    Metric,
    ModelScores,
    NullBand,
    compare,
    null_band,
    score_model,
    t_interval,
)
from rumfast.inference import predict
from rumfast.kernels.moments import moments
from rumfast.kernels.neighbours import nearest
from rumfast.kernels.pairwise import mean_distance
from rumfast.models import Classifier
from rumfast.pipeline import totals
from rumfast.runtime import environment
from rumfast.scores import mmd2, neighbour_overlap
from rumfast.scores.entanglement import entanglement_of
from rumfast.store import read_json, read_npz
from rumfast.sweeps import Population

if TYPE_CHECKING:
    from rumfast.pipeline.context import Context

EXAMPLES_SHOWN = 20  # most, and least, memorized images in the report
NEIGHBOURS = 5  # retain examples shown beside a forgotten one, and counted for its overlap
NEIGHBOURHOODS_SHOWN = 8  # forgotten examples with their neighbours in the report


def evaluate(
    model: Classifier, oracles: Classifier | Sequence[Classifier], data: Dataset, split: Split
) -> dict[str, float]:
    """Every metric of one model against one or more oracles, in [0, 1].

    With two oracles or more, hold the values against ``rumfast.evaluation.null_band`` of the same oracles.
    """
    chosen = [oracles] if isinstance(oracles, nn.Module) else oracles
    predictions = [predict(each, data) for each in (model, *chosen)]
    scores = [_score(each.train_NC, each.test_NC, data, split) for each in predictions]
    return {name: compare(name, scores[0], scores[1:]) for name in SCORED}


def score_population(
    population: Population, members: int, data: Dataset, split: Split, mia_examples: int
) -> list[ModelScores]:
    """Scores of a population's models, from their stored logits."""
    found = (population.outputs(index) for index in range(members))
    return [_score(outputs["train"], outputs["test"], data, split, mia_examples) for outputs in found]


def _score(
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


def bands_of(oracles: Sequence[ModelScores]) -> dict[str, NullBand]:
    """Null band of every metric."""
    return {name: null_band(oracles, partial(compare, name)) for name in SCORED}


def metrics_of(
    models: Sequence[ModelScores], oracles: Sequence[ModelScores], bands: Mapping[str, NullBand]
) -> dict[str, dict[str, Any]]:
    """Every metric of a population with its interval over seeds.

    ``inside``: does the mean lie in the null band, or beyond its good end where the metric has one?
    """
    result = {}
    for name in SCORED:
        interval = t_interval([compare(name, model, oracles) for model in models])
        beyond = METRICS[name].better == "higher" and interval.mean > bands[name].high
        result[name] = interval_dict(interval) | {"inside": bands[name].contains(interval.mean) or beyond}
    return result


def interval_dict(interval: Interval) -> dict[str, Any]:
    """An interval as JSON."""
    return {
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "values": list(interval.values),
    }


def accuracies_of(models: Sequence[ModelScores]) -> dict[str, dict[str, Any]]:
    """Scores of reference models with intervals over seeds."""
    return {
        key: interval_dict(t_interval([getattr(model, key) for model in models]))
        for key in ModelScores._fields
    }


def metric_definitions() -> dict[str, dict[str, Any]]:
    """What each metric of a report means."""
    return definitions({name: METRICS[name] for name in SCORED})


def definitions(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """What metrics mean, as JSON."""
    return {
        name: {key: value for key, value in metric._asdict().items() if key != "function"}
        | {"range": list(metric.range)}
        for name, metric in metrics.items()
    }


def summarize(run: "Context") -> tuple[dict[str, Any], dict[str, Any]]:
    """The evaluation of a run: what is reproducible bit for bit, and the timings, which are not."""
    settings, seeds = run.recipe.evaluate, run.recipe.evaluate.seeds

    def scores(population: Population, members: int) -> list[ModelScores]:
        return score_population(population, members, run.data, run.split, settings.mia_examples)

    oracles = scores(run.oracle_population, settings.oracles)
    bands = bands_of(oracles)
    full_cost = _mean_metric(run.oracle_population, settings.oracles, "examples")
    plans, timing = [], {"oracle": _wall(run.oracle_population, settings.oracles), "plans": {}}
    for plan in map(run.chosen, run.recipe.plans):
        population = run.plan_population(plan)
        examples = _mean_metric(population, seeds, "examples")
        plans.append(
            {
                "name": plan.name,
                "steps": " > ".join(population.metrics(0)["steps"]),
                "refine": plan.refine,
                "retain": plan.retain or run.recipe.unlearn.retain,
                "examples": examples,
                "cost": examples / full_cost,
                "metrics": metrics_of(scores(population, seeds), oracles, bands),
            }
        )
        timing["plans"][plan.name] = _wall(population, seeds)
    reference = {"oracle": accuracies_of(oracles), "original": accuracies_of(scores(run.originals, seeds))}
    summary = describe(run) | {
        "schema": "rumfast/evaluation/1",
        "seeds": seeds,
        "oracles": settings.oracles,
        "metrics": metric_definitions(),
        "bands": {name: band._asdict() for name, band in bands.items()},
        "plans": plans,
        "reference": reference,
        "total": totals.total_of(run),
    }
    return summary, timing | {"total": totals.worker_seconds(run)}


def geometry_of(run: "Context") -> dict[str, dict[str, float]]:
    """How the forget set, and each group, lies among the retain set in original 0's embedding space."""
    retain_RD, forget_FD = run.embedded(run.split.retain), run.embedded(run.split.forget)
    retain = moments(retain_RD)
    sets = {"forget": forget_FD, **{f"group/{group.name}": run.embedded(group.ids) for group in run.groups()}}
    geometry = {
        name: {
            "entanglement": entanglement_of(retain, moments(points)),
            "neighbour_overlap": neighbour_overlap(
                retain_RD, points, min(NEIGHBOURS, len(retain_RD) + len(points) - 1)
            ),
            "mean_distance": float(mean_distance(points, retain_RD)),
        }
        for name, points in sets.items()
    }
    # Not of each group too: all pairs of the retain set cost far more than the rest together.
    unbiased = min(len(forget_FD), len(retain_RD)) > 1
    geometry["forget"]["mmd2"] = mmd2(retain_RD, forget_FD, unbiased=unbiased)
    return geometry


def neighbours_of(run: "Context") -> dict[str, np.ndarray]:
    """The nearest retain examples [F, k] of each forgotten one, by id, and their distances."""
    retain = run.split.retain
    distance_FK, index_FK = nearest(
        run.embedded(run.split.forget), run.embedded(retain), min(NEIGHBOURS, len(retain))
    )
    return {"id_FK": retain[index_FK.cpu().numpy()], "distance_FK": distance_FK.cpu().numpy()}


def describe(run: "Context") -> dict[str, Any]:
    """What was forgotten from what, and how."""
    data, recipe, groups = run.data, run.recipe, run.groups()
    scores = run.memorization
    geometry = read_json(run.dir.geometry)
    sweep = None if scores is None else read_json(run.dir.sweep_summary)
    return {
        "name": recipe.name,
        "train": recipe.train.model_dump(mode="json"),
        "sweep": sweep,
        "budget_examples": run.budget,
        "retain_mode": recipe.unlearn.retain,
        "dataset": {
            "name": data.name,
            "source": data.source,
            "fingerprint": data.fingerprint,
            "train": len(data),
            "test": len(data.test),
            "classes": list(data.classes),
            "shape": list(data.train.image_NHWC.shape[1:]),
            "flipped": len(data.flipped),
        },
        "forget": {
            "request": recipe.forget.request,
            "size": len(run.split.forget),
            **geometry["forget"],
            "flipped": int(np.isin(run.split.forget, data.flipped).sum()),
            "excluded": len(run.excluded),
            "earlier": [request.model_dump() for request in run.requests(run.dir.root)],
            "windows": read_json(run.dir.windows) if run.dir.windows.exists() else None,
            "groups": [
                {
                    "name": group.name,
                    "size": len(group.ids),
                    **geometry[f"group/{group.name}"],
                    "memorization_mean": None if scores is None else float(scores.score_N[group.ids].mean()),
                }
                for group in groups
            ],
        },
        "config_toml": run.recipe_text(),
    }


def _mean_metric(population: Population, members: int, key: str) -> float:
    return float(np.mean([population.metrics(index)[key] for index in range(members)]))


def _wall(population: Population, members: int) -> dict[str, Any]:
    return interval_dict(t_interval([population.metrics(index)["wall_s"] for index in range(members)]))


def merge_timing(summary: dict[str, Any], timing: dict[str, Any], command: str) -> dict[str, Any]:
    """What the report shows: the summary with wall times, the environment and the command."""
    plans = [plan | {"wall_s": timing["plans"][plan["name"]]} for plan in summary["plans"]]
    reference = summary["reference"] | {
        "oracle": summary["reference"]["oracle"] | {"wall_s": timing["oracle"]}
    }
    return summary | {
        "plans": plans,
        "reference": reference,
        "total": totals.with_seconds(summary["total"], timing["total"]),
        "environment": environment(),
        "command": command,
    }


def report_images(run: "Context") -> dict[str, Any]:
    """Memorization of all training examples, and the images at its ends."""
    scores, data, n = run.memorization, run.data, len(run.data)
    forget_mask_N, flipped_mask_N = np.zeros(n, bool), np.zeros(n, bool)
    forget_mask_N[run.split.forget], flipped_mask_N[data.flipped] = True, True
    score_N = np.full(n, np.nan) if scores is None else scores.score_N
    error_N = np.full(n, np.nan) if scores is None else scores.standard_error_N
    order = np.argsort(score_N, kind="stable")[: int(np.isfinite(score_N).sum())]

    def show(example: int) -> dict[str, Any]:
        label = data.train.label_N[example]
        clean = label if data.clean_label_N is None else data.clean_label_N[example]
        return {
            "id": int(example),
            "image": data.train.image_NHWC[example],
            "label": data.classes[label],
            "clean_label": None if clean == label else data.classes[clean],
            "score": float(score_N[example]),
            "standard_error": float(error_N[example]),
            "in_forget": bool(forget_mask_N[example]),
        }

    neighbours = read_npz(run.dir.neighbours)
    # The most memorized first; where nothing was scored, in the order of their ids.
    hardest = np.lexsort((run.split.forget, -np.nan_to_num(score_N[run.split.forget], nan=-np.inf)))
    return {
        "most": [show(example) for example in order[::-1][:EXAMPLES_SHOWN]],
        "least": [show(example) for example in order[:EXAMPLES_SHOWN]],
        "neighbours": [
            {
                "example": show(run.split.forget[row]),
                "nearest": [
                    show(example) | {"distance": float(distance)}
                    for example, distance in zip(
                        neighbours["id_FK"][row], neighbours["distance_FK"][row], strict=True
                    )
                ],
            }
            for row in hardest[:NEIGHBOURHOODS_SHOWN]
        ],
        "score_N": score_N,
        "forget_mask_N": forget_mask_N,
        "flipped_mask_N": flipped_mask_N,
    }
