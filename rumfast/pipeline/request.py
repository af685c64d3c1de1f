"""What a recipe asks for: its forget set, the groups, and the budget of its plans."""

from collections.abc import Callable

import numpy as np

from rumfast.config import Recipe
from rumfast.data import Dataset, Split, select_forget
from rumfast.errors import DataError
from rumfast.plans import bind, parse_plan, spread_budget
from rumfast.refinement import Group, refine, refine_at_random, refine_by_class


def resolve(recipe: Recipe, data: Dataset, score_N: np.ndarray | None, excluded: tuple[int, ...]) -> Split:
    """Resolve the request within the pool that earlier requests left.

    Raises:
        UsageError, DataError: the request cannot be read, or the data cannot meet it.
    """
    request, n = recipe.forget.request, len(data)
    pool = np.setdiff1d(np.arange(n), np.array(excluded, np.int64))
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
    split = select_forget(request, data.train.label_N[pool], score_P, flipped, recipe.forget.seed)
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


def budget_of(recipe: Recipe, split: Split) -> int | None:
    """Examples whose gradient each plan may take; None leaves it to the plans' own epochs."""
    epochs = recipe.unlearn.budget_epochs
    return None if epochs is None else round(epochs * (len(split.retain) + len(split.forget)))


def rehearse(recipe: Recipe, data: Dataset, excluded: tuple[int, ...]) -> None:
    """Resolve request, groups and plans with made-up scores, so that a mistake in them costs no training.

    Raises:
        UsageError, DataError: as the stages would, hours later.
    """
    score_N = np.zeros(len(data))
    split = resolve(recipe, data, score_N, excluded)
    budget = budget_of(recipe, split)
    for plan in recipe.plans:
        bound = bind(parse_plan(plan.steps), regroup(recipe, data, split, lambda _: score_N, plan.refine))
        if budget is not None:
            mode = plan.retain or recipe.unlearn.retain
            spread_budget(bound, split.retain, mode, budget, recipe.train.batch_size)
    pool = len(split.retain) + len(split.forget)
    if int(recipe.sweep.include * pool) < 1:
        raise DataError(f"sweep.include: {recipe.sweep.include} of {pool} training examples leaves none")
