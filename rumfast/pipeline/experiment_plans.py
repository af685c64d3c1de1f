"""The plans that the rum experiment compares, and what the paper claims of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rumfast.algorithms import ALGORITHMS
from rumfast.config import PlanConfig
from rumfast.pipeline.experiment_runs import HEADLINE, NONE
from rumfast.pipeline.findings import Comparison
from rumfast.pipeline.variation import Candidate, rum_f, shuffle, vanilla
from rumfast.pipeline.variation import rum as paper_plans
from rumfast.plans import EACH, REVERSED, parse_plan, plan_text

REFINED = ("finetune", "neggrad_plus", "salun", "scrub")  # RUM^F and shuffle beside the best vanilla's own


def rum_families(algorithms: Sequence[str]) -> dict[str, Sequence[Candidate]]:
    """What to search: every algorithm at once, on refined and on random groups, and the paper's plan."""
    trained = [name for name in algorithms if name != "none"]
    return {
        **{name: vanilla(name) for name in trained},
        **{f"{name}+rum-f": rum_f(name) for name in trained},
        **{f"{name}+shuffle": shuffle(name) for name in trained if name in REFINED},
        "rum": paper_plans(),
    }


def rum_plans(found: Mapping[str, Any], mode: str) -> list[PlanConfig]:
    """The plans to measure, made of the best of each family that the search ``found``.

    Args:
        mode: the recipe's retain data, for plans that do not say.
    """
    chosen = {plan.name: plan for plan in best_plans(found)}
    whole = [name for name in chosen if name in ALGORITHMS]
    best = max(whole, key=lambda name: found["families"][name]["chosen_on"]["objective"]["mean"], default="")
    refined = [name for name in whole if name in {*REFINED, best}]
    names = [*whole, *(f"{name}+{kind}" for name in refined for kind in ("rum-f", "shuffle"))]
    plans = [NONE, *(chosen[name] for name in names if name in chosen)]
    plans += [_backwards(plan) for plan in plans if plan.name.endswith("+rum-f")]
    if "rum" in chosen:
        plan = chosen["rum"]
        other = "remaining" if (plan.retain or mode) == "final" else "final"
        final = plan.model_copy(update={"name": f"rum+{other}", "retain": other})
        plans += [plan, _backwards(plan), final]
    return [*plans, _plan("auto", found["finalists"][found["best"]])]


def _backwards(plan: PlanConfig) -> PlanConfig:
    """The plan from its last group to its first."""
    steps = parse_plan(plan.steps)
    if steps[0].group == EACH:
        text = plan_text([replace(steps[0], group=REVERSED)])
    else:
        text = plan_text(steps[::-1])
    return plan.model_copy(update={"name": f"{plan.name}+reversed", "steps": text})


def claims(summary: Mapping[str, Any], algorithms: Sequence[str]) -> Iterable[Comparison]:
    """The paper's claims about plans, as the pairs of plans that were measured.

    Args:
        summary: an evaluation, with plans named as :func:`rum_plans` does.
    """
    values = {plan["name"]: plan["metrics"] for plan in summary["plans"]}
    refined = [f"{name}+rum-f" for name in algorithms]
    pairs: list[tuple[str | None, str, str]] = [
        *(("RUM^F beats vanilla", f"{name}+rum-f", name) for name in algorithms),
        *(("RUM^F beats shuffle", f"{name}+rum-f", f"{name}+shuffle") for name in algorithms),
        *(("RUM beats vanilla", "rum", name) for name in ("finetune", "salun")),
        *(("low → high beats high → low", name, f"{name}+reversed") for name in ("rum", *refined)),
        (None, "rum+final", "rum"),
        (None, "rum+remaining", "rum"),
        *(("auto beats every vanilla", "auto", name) for name in algorithms if name != "none"),
    ]
    for metric in HEADLINE:
        label = summary["metrics"][metric]["label"]
        for claim, one, other in pairs:
            if one in values and other in values:
                text = None if claim is None else f"{claim} in {label}"
                sides = (values[each][metric]["values"] for each in (one, other))
                yield Comparison(text, f"{one} − {other}", metric, one, other, *sides)


def best_plans(found: Mapping[str, Any]) -> list[PlanConfig]:
    """The best candidate of each family, under the family's name."""
    return [_plan(name, best) for name, best in found["families"].items()]


def _plan(name: str, found: Mapping[str, Any]) -> PlanConfig:
    return PlanConfig(name=name, **{key: found[key] for key in ("steps", "refine", "retain")})
