"""What a recipe asks for: its forget set, the groups, and the budget of its plans."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rumfast.config import AUTO, Recipe
from rumfast.data import Dataset, Split, ids_digest, select_forget
from rumfast.data.splits import WindowOf
from rumfast.errors import DataError, UsageError
from rumfast.plans import bind, parse_plan, spread_budget
from rumfast.refinement import Group, refine, refine_at_random, refine_by_class, shortage
from rumfast.scores import SCORES
from rumfast.surrogates import other_classes
from rumfast.sweeps import Population, PopulationSpec
from rumfast.sweeps.spec import RequestSpec

# Requests whose ids are known once there are scores; before, their sizes are.
MADE_UP = ("memorization:", "entanglement:")


def pool_of(data: Dataset, excluded: tuple[int, ...]) -> np.ndarray:
    """Ids that earlier requests left."""
    return np.setdiff1d(np.arange(len(data)), np.array(excluded, np.int64))


def resolve(
    recipe: Recipe,
    data: Dataset,
    score_N: np.ndarray | None,
    excluded: tuple[int, ...],
    window_of: WindowOf | None = None,
) -> Split:
    """Resolve the request within the pool that earlier requests left.

    Args:
        window_of: gives a window of the pool, for an entanglement level and a size, as places in it.

    Raises:
        UsageError, DataError: the request cannot be read, or the data cannot meet it.
    """
    request, pool = recipe.forget.request, pool_of(data, excluded)
    if request.startswith("ids:"):
        split = select_forget(request, data.train.label_N)
        gone = np.intersect1d(split.forget, excluded)
        if len(gone):
            raise DataError(f"forget set {request}: id {gone[0]} was deleted by an earlier request")
        if len(split.forget) == len(pool):
            raise DataError(f"forget set {request}: nothing would be left to retain")
        return Split(split.forget, np.setdiff1d(pool, split.forget))
    score_P = None if score_N is None else score_N[pool]
    flipped = np.flatnonzero(np.isin(pool, data.flipped))
    split = select_forget(request, data.train.label_N[pool], score_P, flipped, recipe.forget.seed, window_of)
    return Split(pool[split.forget], pool[split.retain])


def regroup(
    recipe: Recipe,
    data: Dataset,
    split: Split,
    score_of: Callable[[str], np.ndarray],
    kind: str | None = None,
) -> tuple[Group, ...]:
    """Refine the forget set as ``kind`` or else the recipe says; ``score_of(kind)`` is the score [N]."""
    config = recipe.forget
    kind = kind or config.refine
    if kind == "class":
        return refine_by_class(split.forget, data.train.label_N)
    if kind == "random":
        return refine_at_random(split.forget, config.groups, config.seed)
    if kind == "none":
        return (Group("all", split.forget),)
    return refine(split.forget, score_of(kind), config.groups)


def notices_of(recipe: Recipe, examples: int) -> list[str]:
    """Notices on the groups of a forget set of so many examples: that some are empty."""
    cut = _refinements(recipe) - {"class", "none"}  # by a score or at random, into as many as were asked for
    found = shortage(examples, recipe.forget.groups) if cut else None
    return [] if found is None else [found]


def needs_of(recipe: Recipe) -> set[str]:
    """What the scores that the recipe refines by are computed from, see ``Score.needs``."""
    return {SCORES[name].needs for name in _refinements(recipe) if name in SCORES}


def _refinements(recipe: Recipe) -> set[str]:
    return {recipe.forget.refine, *(plan.refine for plan in recipe.plans if plan.refine is not None)}


def budget_of(recipe: Recipe, split: Split) -> int | None:
    """Examples whose gradient each plan may take; None leaves it to the plans' own epochs."""
    epochs = recipe.unlearn.budget_epochs
    return None if epochs is None else round(epochs * (len(split.retain) + len(split.forget)))


def earlier_requests(earlier: Population, root: Path) -> tuple[RequestSpec, ...]:
    """All requests that the models in ``earlier`` met, in order, with paths relative to folder ``root``."""
    spec = earlier.spec
    known = spec.requests or _of_old_records(spec)

    def seen_from_root(path: str) -> str:
        return os.path.relpath((earlier.root / path).resolve(), root.resolve())

    return tuple(request.model_copy(update={"path": seen_from_root(request.path)}) for request in known)


def _of_old_records(spec: PopulationSpec) -> list[RequestSpec]:
    """What can be said of requests before they were recorded: the last one's ids, and all those before."""
    parts = [(spec.excluded, None, spec.parent or "."), (spec.forget, spec.plan, ".")]
    return [
        RequestSpec(request=None, size=len(ids), sha256=ids_digest(ids), plan=plan, path=path)
        for ids, plan, path in parts
        if ids
    ]


def _require_searchable(recipe: Recipe, split: Split, classes: Sequence[np.ndarray]) -> None:
    if recipe.unlearn.budget_epochs is None:
        raise UsageError("unlearn.budget_epochs: plan search compares plans at one budget; give one")
    if recipe.forget.refine == "class":
        raise UsageError("forget.refine: groups by class have no surrogates; refine by a score")
    if len(split.forget) > len(split.retain):
        raise DataError(
            f"plan search: {len(split.forget)} examples to forget and {len(split.retain)} others, expected "
            "at least as many others to draw surrogates from"
        )
    search = recipe.search
    wanted = search.surrogates + search.finals + search.checks
    if 0 < len(classes) < wanted:
        raise UsageError(
            f"search.surrogates, finals and checks: a class is imitated by others, of which {wanted} are "
            f"wanted, and there are {len(classes)}"
        )


def rehearse(recipe: Recipe, data: Dataset, excluded: tuple[int, ...]) -> tuple[Group, ...]:
    """Resolve request, groups and plans with made-up scores, so that a mistake in them costs no training.

    Returns:
        The groups; where scores decide on the ids, only sizes are as they will be.

    Raises:
        UsageError, DataError: as the stages would, hours later.
    """
    if recipe.sweep.scores is not None and "margin_memorization" in _refinements(recipe):
        raise UsageError("refine: margin_memorization needs a sweep; published scores have no margins")
    score_N = np.zeros(len(data))
    split = resolve(recipe, data, score_N, excluded, lambda level, size: np.arange(size))
    made_up = recipe.forget.request.startswith(MADE_UP)
    budget = budget_of(recipe, split)
    for plan in recipe.plans:
        if plan.steps == AUTO:
            pool = np.union1d(split.forget, split.retain)
            others = [] if made_up else other_classes(split.forget, data.train.label_N, pool)
            _require_searchable(recipe, split, others)
            continue
        steps = parse_plan(plan.steps)
        if made_up and (plan.refine or recipe.forget.refine) == "class":
            continue  # which classes there will be is not known yet
        bound = bind(steps, regroup(recipe, data, split, lambda _: score_N, plan.refine))
        if budget is not None:
            mode = plan.retain or recipe.unlearn.retain
            spread_budget(bound, split.retain, mode, budget, recipe.train)
    left = len(split.retain) + len(split.forget)
    if int(recipe.sweep.include * left) < 1:
        raise DataError(f"sweep.include: {recipe.sweep.include} of {left} training examples leaves none")
    return regroup(recipe, data, split, lambda _: score_N)
