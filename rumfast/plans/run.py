"""Run a plan: bind its steps to groups, spread the budget, unlearn one group after another."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

import numpy as np
import torch

from rumfast.algorithms import ALGORITHMS, SgdConfig
from rumfast.config import Retain, TrainConfig
from rumfast.data import Dataset, Split
from rumfast.errors import UsageError
from rumfast.models import Classifier
from rumfast.plans.steps import EACH, REVERSED, WHOLE, Step, parse_plan
from rumfast.refinement import Group, filled
from rumfast.runtime import derive_seed
from rumfast.training import Learner


class StepRecord(NamedTuple):
    """What one step of a plan took."""

    text: str  # as run, budget applied
    asked: float  # examples whose gradient its epochs amount to; whole batches may take it further
    examples: int  # whose gradient it took
    wall_s: float
    note: str | None = None  # what the algorithm says of what it did; most say nothing


@dataclass(frozen=True)
class Unlearned:
    """An unlearned model and what it cost.

    Attributes:
        model: in eval mode.
        records: what each step took, in the plan's order.
        examples: examples whose gradient was taken, over all steps.
        wall_s: seconds, over all steps.
        steps: the steps as run, budget applied.
        notes: what algorithms say of what they did, each under its group's name; most say nothing.
    """

    model: Classifier
    records: tuple[StepRecord, ...]

    @property
    def examples(self) -> int:
        return sum(record.examples for record in self.records)

    @property
    def wall_s(self) -> float:
        return sum(record.wall_s for record in self.records)

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(record.text for record in self.records)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(record.note for record in self.records if record.note is not None)


def bind(steps: Sequence[Step], groups: Sequence[Group]) -> list[tuple[Step, Group]]:
    """Give each step its group's ids, in the plan's order; steps of empty groups are left out.

    Raises:
        UsageError: the plan names a group that refinement did not make, or leaves out one that holds
            examples.
    """
    whole = Group(WHOLE, np.sort(np.concatenate([group.ids for group in groups])))
    if len(steps) == 1 and steps[0].group == WHOLE:
        return [(steps[0], whole)]
    held = filled(groups)
    if len(steps) == 1 and steps[0].group in (EACH, REVERSED):
        turns = held if steps[0].group == EACH else held[::-1]
        return [(replace(steps[0], group=group.name), group) for group in turns]
    by_name = {group.name: group for group in groups}
    named, needed = {step.group for step in steps}, {group.name for group in held}
    if not needed <= named <= by_name.keys():
        raise UsageError(
            f"plan {' > '.join(map(str, steps))!r}: the groups are {', '.join(by_name)}; "
            "the plan must name each of them once"
        )
    return [(step, by_name[step.group]) for step in steps if step.group in needed]


def kept_ids(bound: Sequence[tuple[Step, Group]], index: int, retain: np.ndarray, mode: Retain) -> np.ndarray:
    """Ids that step ``index`` may train on: R, and with ``remaining`` also the groups still to come."""
    later = [group.ids for _, group in bound[index + 1 :]] if mode == "remaining" else []
    return np.sort(np.concatenate([retain, *later]))


def spread_budget(
    bound: Sequence[tuple[Step, Group]], retain: np.ndarray, mode: Retain, budget: float, train: TrainConfig
) -> list[tuple[Step, Group]]:
    """Set each step's epochs so that the plan takes gradients of ``budget`` examples in all.

    Steps that train share the budget in proportion to the epochs × examples the plan gives them, so a plan
    keeps its balance at any budget. What no epochs can change comes first: saliency, or all of ``retrain``,
    which runs the recipe's epochs. A plan without epochs of its own takes what it takes, if that is not more.

    Args:
        retain, mode: as :func:`run_plan` gets them.
        budget: examples; whole batches may overshoot it by at most one batch per step.
        train: the training recipe.

    Raises:
        UsageError: the budget does not cover what the plan takes however few its epochs.
    """
    costs = [step_cost(bound, index, retain, mode, train) for index in range(len(bound))]
    variable, fixed = (sum(column) for column in zip(*costs, strict=True))
    if budget < fixed or (variable and budget == fixed):
        hint = "; retrain runs the recipe's epochs" if any(s.algorithm == "retrain" for s, _ in bound) else ""
        raise UsageError(
            f"budget_epochs: {budget:.0f} examples do not cover the plan's fixed cost of {fixed:.0f}{hint}"
        )
    if not variable:
        return list(bound)
    return [(_with_epochs(step, (budget - fixed) / variable), group) for step, group in bound]


def step_cost(
    bound: Sequence[tuple[Step, Group]], index: int, retain: np.ndarray, mode: Retain, train: TrainConfig
) -> tuple[float, float]:
    """Examples whose gradient step ``index`` takes: those that its epochs scale, and the others."""
    step, group = bound[index]
    kept = len(kept_ids(bound, index, retain, mode))
    per_epoch, once = ALGORITHMS[step.algorithm].cost(len(group.ids), kept, train.batch_size, step.config)
    if isinstance(step.config, SgdConfig):
        return per_epoch * step.config.epochs, once
    return 0.0, per_epoch * train.epochs + once


def _with_epochs(step: Step, factor: float) -> Step:
    if not isinstance(step.config, SgdConfig):
        return step
    return replace(step, config=step.config.scaled(factor))


def run_plan(
    learner: Learner,
    bound: Sequence[tuple[Step, Group]],
    retain: np.ndarray,
    *,
    mode: Retain,
    seed: int,
    done: Sequence[StepRecord] = (),
    after_step: Callable[[Sequence[StepRecord]], None] | None = None,
) -> Unlearned:
    """Run a plan on the learner's model, in place.

    No state but the weights goes from one step to the next, so a plan can go on from them after any step.

    Args:
        retain: ids to keep when all groups are forgotten: R.
        mode: ``remaining`` lets step k train on the groups still to come, ``final`` on R alone.
        done: records of the steps that the model has behind it already; they are not run again.
        after_step: called with the records so far after each step but the last.

    Raises:
        DivergedError: a step's loss is not finite.
        UsageError: a step does not fit into the device's memory.
    """
    records = list(done)
    for index in range(len(done), len(bound)):
        step, group = bound[index]
        kept = kept_ids(bound, index, retain, mode)
        asked = sum(step_cost(bound, index, retain, mode, learner.config))
        started, before = time.perf_counter(), learner.examples
        forget_F, kept_R = (torch.as_tensor(ids, device=learner.device) for ids in (group.ids, kept))
        run = ALGORITHMS[step.algorithm].run
        try:
            note = run(learner, forget_F, kept_R, step.config, derive_seed("step", seed, index))
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"{step}: does not fit into {learner.device}'s memory ({error}); raise micro_batches, or "
                "take another algorithm"
            ) from None
        taken, wall_s = learner.examples - before, time.perf_counter() - started
        records.append(StepRecord(str(step), asked, taken, wall_s, note and f"{step.group}: {note}"))
        if after_step is not None and index + 1 < len(bound):
            after_step(records)
    learner.model.eval()
    return Unlearned(learner.model, tuple(records))


def rum(
    original: Classifier,
    data: Dataset,
    split: Split,
    groups: Sequence[Group],
    plan: str | Sequence[str],
    config: TrainConfig | None = None,
    *,
    retain: Retain = "remaining",
    budget: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Unlearned:
    """Unlearn the groups of a refined forget set in sequence (Zhao et al. 2024, section 5).

    Args:
        original: the model trained on everything; it is left untouched.
        groups: from ``refine``.
        plan: a plan's text (see :func:`parse_plan`), or one algorithm per group, in the groups' order.
        config: the recipe the original was trained with.
        budget: total examples to take gradients of, see :func:`spread_budget`; None keeps each step's own
            epochs.

    Raises:
        UsageError: the plan does not parse or does not fit the groups.
        DivergedError: a step's loss is not finite.
    """
    if retain not in get_args(Retain):
        raise UsageError(f"retain: got {retain!r}, expected one of {', '.join(get_args(Retain))}")
    text = plan if isinstance(plan, str) else _in_order(plan, groups)
    bound, config = bind(parse_plan(text), groups), config or TrainConfig()
    if budget is not None:
        bound = spread_budget(bound, split.retain, retain, budget, config)
    learner = Learner(data, config, device, model=copy.deepcopy(original))
    return run_plan(learner, bound, split.retain, mode=retain, seed=seed)


def _in_order(algorithms: Sequence[str], groups: Sequence[Group]) -> str:
    if len(algorithms) != len(groups):
        raise UsageError(
            f"plan: got {len(algorithms)} algorithms for {len(groups)} groups, expected one each"
        )
    return " > ".join(f"{group.name}: {name}" for name, group in zip(algorithms, groups, strict=True))
