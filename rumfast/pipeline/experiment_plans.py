"""The plans that the rum experiment compares, and what the paper claims of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from rumfast.algorithms import ALGORITHMS
from rumfast.config import AUTO, PlanConfig
from rumfast.pipeline.experiment_runs import HEADLINE, NONE
from rumfast.pipeline.findings import Comparison
from rumfast.pipeline.variation import RESTARTS, Candidate, paper_plans, rum_f, shuffle, vanilla
from rumfast.plans import EACH, REVERSED, parse_plan, plan_text

SEARCHED = "auto beats every vanilla"
MEAN = "mean"  # of the headline metrics, seed by seed
REFINED = ("finetune", "neggrad_plus", "salun", "scrub")  # RUM^F and shuffle beside the best vanilla's own


def whole_families(trained: Sequence[str]) -> dict[str, Sequence[Candidate]]:
    """What to search for a set of one group: doing nothing, and every algorithm at once."""
    return {name: vanilla(name) for name in (NONE.name, *trained)}


def rum_families(trained: Sequence[str]) -> dict[str, Sequence[Candidate]]:
    """What to search: every algorithm at once, on refined and on random groups, and the paper's plan.

    Args:
        trained: all algorithms but ``none``.
    """
    return whole_families(trained) | {
        **{f"{name}+rum-f": rum_f(name) for name in trained if name not in RESTARTS},
        **{f"{name}+shuffle": shuffle(name) for name in trained if name in REFINED},
        "rum": paper_plans(),
    }


def rum_plans(found: Mapping[str, Any], mode: str) -> list[PlanConfig]:
    """The plans to measure, made of the best of each family that the search ``found``.

    Args:
        mode: the recipe's retain data, for plans that do not say.
    """
    chosen = {plan.name: plan for plan in best_plans(found)[1:]}
    whole = [name for name in chosen if name in ALGORITHMS]
    best = max(whole, key=lambda name: found["families"][name]["worth"], default="")
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


def claims(summary: Mapping[str, Any], trained: Sequence[str]) -> Iterable[Comparison]:
    """The paper's claims about plans, as the pairs of plans that were measured.

    Args:
        summary: an evaluation, with plans named as :func:`rum_plans` does, each with ``tried``, the number of
            candidates it was chosen from.
        trained: all algorithms but ``none``.
    """
    plans = {plan["name"]: plan for plan in summary["plans"]}
    refined = [f"{name}+rum-f" for name in trained]
    claimed: dict[str | None, list[tuple[str, str]]] = {
        "RUM^F beats vanilla": list(zip(refined, trained, strict=True)),
        "RUM^F beats shuffle": [(f"{name}+rum-f", f"{name}+shuffle") for name in trained],
        "RUM beats vanilla": [("rum", name) for name in trained],
        "low → high beats high → low": [(name, f"{name}+reversed") for name in ("rum", *refined)],
        None: [("rum+final", "rum"), ("rum+remaining", "rum")],
        SEARCHED: [(AUTO, name) for name in trained],
    }
    labels = {metric: summary["metrics"][metric]["label"] for metric in HEADLINE}
    for metric in (*HEADLINE, MEAN):
        label = labels.get(metric, f"the mean of {' and '.join(labels.values())}")
        for claim, pairs in claimed.items():
            if metric == MEAN and claim != SEARCHED:
                continue  # the paper says nothing of it; plan search goes by it
            for pair in pairs:
                if all(name in plans for name in pair):
                    text = None if claim is None else f"{claim} in {label}"
                    yield _compare(text, metric, plans[pair[0]], plans[pair[1]], len(pairs))


def _compare(
    claim: str | None, metric: str, one: Mapping[str, Any], other: Mapping[str, Any], among: int
) -> Comparison:
    """Two plans; the subject has the numbers that they were chosen from where these differ."""
    marks = [f" ({plan['tried']})" if one["tried"] != other["tried"] else "" for plan in (one, other)]
    metrics = HEADLINE if metric == MEAN else (metric,)
    one_S, other_S = (
        [fmean(values) for values in zip(*(plan["metrics"][name]["values"] for name in metrics), strict=True)]
        for plan in (one, other)
    )
    return Comparison(
        claim=claim,
        subject=f"{one['name']}{marks[0]} − {other['name']}{marks[1]}",
        metric=metric,
        one=one["name"],
        other=other["name"],
        one_S=one_S,
        other_S=other_S,
        tried=(one["tried"], other["tried"]),
        among=among,
    )


def best_plans(found: Mapping[str, Any]) -> list[PlanConfig]:
    """Doing nothing, and the best candidate of each other family under the family's name."""
    chosen = [_plan(name, best) for name, best in found["families"].items() if name != NONE.name]
    return [NONE, *chosen]


def _plan(name: str, found: Mapping[str, Any]) -> PlanConfig:
    return PlanConfig(name=name, **{key: found[key] for key in ("steps", "refine", "retain")})


def profile_of(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Mean of each score over the forget set, and over all examples of its surrogates."""
    return {
        score: {"forget": means["forget"], "surrogates": fmean(means["surrogates"])}
        for score, means in found.get("profile", {}).items()
    }


def tried_of(found: Mapping[str, Any], name: str) -> int:
    """Number of candidates that the plan ``name`` was chosen from: by its family, and ``auto`` by all.

    A plan in reversed order, or with the other retain data, was not chosen anew.
    """
    families = found["families"]
    if name == AUTO:
        return sum(each["tried"] for each in families.values() if each["refine"] is None)  # no controls
    for suffix in ("+reversed", "+final", "+remaining"):
        name = name.removesuffix(suffix)
    return families[name]["tried"] if name in families else 1
