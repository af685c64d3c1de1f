"""Estimate of a run before it starts: models, gradients and minutes. Nothing is trained or written."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rumfast.config import AUTO, PlanConfig
from rumfast.data import Dataset, Split, dataset_from_source
from rumfast.data.beton import require_ffcv
from rumfast.errors import UsageError
from rumfast.pipeline.request import MADE_UP, needs_of, resolve
from rumfast.pipeline.scoring import PROXY_MEMBERS
from rumfast.pipeline.search import search_size
from rumfast.pipeline.speed import gradient_seconds
from rumfast.pipeline.stages import STAGES, Run
from rumfast.pipeline.totals import (
    ORACLES,
    ORIGINALS,
    PROXIES,
    SURROGATE_ORACLES,
    SWEEP,
    TRIALS,
    UNLEARNED,
    proxy_examples,
)
from rumfast.plans import bind, parse_plan, spread_budget, step_cost
from rumfast.sweeps import Population, PopulationSpec
from rumfast.sweeps.proxy_models import HOLDOUT_EPOCHS

# Time that an algorithm takes for a gradient, where a training step of the recipe takes 1: teachers' passes,
# gradients of single examples, frozen layers (ResNet-8 on digits and on CIFAR-10, one core).
WEIGHTS = {"scrub": 1.6, "bad_teacher": 1.6, "influence": 8.0, "ssd": 5.0, "cfk": 0.6, "euk": 0.6}
FORWARD = 0.25  # of a gradient's time, to predict one example
START_S = 5.0  # until a worker has imported torch and read the data


class Work(NamedTuple):
    """Models of one population that a run needs.

    Attributes:
        models: that it needs.
        missing: of them, that are still to be trained.
        examples: whose gradient the missing ones take, all together.
        effort: the same in gradients of a training step, by the time they take.
    """

    part: str
    models: int
    missing: int
    examples: float
    effort: float
    at_most: bool = False


class Rehearsal(Run):
    """A run that reads and never writes: scores are made up, so that sizes are right and ids may not be."""

    @classmethod
    def of(cls, run: Run) -> "Rehearsal":
        """A rehearsal of a run whose data are packed."""
        rehearsal = cls(run.recipe, run.dir.root, run.engine, run.device)
        rehearsal.data = run.data
        return rehearsal

    def pack_data(self, source: str, where: str) -> Dataset:
        """Load the source, and leave packing to the run."""
        require_ffcv()
        config = self.recipe.data
        return replace(dataset_from_source(source, config.label_noise, config.seed), location=where)

    def population(self, root: Path, spec: PopulationSpec) -> Population:
        """The population's members that there are, perhaps none."""
        if not (root / "spec.json").exists():
            return Population(root, spec)
        stored = Population.open(root).spec
        forget = stored.forget if self.recipe.forget.request.startswith(MADE_UP) else spec.forget
        return Population.reopen(
            root, spec.model_copy(update={"forget": forget, "groups": stored.groups})
        )

    @cached_property
    def split(self) -> Split:
        """Forget and retain set of the right sizes."""
        return resolve(
            self.recipe, self.data, self.score_of(""), self.excluded, lambda level, size: np.arange(size)
        )

    def score_of(self, kind: str) -> np.ndarray:
        """A score [N] for sizes alone."""
        return np.zeros(len(self.data))

    def searched(self) -> bool:
        """Was a plan searched for? A folder has one forget set."""
        return (self.dir.search / "result.json").exists()

    def chosen(self, plan: PlanConfig) -> PlanConfig:
        """The plan that search chose, or still ``auto``."""
        if plan.steps == AUTO and not (self.dir.plan(plan.name) / "chosen.json").exists():
            return plan.model_copy(update=self._best()) if self.searched() else plan
        return super().chosen(plan)


