"""The paper's two experiments on any data: what makes unlearning hard, and does RUM help?

A base run holds data, originals, sweep and scores; each forget set is a run of its own upon it, with its
own oracles. Hyper-parameters are chosen on surrogates of that forget set, all plans take one budget, and
models are never trained twice: killed and called again, an experiment ends with the same numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rumfast.config import ForgetConfig, Recipe
from rumfast.errors import UsageError
from rumfast.pipeline.assess import metric_definitions
from rumfast.pipeline.experiment_plans import best_plans, claims, rum_families, rum_plans
from rumfast.pipeline.experiment_runs import HEADLINE, NONE, Experiment, ExperimentConfig, Measured
from rumfast.pipeline.findings import Comparison, weigh
from rumfast.pipeline.variation import vanilla
from rumfast.sweeps import Engine, LocalEngine

AXES = ("memorization", "entanglement")
LEVELS = ("low", "mid", "high")
ENOUGH = 2  # surrogates, and originals, to choose among the few settings of one algorithm
# What the evaluations of all sets have in common
SHARED = ("name", "seeds", "oracles", "dataset", "train", "sweep", "metrics")
SIZED = ("random:", "memorization:", "entanglement:")  # requests that end in a size
RELABELLING = ("random_label", "salun")  # the paper found these to behave otherwise


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

    Returns:
        What is written to ``out/difficulty.json``, schema ``rumfast/difficulty/1``: ``sets``, each with its
        measured memorization and ES and the metrics of every algorithm, and ``differences`` and ``findings``
        (see :func:`rumfast.pipeline.findings.weigh`) on whether ToW falls as difficulty rises (Zhao et al.
        2024, section 3). Lowest and highest go by what was measured, not by the level's name.

    Args:
        engine: where members are trained, not entered yet; None: ``workers`` processes on this machine.

    Raises:
        RumfastError: see ``rumfast.errors``; finished work is kept.
    """
    few = {key: min(ENOUGH, getattr(recipe.search, key)) for key in ("surrogates", "originals")}
    # What to expect elsewhere is measured here, not predicted.
    modest = recipe.search.model_copy(update={"finals": 0, "checks": 0, **few})
    with LocalEngine(workers, device) if engine is None else engine as entered:
        lab = Experiment(
            recipe.model_copy(update={"search": modest}), out, config or ExperimentConfig(), entered, device
        )
        lab.prepare()
        size = lab.size()
        measured = [_measure(lab, axis, level, size) for axis in AXES for level in LEVELS]
        sets = [_level(lab, *each) for each in measured]
        summary = measured[0][-1].summary
        record = {
            "schema": "rumfast/difficulty/1",
            **{key: summary[key] for key in SHARED},
            "budget_epochs": lab.recipe.unlearn.budget_epochs,
            "size": size,
            "sets": sets,
            **weigh(list(falls(sets))),
        }
        return lab.finish("difficulty", record, lab.out / "difficulty")


def _measure(lab: Experiment, axis: str, level: str, size: int) -> tuple[str, str, Measured]:
    """One forget set, unlearned by every algorithm at once, and hence left in one group."""
    changes = {"request": f"{axis}:{level}:{size}", "refine": "memorization", "groups": 1}
    forget, folder = lab.recipe.forget.model_copy(update=changes), lab.out / "difficulty" / f"{axis}-{level}"
    families = {name: vanilla(name) for name in lab.algorithms if name != "none"}
    return axis, level, lab.measure(forget, folder, families, lambda found: [NONE, *best_plans(found)])


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
        "algorithms": {
            plan["name"]: {key: plan[key] for key in ("steps", "cost", "metrics")}
            for plan in summary["plans"]
        },
        "diverged": diverged,
        "infeasible": _infeasible(lab.algorithms, found),
        "search": found,
    }


def falls(sets: Sequence[Mapping[str, Any]]) -> Iterable[Comparison]:
    """Lowest against highest of each axis, as measured, for every algorithm that ran on both.

    Args:
        sets: those of a difficulty record.
    """
    labels = {name: metric["label"] for name, metric in metric_definitions().items()}
    for axis in AXES:
        ordered = sorted((each for each in sets if each["axis"] == axis), key=lambda each: each[axis])
        low, high = ordered[0], ordered[-1]
        for metric in HEADLINE:
            for name in low["algorithms"]:
                if name not in high["algorithms"]:
                    continue  # it diverged there
                kind = {"none": ", doing nothing"} | dict.fromkeys(RELABELLING, ", relabelling methods")
                yield Comparison(
                    f"{labels[metric]} falls as {axis} rises{kind.get(name, '')}",
                    name,
                    metric,
                    f"{axis}:{low['level']}",
                    f"{axis}:{high['level']}",
                    *(each["algorithms"][name]["metrics"][metric]["values"] for each in (low, high)),
                )


def rum(
    recipe: Recipe,
    out: str | Path,
    config: ExperimentConfig | None = None,
    *,
    device: str = "auto",
    workers: int | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """One forget set at one budget: every algorithm at once, on random and on refined groups, RUM, auto.

    Plans: ``none``; each algorithm on the whole forget set (vanilla); RUM^F and shuffle of some (see
    ``REFINED``); ``rum``, the paper's none → fine-tune → SalUn, with its groups in reversed order and with
    the other choice of retain data; and ``auto``, the search's best of all, mixed plans among them.

    Returns:
        What is written to ``out/rum.json``, schema ``rumfast/rum/1``: the fields of an evaluation, ``search``
        and its surrogates, ``differences`` and ``findings`` on the paper's claims (Zhao et al. 2024,
        section 5).

    Args:
        engine: as :func:`difficulty`.

    Raises:
        UsageError: the recipe does not refine into low, mid and high.
        RumfastError: see ``rumfast.errors``; finished work is kept.
    """
    with LocalEngine(workers, device) if engine is None else engine as entered:
        lab = Experiment(recipe, out, config or ExperimentConfig(), entered, device)
        lab.prepare()
        forget, folder = _sized(lab.recipe.forget, lab.config.size), lab.out / "rum"
        names = [group.name for group in lab.run(forget, folder).groups()]
        if names != list(LEVELS):
            raise UsageError(
                f"forget: refined into {', '.join(names)}; the paper's plan needs {', '.join(LEVELS)}: "
                "set groups to 3 and refine by a score"
            )
        families = rum_families(lab.algorithms)
        summary, found, diverged = lab.measure(
            forget, folder, families, lambda found: rum_plans(found, lab.recipe.unlearn.retain)
        )
        lab.run(forget, folder).report()
        record = summary | {
            "schema": "rumfast/rum/1",
            "search": found,
            "diverged": diverged,
            "infeasible": _infeasible(families, found),
            **weigh(list(claims(summary, lab.algorithms))),
        }
        return lab.finish("rum", record, folder)


def _infeasible(families: Iterable[str], found: Mapping[str, Any]) -> list[str]:
    """Families of which no candidate fits the budget."""
    return [name for name in families if name not in found["families"] and name != NONE.name]


def _sized(forget: ForgetConfig, size: int | None) -> ForgetConfig:
    """The forget set with ``size`` examples."""
    if size is None:
        return forget
    if not forget.request.startswith(SIZED):
        raise UsageError(f"size: {forget.request} says itself what to forget, it takes no size")
    return forget.model_copy(update={"request": f"{forget.request.rpartition(':')[0]}:{size}"})
