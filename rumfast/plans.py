"""RUM: a plan names an algorithm for each group of the forget set, to be run one after another."""

import copy
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
from pydantic import ValidationError

from rumfast.algorithms import ALGORITHMS, SgdConfig
from rumfast.config import Retain, Strict, TrainConfig, explain
from rumfast.data import Dataset, Split
from rumfast.errors import UsageError
from rumfast.models import Classifier
from rumfast.refinement import Group
from rumfast.runtime import derive_seed
from rumfast.training import Learner

WHOLE = "all"  # the forget set at once, unrefined
EACH = "each"  # every group in turn
_STEP = re.compile(
    r"^(?:(?P<group>[\w.-]+)\s*:)?\s*(?P<algorithm>\w+)\s*(?:\((?P<arguments>.*)\))?$", re.DOTALL
)


@dataclass(frozen=True)
class Step:
    """One algorithm with its hyper-parameters, for one group."""

    group: str
    algorithm: str
    config: Strict

    def __str__(self) -> str:
        changed = self.config.model_dump(exclude_defaults=True)
        arguments = ", ".join(f"{key}={value:.4g}" for key, value in changed.items())
        return f"{self.group}: {self.algorithm}" + (f"({arguments})" if arguments else "")


@dataclass(frozen=True)
class Unlearned:
    """An unlearned model and what it cost.

    Attributes:
        model: in eval mode.
        examples: examples whose gradient was taken, over all steps.
        wall_s: seconds, over all steps.
        steps: the steps as run, budget applied.
    """

    model: Classifier
    examples: int
    wall_s: float
    steps: tuple[str, ...]


def parse_plan(text: str) -> tuple[Step, ...]:
    """Parse ``"low: none > mid: finetune(lr=0.1, epochs=10) > high: salun(epochs=5)"``.

    ``each: A`` runs A on every group in turn (RUM^F); a step without a group, or ``all: A``, takes the whole
    forget set at once (vanilla).

    Raises:
        UsageError: a step does not parse, or names an unknown algorithm or hyper-parameter.

    >>> print(*parse_plan("low: none > high: finetune(lr=0.05)"), sep=" > ")
    low: none > high: finetune(lr=0.05)
    """
    steps = tuple(_parse_step(part.strip(), text) for part in text.split(">"))
    groups = [step.group for step in steps]
    if len(set(groups)) < len(groups):
        raise UsageError(f"plan {text!r}: each group may have one step, got {', '.join(groups)}")
    if len(steps) > 1 and {WHOLE, EACH} & set(groups):
        raise UsageError(f"plan {text!r}: '{WHOLE}' and '{EACH}' stand alone")
    return steps


def _parse_step(part: str, plan: str) -> Step:
    match = _STEP.match(part)
    if match is None:
        raise UsageError(
            f"plan {plan!r}: cannot read step {part!r}, expected GROUP: ALGORITHM(key=number, ...)"
        )
    name = match["algorithm"]
    if name not in ALGORITHMS:
        raise UsageError(
            f"plan {plan!r}: algorithm {name!r} is unknown, expected one of {', '.join(ALGORITHMS)}"
        )
    values = {}
    for pair in filter(None, (text.strip() for text in (match["arguments"] or "").split(","))):
        key, equals, value = (text.strip() for text in pair.partition("="))
        if not equals:
            raise UsageError(f"plan {plan!r}: cannot read {pair!r} in step {part!r}, expected key=number")
        if key in values:
            raise UsageError(f"plan {plan!r}: {key!r} is given twice in step {part!r}")
        values[key] = value
    try:
        return Step(match["group"] or WHOLE, name, ALGORITHMS[name].config.model_validate(values))
    except ValidationError as error:
        raise UsageError(f"plan {plan!r}: {name}: {explain(error)}") from None


def bind(steps: Sequence[Step], groups: Sequence[Group]) -> list[tuple[Step, Group]]:
    """Give each step its group's ids, in the plan's order.

    Raises:
        UsageError: the plan names a group that refinement did not make, or leaves one out.
    """
    whole = Group(WHOLE, np.sort(np.concatenate([group.ids for group in groups])))
    if len(steps) == 1 and steps[0].group == WHOLE:
        return [(steps[0], whole)]
    if len(steps) == 1 and steps[0].group == EACH:
        return [(replace(steps[0], group=group.name), group) for group in groups]
    by_name = {group.name: group for group in groups}
    if by_name.keys() != {step.group for step in steps}:
        raise UsageError(
            f"plan {' > '.join(map(str, steps))!r}: the groups are {', '.join(by_name)}; "
            "the plan must name each of them once"
        )
    return [(step, by_name[step.group]) for step in steps]