def estimate(run: Rehearsal, until: str = "report") -> dict[str, Any]:
    """Say what the stages up to ``until`` still take, without training or writing anything.

    Returns:
        ``parts`` by the names of :func:`~rumfast.pipeline.totals.total_of`, each with ``models`` that the run
        needs, ``missing`` ones of them, the ``examples`` whose gradient these take (of plans, what their
        epochs amount to: whole batches may take each step one batch further), ``worker_s``, and ``at_most``
        where less may do (plan search, holdout retraining); their sums; ``retrainings``, the examples as
        multiples of one oracle's; and ``minutes`` on ``workers`` workers of this machine's speed, None of
        the times where nothing is missing.

    Raises:
        RumfastError: as the run would.
    """
    run.require_own_folder()
    run.rehearse()
    found = list(works(run, until))
    workers, train = run.engine.workers, run.recipe.train
    missing = sum(work.missing for work in found)
    gradient_s = gradient_seconds(run.data, train, run.device, workers) if missing else 0.0
    at_once = max(1, math.floor(run.engine.devices))
    seconds = [_seconds(work, run.data, gradient_s) for work in found]
    waits = {work.part: 0.0 for work in found}
    for work, each in zip(found, seconds, strict=True):
        waits[work.part] += _wait(work, each, at_once)
    parts = _parts(found, seconds)
    one = train.epochs * len(run.split.retain)
    examples = sum(part["examples"] for part in parts)
    return {
        "schema": "rumfast/estimate/1",
        "until": until,
        "parts": parts,
        "models": sum(part["models"] for part in parts),
        "missing": missing,
        "examples": examples,
        "retrainings": examples / one,
        "retraining_examples": one,
        "retraining_s": one * gradient_s if missing else None,
        "worker_s": sum(part["worker_s"] for part in parts),
        "minutes": (_within(waits, run.recipe.search.minutes) + (START_S if missing else 0.0)) / 60,
        "workers": workers,
        "at_most": any(part["at_most"] for part in parts),
    }


def _seconds(work: Work, data: Dataset, gradient_s: float) -> float:
    """Worker seconds of the missing models: their gradients, and predicting all examples."""
    predicted = work.missing * (len(data) + len(data.test))
    return gradient_s * (work.effort + FORWARD * predicted)


def _wait(work: Work, seconds: float, at_once: int) -> float:
    """Seconds until all missing models are there: in the last round some workers have nothing to do."""
    rounds = math.ceil(work.missing / at_once)
    return seconds / work.missing * rounds if work.missing else 0.0


def _within(waits: Mapping[str, float], minutes: float | None) -> float:
    """The sum of ``waits``, in which plan search ends soon after ``minutes``."""
    searching = sum(waits.get(part, 0.0) for part in (SURROGATE_ORACLES, TRIALS))
    limit = searching if minutes is None else min(searching, 60 * minutes)
    return sum(waits.values()) - searching + limit


def _parts(found: Sequence[Work], seconds: Sequence[float]) -> list[dict[str, Any]]:
    """Sums over the populations of each part, in the order of the stages."""
    parts: dict[str, dict[str, Any]] = {}
    for work, each_s in zip(found, seconds, strict=True):
        empty = {"name": work.part, "models": 0, "missing": 0, "examples": 0.0, "worker_s": 0.0}
        part = parts.setdefault(work.part, empty | {"at_most": False})
        part["models"] += work.models
        part["missing"] += work.missing
        part["examples"] += work.examples
        part["worker_s"] += each_s
        part["at_most"] |= work.at_most and work.missing > 0
    for part in parts.values():
        part["examples"] = round(part["examples"])
    return [part for part in parts.values() if part["models"]]


