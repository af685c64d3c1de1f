"""From models' logits to the numbers of a report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from rumfast.data import Dataset, Split
from rumfast.evaluation import ModelScores, compare, t_interval
from rumfast.evaluation.bands import interval_dict
from rumfast.evaluation.metrics import definitions
from rumfast.evaluation.model_scores import scored_by
from rumfast.inference import predict
from rumfast.kernels.moments import moments
from rumfast.kernels.neighbours import nearest
from rumfast.kernels.pairwise import mean_distance
from rumfast.models import Classifier
from rumfast.pipeline import totals
from rumfast.pipeline.earlier import recheck, unlike_before
from rumfast.pipeline.judging import (
    accuracies_of,
    bands_of,
    findings_of,
    judged,
    lost_utility,
    power_of,
    score_logits,
    score_population,
    set_sizes,
)
from rumfast.pipeline.request import notices_of
from rumfast.refinement import filled
from rumfast.reporting.verdict import verdict
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
    scores = [score_logits(each.train_NC, each.test_NC, data, split) for each in predictions]
    return {name: compare(name, scores[0], scores[1:]) for name in scored_by(scores[0])}


def summarize(run: "Context") -> tuple[dict[str, Any], dict[str, Any]]:
    """The evaluation of a run: what is reproducible bit for bit, and the timings, which are not."""
    settings, seeds = run.recipe.evaluate, run.recipe.evaluate.seeds

    def scores(population: Population, members: int) -> list[ModelScores]:
        return score_population(population, members, run.data, run.split, settings.mia_examples)

    oracles = scores(run.oracle_population, settings.oracles)
    bands = bands_of(oracles, set_sizes(run.data, run.split))
    originals = scores(run.originals, seeds)
    untouched = findings_of(originals, oracles, bands)
    full_cost = _mean_metric(run.oracle_population, settings.oracles, "examples")
    plans, timing = [], {"oracle": _wall(run.oracle_population, settings.oracles), "plans": {}}
    chosen = {plan.name: plan for plan in map(run.chosen, run.recipe.plans)}
    populations = {name: run.plan_population(plan) for name, plan in chosen.items()}
    earlier = recheck(run, populations)
    for plan in chosen.values():
        population = populations[plan.name]
        models = scores(population, seeds)
        examples = _mean_metric(population, seeds, "examples")
        plans.append(
            {
                "name": plan.name,
                "steps": " > ".join(population.metrics(0)["steps"]),
                "refine": plan.refine,
                "retain": plan.retain or run.recipe.unlearn.retain,
                "examples": examples,
                "cost": examples / full_cost,
                **judged(
                    findings_of(models, oracles, bands),
                    untouched,
                    [*lost_utility(models, oracles), *unlike_before(earlier, plan.name)],
                ),
            }
        )
        timing["plans"][plan.name] = _wall(population, seeds)
    summary = describe(run) | {
        "schema": "rumfast/evaluation/1",
        "seeds": seeds,
        "oracles": settings.oracles,
        "metrics": definitions(bands),
        "bands": {name: band.record() | {"n": band.n} for name, band in bands.items()},
        "power": power_of(untouched, bands),
        "plans": plans,
        "earlier_requests": earlier,
        "reference": {"oracle": accuracies_of(oracles), "original": judged(untouched, untouched)["metrics"]},
        "total": totals.total_of(run),
    }
    return summary, timing | {"total": totals.worker_seconds(run)}


def geometry_of(run: "Context") -> dict[str, dict[str, float]]:
    """How the forget set, and each group, lies among the retain set in original 0's embedding space."""
    retain_RD, forget_FD = run.embedded(run.split.retain), run.embedded(run.split.forget)
    retain = moments(retain_RD)
    groups = filled(run.groups())
    sets = {"forget": forget_FD, **{f"group/{group.name}": run.embedded(group.ids) for group in groups}}
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
    data, recipe, groups = run.data, run.recipe, filled(run.groups())
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
            "notices": [*notices_of(recipe, len(run.split.forget)), *_class_notices(run)],
        },
        "config_toml": run.recipe_text(),
    }


def _class_notices(run: "Context") -> list[str]:
    retained = run.data.train.label_N[run.split.retain]
    if np.isin(run.data.test.label_N, retained).any():
        return []
    return ["no test example is of a kept class: MIA compares with test examples of forgotten classes"]


def _mean_metric(population: Population, members: int, key: str) -> float:
    return float(np.mean([population.metrics(index)[key] for index in range(members)]))


def _wall(population: Population, members: int) -> dict[str, Any]:
    return interval_dict(
        t_interval([population.metrics(index)["wall_s"] for index in range(members)], (0, None))
    )


def merge_timing(summary: dict[str, Any], timing: dict[str, Any], command: str) -> dict[str, Any]:
    """The result that the report shows: summary, wall times, environment, command and verdict."""
    plans = [plan | {"wall_s": timing["plans"][plan["name"]]} for plan in summary["plans"]]
    reference = summary["reference"] | {
        "oracle": summary["reference"]["oracle"] | {"wall_s": timing["oracle"]}
    }
    result = summary | {
        "plans": plans,
        "reference": reference,
        "total": totals.with_seconds(summary["total"], timing["total"]),
        "environment": environment(),
        "command": command,
    }
    return result | {"verdict": verdict(result)._asdict()}


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
