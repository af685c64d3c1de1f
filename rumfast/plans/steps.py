"""Plans as text: which algorithm, with which hyper-parameters, for which group, in which order."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from rumfast.algorithms import ALGORITHMS
from rumfast.config import AUTO, PlanConfig, Strict, explain
from rumfast.errors import UsageError

WHOLE = "all"  # the forget set at once, unrefined
EACH = "each"  # every group in turn
REVERSED = "reversed"  # every group in turn, the last one first
ALONE = (WHOLE, EACH, REVERSED)
_NAMED = re.compile(r"^\s*(?P<name>[\w.+-]+)\s*=(?P<steps>.*)$", re.DOTALL)
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
        return self.text("{:.4g}".format)

    def text(self, number: Callable[[float], str] = repr) -> str:
        """The step as :func:`parse_plan` reads it; by default with every digit."""
        changed = self.config.model_dump(exclude_defaults=True)
        shown = {key: number(value) if isinstance(value, float) else value for key, value in changed.items()}
        arguments = ", ".join(f"{key}={value}" for key, value in shown.items())
        return f"{self.group}: {self.algorithm}" + (f"({arguments})" if arguments else "")


def parse_plan(text: str) -> tuple[Step, ...]:
    """Parse ``"low: none > mid: finetune(lr=0.1, epochs=10) > high: salun(epochs=5)"``.

    Steps run in the order given, whatever that of the groups. ``each: A`` runs A on every group in turn
    (RUM^F), ``reversed: A`` likewise from the last group to the first; a step without a group, or ``all: A``,
    takes the whole forget set at once (vanilla).

    Raises:
        UsageError: a step does not parse, or names an unknown algorithm or hyper-parameter.

    >>> print(*parse_plan("low: none > high: finetune(lr=0.05)"), sep=" > ")
    low: none > high: finetune(lr=0.05)
    """
    steps = tuple(_parse_step(part.strip(), text) for part in text.split(">"))
    groups = [step.group for step in steps]
    if len(set(groups)) < len(groups):
        raise UsageError(f"plan {text!r}: each group may have one step, got {', '.join(groups)}")
    if len(steps) > 1 and set(ALONE) & set(groups):
        raise UsageError(f"plan {text!r}: {', '.join(map(repr, ALONE))} each stand alone")
    return steps


def plan_text(steps: Sequence[Step]) -> str:
    """The text that parses back to exactly these steps, however they were written.

    >>> plan_text(parse_plan("low:none>high:finetune( lr = 1e-1 )"))
    'low: none > high: finetune(lr=0.1)'
    """
    return " > ".join(step.text() for step in steps)


def plan_name(steps: Sequence[Step]) -> str:
    """A folder's name for a plan that was given none: its algorithms, and a digest of its text.

    >>> plan_name(parse_plan("low:none > high:finetune")) == plan_name(parse_plan("low: none>high: finetune"))
    True
    """
    digest = hashlib.sha256(plan_text(steps).encode()).hexdigest()
    return f"{'+'.join(step.algorithm for step in steps)[:48]}-{digest[:8]}"


def read_plan(text: str) -> PlanConfig:
    """The plan that ``NAME=STEPS``, or ``STEPS`` alone, says; one without a name gets :func:`plan_name`'s.

    Steps that are left to plan search, ``auto``, are called so too.

    Raises:
        UsageError: it does not parse, or its name cannot be a folder's.

    >>> read_plan("rum=low:none > high:finetune(lr=0.1)").name
    'rum'
    """
    named = _NAMED.match(text)
    name, given = (named["name"], named["steps"]) if named else (None, text)
    if given.strip() == AUTO:
        default, written = AUTO, AUTO
    else:
        steps = parse_plan(given)
        default, written = plan_name(steps), plan_text(steps)
    try:
        return PlanConfig(name=name or default, steps=written)
    except ValidationError as error:
        raise UsageError(f"plan {text!r}: {explain(error)}") from None


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


def same_steps(one: PlanConfig, other: PlanConfig) -> bool:
    """Do two plans say the same, however they are written?"""
    return one.steps == other.steps or (
        AUTO not in (one.steps, other.steps) and parse_plan(one.steps) == parse_plan(other.steps)
    )
