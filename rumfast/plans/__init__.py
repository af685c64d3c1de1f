"""RUM: a plan names an algorithm for each group of the forget set, to be run one after another."""

from rumfast.plans.run import StepRecord, Unlearned, bind, kept_ids, rum, run_plan, spread_budget, step_cost
from rumfast.plans.steps import (
    ALONE,
    EACH,
    REVERSED,
    WHOLE,
    Step,
    parse_plan,
    plan_name,
    plan_text,
    read_plan,
    same_steps,
)

__all__ = [
    "ALONE",
    "EACH",
    "REVERSED",
    "WHOLE",
    "Step",
    "StepRecord",
    "Unlearned",
    "bind",
    "kept_ids",
    "parse_plan",
    "plan_name",
    "plan_text",
    "read_plan",
    "rum",
    "run_plan",
    "same_steps",
    "spread_budget",
    "step_cost",
]
