"""Trials: what candidate plans do to surrogate forget sets."""

from typing import Any

import numpy as np

from rumfast.data import Dataset
from rumfast.errors import DataError, DivergedError, MismatchError, UsageError
from rumfast.evaluation import score_model
from rumfast.plans import bind, parse_plan, run_plan, spread_budget
from rumfast.refinement import Group
from rumfast.sweeps.population import Population
from rumfast.sweeps.spec import GroupSpec
from rumfast.training import Learner


def run_trial(learner: Learner, population: Population, index: int, data: Dataset) -> bool:
    """Run and commit one trial; False where another worker has before.

    A candidate sees the same random numbers on a pair as every other, which makes their difference less
    noisy than either.
    """
    outcome = _outcome(learner, population, index, data)
    try:
        return population.save_trial(index, outcome)
    except MismatchError:
        if learner.device.type == "cpu":
            raise
        return False  # a GPU may add up in another order


def _outcome(learner: Learner, population: Population, index: int, data: Dataset) -> dict[str, Any]:
    spec = population.spec
    if spec.parent is None or not spec.surrogates or not spec.originals:
        raise DataError(f"{population.root}: trials need a parent and surrogates")
    number, pair = divmod(index, spec.pairs)
    surrogate, original = spec.pair(pair)
    candidate = spec.candidates[number]
    groups = groups_of(spec.surrogates[surrogate].groups[candidate.refine])
    forget = np.sort(np.concatenate([group.ids for group in groups]))
    retain = np.setdiff1d(spec.pool(len(data)), forget)
    bound = bind(parse_plan(candidate.steps), groups)
    if spec.budget is not None:
        bound = spread_budget(bound, retain, candidate.retain, spec.budget, spec.train)
    learner.model.load_state_dict(Population.open(population.root / spec.parent).state(original))
    before = learner.examples
    try:
        run_plan(learner, bound, retain, mode=candidate.retain, seed=spec.member_seed(pair))
        predictions = learner.predictor.predict()
    except (DivergedError, UsageError) as error:  # or it does not fit into this machine's memory
        return {"index": index, "scores": None, "examples": learner.examples - before, "reason": str(error)}
    scores = score_model(
        predictions.train_NC,
        predictions.test_NC,
        data.train.label_N,
        data.test.label_N,
        forget,
        np.setdiff1d(retain, spec.forget),  # what is to be forgotten in the end tells nothing of retaining
        mia_examples=spec.mia_examples,
    )
    return {"index": index, "scores": scores.known(), "examples": learner.examples - before}


def groups_of(stored: tuple[GroupSpec, ...]) -> list[Group]:
    """Groups as plans take them."""
    return [Group(group.name, np.array(group.ids, np.int64)) for group in stored]
