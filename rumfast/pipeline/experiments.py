"""The paper's two experiments on any data: what makes unlearning hard, and does RUM help?

A base run holds data, originals, sweep and scores; each forget set is a run of its own upon it, with its
own oracles. Hyper-parameters are chosen on surrogates of that forget set, no plan takes more than the
budget, and models are never trained twice: killed and called again, an experiment ends with the same numbers.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rumfast.config import ForgetConfig, Recipe
from rumfast.errors import UsageError
from rumfast.evaluation import SCORED
from rumfast.evaluation.metrics import definitions
from rumfast.pipeline.experiment_plans import (
    best_plans,
    claims,
    profile_of,
    rum_families,
    rum_plans,
    tried_of,
    whole_families,
)
from rumfast.pipeline.experiment_runs import HEADLINE, NONE, Experiment, ExperimentConfig, Measured
from rumfast.pipeline.findings import Comparison, weigh
from rumfast.refinement import filled
from rumfast.sweeps import Engine, LocalEngine

AXES = ("memorization", "entanglement")
LEVELS = ("low", "mid", "high")
ENOUGH = 2  # surrogates, and originals, to choose among the few settings of one algorithm
# What the evaluations of all sets have in common
SHARED = ("name", "seeds", "oracles", "dataset", "train", "sweep", "metrics")
SIZED = ("random:", "memorization:", "entanglement:")  # requests that end in a size
RELABELLING = ("random_label", "salun")
CHOICE = (
    "A plan is the best of some candidates, and the best of more is better. auto is the best of every family "
    "and of mixed plans beside, far more than any single algorithm has: where it leads, that is the search's "
    "work as much as refinement's. In brackets behind a plan, or under tried: how many candidates it was "
    "chosen from."
)


def difficulty(
    recipe: Recipe,
    out: str | Path,
    config: ExperimentConfig | None = None,
    *,
    device: str = "auto",
    workers: int | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """ToW and ToW-MIA of every algorithm on six forget sets: low, mid and high memorization and ES.

    The recipe's ``search`` holds, with at most two surrogates and originals and no finals or checks: there is
    only a setting of one algorithm to choose, and what to expect elsewhere is measured, not predicted.

    Returns:
        What is written to ``out/difficulty.json``, schema ``rumfast/difficulty/1``: ``sets``, each with its
        measured memorization and ES, its score ``profile`` beside its surrogates', and the metrics of every
        algorithm, and ``differences`` and ``findings`` (see :func:`rumfast.pipeline.findings.weigh`) on
        whether ToW falls as difficulty rises (Zhao et al. 2024, section 4). Lowest and highest go by what was
        measured, not by the level's name.

    Args:
        engine: where members are trained, not entered yet; None: ``workers`` processes on this machine.

    Raises:
        RumfastError: see ``rumfast.errors``; finished work is kept.
    """
    few = {key: min(ENOUGH, getattr(recipe.search, key)) for key in ("surrogates", "originals")}
    modest = recipe.search.model_copy(update={"finals": 0, "checks": 0, **few})
    with LocalEngine(workers, device) if engine is None else engine as entered:
        changed = recipe.model_copy(update={"search": modest})
        lab = Experiment("difficulty", changed, out, config or ExperimentConfig(), entered, device)
        size = lab.size()
        forgets = {(axis, level): _at(lab, axis, level, size) for axis in AXES for level in LEVELS}
        lab.prepare(forgets.values())
        measured = {key: _measure(lab, forget, "-".join(key)) for key, forget in forgets.items()}
        sets = [_level(lab, *key, found) for key, found in measured.items()]
        summary = next(iter(measured.values())).summary
        record = {
            "schema": "rumfast/difficulty/1",
            **{key: summary[key] for key in SHARED},
            "budget_epochs": lab.recipe.unlearn.budget_epochs,
            "size": size,
            "sets": sets,
            **weigh(list(falls(sets))),
        }
        return lab.finish(record, lab.out / "difficulty")


def _at(lab: Experiment, axis: str, level: str, size: int) -> ForgetConfig:
    """The forget set at one level, left in one group."""
    changes = {"request": f"{axis}:{level}:{size}", "refine": "memorization", "groups": 1}
    return lab.recipe.forget.model_copy(update=changes)


def _measure(lab: Experiment, forget: ForgetConfig, folder: str) -> Measured:
    """One forget set, unlearned by every algorithm at once."""
    families = whole_families(lab.trained) if lab.trained else {}
    return lab.measure(forget, lab.out / "difficulty" / folder, families, best_plans)


def _level(lab: Experiment, axis: str, level: str, measured: Measured) -> dict[str, Any]:
    """What the record says of one forget set."""
    summary, found, diverged = measured
    forget = summary["forget"]
    return {
        "axis": axis,
        "level": level,
        "request": forget["request"],
        "size": forget["size"],
        "memorization": forget["groups"][0]["memorization_mean"],
        "entanglement": forget["entanglement"],
        "bands": summary["bands"],
        "profile": profile_of(found),
        "algorithms": {
            plan["name"]: {key: plan[key] for key in ("steps", "examples", "cost", "metrics")}
            | {"tried": tried_of(found, plan["name"])}
            for plan in summary["plans"]
        },
        "diverged": diverged,
        "infeasible": _infeasible(lab.trained, found),
        "search": found,
    }


def falls(sets: Sequence[Mapping[str, Any]]) -> Iterable[Comparison]:
    """Lowest against highest of each axis, as measured, for every algorithm that ran on both.

    Args:
        sets: those of a difficulty record.
    """
    labels = {name: metric["label"] for name, metric in definitions(SCORED).items()}
    for axis in AXES:
        ordered = sorted((each for each in sets if each["axis"] == axis), key=lambda each: each[axis])
        ends = (ordered[0], ordered[-1])
        kinds = Counter(
            _kind(name)
            for name in {
                name
                for each in ends
                for key in ("algorithms", "diverged", "infeasible")
                for name in each[key]
            }
        )
        for metric in HEADLINE:
            for name in ends[0]["algorithms"]:
                if name not in ends[1]["algorithms"]:
                    continue  # it diverged there
                easy, hard = (each["algorithms"][name] for each in ends)
                yield Comparison(
                    claim=f"{labels[metric]} falls as {axis} rises{_kind(name)}",
                    subject=name,
                    metric=metric,
                    one=f"{axis}:{ends[0]['level']}",
                    other=f"{axis}:{ends[1]['level']}",
                    one_S=easy["metrics"][metric]["values"],
                    other_S=hard["metrics"][metric]["values"],
                    tried=(easy["tried"], hard["tried"]),
                    among=kinds[_kind(name)],
                )


def _kind(name: str) -> str:
    """What a claim about an algorithm adds: the paper found some kinds to behave otherwise."""
    if name == NONE.name:
        return ", doing nothing"
    return ", relabelling methods" if name in RELABELLING else ""


def rum(
    recipe: Recipe,
    out: str | Path,
    config: ExperimentConfig | None = None,
    *,
    device: str = "auto",
    workers: int | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """One forget set within one budget: every algorithm at once, on random and on refined groups, RUM, auto.

    Plans: ``none``; each algorithm on the whole forget set (vanilla); RUM^F and shuffle of some (see
    ``REFINED``); ``rum``, the paper's none → fine-tune → SalUn, with its groups in reversed order and with
    the other choice of retain data; and ``auto``, the search's best of all, mixed plans among them, which is
    chosen from many more candidates than any other (``tried``).

    Returns:
        What is written to ``out/rum.json``, schema ``rumfast/rum/1``: the fields of an evaluation, ``search``
        and its surrogates with the score ``profile`` of both, ``differences`` and ``findings`` on the paper's
        claims (Zhao et al. 2024, section 5).

    Args:
        engine: as :func:`difficulty`.

    Raises:
        UsageError: the recipe does not refine into low, mid and high.
        RumfastError: as :func:`difficulty`.
    """
    with LocalEngine(workers, device) if engine is None else engine as entered:
        lab = Experiment("rum", recipe, out, config or ExperimentConfig(), entered, device)
        forget, folder = _sized(lab.recipe.forget, lab.config.size), lab.out / "rum"
        names = [group.name for group in filled(lab.rehearse(forget))]
        if names != list(LEVELS):
            raise UsageError(
                f"forget: refined into {', '.join(names)}; the paper's plan needs {', '.join(LEVELS)}: "
                "set groups to 3, refine by a score and forget at least 3 examples"
            )
        lab.prepare([forget])
        families = rum_families(lab.trained)
        summary, found, diverged = lab.measure(
            forget, folder, families, lambda found: rum_plans(found, lab.recipe.unlearn.retain)
        )
        lab.run(forget, folder).report()
        record = summary | {
            "schema": "rumfast/rum/1",
            "plans": [plan | {"tried": tried_of(found, plan["name"])} for plan in summary["plans"]],
            "profile": profile_of(found),
            "search": found,
            "diverged": diverged,
            "infeasible": _infeasible(families, found),
            "notes": [CHOICE],
        }
        return lab.finish(record | weigh(list(claims(record, lab.trained))), folder)


def _infeasible(families: Iterable[str], found: Mapping[str, Any]) -> list[str]:
    """Families of which no candidate fits the budget, or each failed wherever it was tried."""
    return [name for name in families if name not in found["families"] and name != NONE.name]


def _sized(forget: ForgetConfig, size: int | None) -> ForgetConfig:
    """The forget set with ``size`` examples."""
    if size is None:
        return forget
    if not forget.request.startswith(SIZED):
        raise UsageError(f"size: {forget.request} says itself what to forget, it takes no size")
    return forget.model_copy(update={"request": f"{forget.request.rpartition(':')[0]}:{size}"})