def works(run: Rehearsal, until: str) -> Iterator[Work]:
    """The work of the stages up to ``until``, population by population."""
    stages = list(STAGES)[: list(STAGES).index(until) + 1]
    n, epochs = len(run.data), run.recipe.train.epochs
    evaluate = run.recipe.evaluate
    left = len(run.split.retain) + len(run.split.forget)
    if "train" in stages:
        run.require_originals()
        if run.earlier is None:
            yield _whole(ORIGINALS, run.originals, evaluate.seeds, lambda _: epochs * left)
    if "sweep" in stages and run.needs_sweep and run.recipe.sweep.scores is None:
        spec = run.sweep_population.spec
        members = run.recipe.sweep.members
        yield _whole(SWEEP, run.sweep_population, members, lambda i: epochs * spec.subset_size(i, n))
    if "score" in stages and "proxies" in needs_of(run.recipe):
        population = run.proxy_population
        work = _whole(
            PROXIES,
            population,
            PROXY_MEMBERS,
            lambda i: proxy_examples(population.spec, i, n, HOLDOUT_EPOCHS),
        )
        yield work._replace(at_most=True)
    if "oracles" in stages:
        one = epochs * len(run.split.retain)
        yield _whole(ORACLES, run.oracle_population, evaluate.oracles, lambda _: one)
    if "unlearn" in stages:
        yield from _search(run)
        for plan in map(run.chosen, run.recipe.plans):
            yield _unlearned(run, plan)


def _whole(part: str, population: Population, members: int, examples_of: Callable[[int], int]) -> Work:
    """Members 0 … ``members`` - 1 of a population whose gradients are those of training steps."""
    done = set(population.done(range(members)))
    missing = [index for index in range(members) if index not in done]
    examples = sum(examples_of(index) for index in missing)
    return Work(part, members, len(missing), examples, examples)


def _unlearned(run: Rehearsal, plan: PlanConfig) -> Work:
    """The models of one plan; one that search is still to choose takes the whole budget."""
    seeds = run.recipe.evaluate.seeds
    if plan.steps == AUTO:
        assert run.budget is not None
        spent = seeds * run.budget
        return Work(UNLEARNED, seeds, seeds, spent, spent, at_most=True)
    missing = seeds - len(run.plan_population(plan).done(range(seeds)))
    examples, effort = plan_examples(run, plan)
    return Work(UNLEARNED, seeds, missing, missing * examples, missing * effort)


def plan_examples(run: Rehearsal, plan: PlanConfig) -> tuple[float, float]:
    """Examples whose gradient a plan's epochs amount to, and the same by the time that they take.

    Where a request is by score and a group is a class, the groups are not known yet: then the budget, or a
    pass over the data.
    """
    retain, mode, train = run.split.retain, plan.retain or run.recipe.unlearn.retain, run.recipe.train
    try:
        bound = bind(parse_plan(plan.steps), run.groups(plan.refine))
        if run.budget is not None:
            bound = spread_budget(bound, retain, mode, run.budget, train)
    except UsageError:
        if (plan.refine or run.recipe.forget.refine) != "class":
            raise
        return (guess := float(run.budget or len(run.data))), guess
    costs = [sum(step_cost(bound, index, retain, mode, train)) for index in range(len(bound))]
    weights = [WEIGHTS.get(step.algorithm, 1.0) for step, _ in bound]
    return sum(costs), sum(cost * weight for cost, weight in zip(costs, weights, strict=True))


def _search(run: Rehearsal) -> Iterator[Work]:
    """The work of plan search at most, less what lies in its folder already."""
    if all(plan.steps != AUTO for plan in run.recipe.plans) or run.searched():
        return
    assert run.budget is not None
    sizes = search_size(run.recipe, [group.name for group in run.groups()])
    one = run.recipe.train.epochs * len(run.split.retain)
    for part, kind, models, examples in (
        (SURROGATE_ORACLES, "oracle", sizes.oracles, one),
        (TRIALS, "trials", sizes.trials, run.budget),
    ):
        folders = [Population.open(path.parent) for path in run.dir.search.glob("*/spec.json")]
        there = sum(len(each.complete()) for each in folders if each.spec.kind == kind)
        missing = max(0, models - there)
        yield Work(part, models, missing, missing * examples, missing * examples, at_most=True)