def kept_ids(bound: Sequence[tuple[Step, Group]], index: int, retain: np.ndarray, mode: Retain) -> np.ndarray:
    """Ids that step ``index`` may train on: R, and with ``remaining`` also the groups still to come."""
    later = [group.ids for _, group in bound[index + 1 :]] if mode == "remaining" else []
    return np.sort(np.concatenate([retain, *later]))


def spread_budget(
    bound: Sequence[tuple[Step, Group]], retain: np.ndarray, mode: Retain, budget: float, batch_size: int
) -> list[tuple[Step, Group]]:
    """Set each step's epochs so that the plan takes gradients of ``budget`` examples in all.

    Steps that train share the budget in proportion to the epochs × examples the plan gives them, so a plan
    keeps its balance at any budget. A plan of ``none`` alone takes nothing, and ``retrain`` what it takes.

    Args:
        retain, mode: as :func:`run_plan` gets them.
        budget: examples; whole batches may overshoot it by at most one batch per step.
        batch_size: of the training recipe.

    Raises:
        UsageError: the budget does not cover what the plan takes however few its epochs.
    """
    costs, fixed = [], 0
    for index, (step, group) in enumerate(bound):
        kept = len(kept_ids(bound, index, retain, mode))
        per_epoch, once = ALGORITHMS[step.algorithm].cost(len(group.ids), kept, batch_size)
        costs.append(per_epoch * step.config.epochs if isinstance(step.config, SgdConfig) else 0.0)
        fixed += once
    if not sum(costs):
        return list(bound)
    factor = (budget - fixed) / sum(costs)
    if factor <= 0:
        raise UsageError(
            f"budget_epochs: {budget:.0f} examples do not cover the plan's fixed cost of {fixed}"
        )
    return [(_with_epochs(step, factor), group) for step, group in bound]


def _with_epochs(step: Step, factor: float) -> Step:
    if not isinstance(step.config, SgdConfig):
        return step
    return replace(step, config=step.config.model_copy(update={"epochs": step.config.epochs * factor}))


def run_plan(
    learner: Learner, bound: Sequence[tuple[Step, Group]], retain: np.ndarray, *, mode: Retain, seed: int
) -> Unlearned:
    """Run a plan on the learner's model, in place.

    Args:
        retain: ids to keep when all groups are forgotten: R.
        mode: ``remaining`` lets step k train on the groups still to come, ``final`` on R alone.
    """
    started, before = time.perf_counter(), learner.examples
    for index, (step, group) in enumerate(bound):
        kept = kept_ids(bound, index, retain, mode)
        forget_F, kept_R = (torch.as_tensor(ids, device=learner.device) for ids in (group.ids, kept))
        run = ALGORITHMS[step.algorithm].run
        run(learner, forget_F, kept_R, step.config, derive_seed("step", seed, index))
    learner.model.eval()
    return Unlearned(
        learner.model,
        learner.examples - before,
        time.perf_counter() - started,
        tuple(str(step) for step, _ in bound),
    )


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
        budget: total examples to take gradients of; None keeps each step's own epochs.

    Raises:
        UsageError: the plan does not parse or does not fit the groups.
        DivergedError: a step's loss is not finite.
    """
    if retain not in get_args(Retain):
        raise UsageError(f"retain: got {retain!r}, expected one of {', '.join(get_args(Retain))}")
    text = plan if isinstance(plan, str) else _in_order(plan, groups)
    bound, config = bind(parse_plan(text), groups), config or TrainConfig()
    if budget is not None:
        bound = spread_budget(bound, split.retain, retain, budget, config.batch_size)
    learner = Learner(data, config, device, model=copy.deepcopy(original))
    return run_plan(learner, bound, split.retain, mode=retain, seed=seed)


def _in_order(algorithms: Sequence[str], groups: Sequence[Group]) -> str:
    if len(algorithms) != len(groups):
        raise UsageError(
            f"plan: got {len(algorithms)} algorithms for {len(groups)} groups, expected one each"
        )
    return " > ".join(f"{group.name}: {name}" for name, group in zip(algorithms, groups, strict=True))
