"""What the numbers say, in plain words: one verdict for the whole request, and the cautions a reader needs.

A plan *passes* a metric when its mean lies in the oracle null band: the metric cannot tell it from models
that never saw the forget set. A value beyond the band's good end passes too: nothing is wrong with being
nearer to the oracle than another oracle is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rumfast.reporting.estimates import (
    band_range,
    cost_text,
    count_text,
    estimate,
    finite,
    metric_estimate,
    metric_text,
    range_text,
    standing,
)

HEADLINE = ("tow", "tow_mia")  # the paper's two summary metrics; everything else explains them
FEW_ORACLES = 5  # below this the band is a range of so few numbers that its ends are mostly luck


class Verdict(NamedTuple):
    """`state` picks the mark on the page; `headline` is the one line to quote; `detail` is the evidence."""

    state: Literal["met", "partly", "unmet", "unjudged"]
    headline: str
    detail: str


def verdict(result: Mapping[str, Any]) -> Verdict:
    """Judge the best plan that is not itself a retraining against the oracle null bands.

    Best: passes the most headline metrics, then the highest ToW, then the lowest cost.

    >>> verdict({"plans": [], "metrics": {}, "bands": {}}).state
    'unjudged'
    """
    size = count_text((result.get("forget") or {}).get("size"))
    plans = [plan for plan in result["plans"] if not is_steps(plan, "retrain")]
    judged = judgeable(result)
    if not plans:
        return Verdict("unjudged", "No verdict: no unlearning plan was evaluated.", "")
    best = max(plans, key=lambda plan: _rank(result, plan, judged))
    name, detail = f"“{best['name']}”", _evidence(result, best)
    if not judged:
        line = "No verdict: there is no range of retrained models to read the numbers against."
        ask = f"At least two oracles are needed. The plan with the highest ToW is {name}."
        return Verdict("unjudged", line, f"{ask} {detail}")
    passed = [metric for metric in judged if passes(result, best, metric)]
    failed = [metric for metric in judged if metric not in passed]
    if not passed:
        line = f"No plan compared here matches retraining without the {size} examples."
        return Verdict("unmet", line, f"The closest is {name}. {detail}")
    without = f"one retrained without the {size} examples"
    line = f"After {name}, the model matches {without} on {_labels(result, passed)}"
    if failed:
        return Verdict("partly", f"{line}, but not on {_labels(result, failed)}.", detail)
    return Verdict("met", f"{line}.", detail)


def cautions(result: Mapping[str, Any]) -> list[str]:
    """What would make a careful reader doubt or qualify the verdict; empty when nothing does."""
    notes, judged = _audit_checks(result), judgeable(result)
    if result.get("seeds") == 1:
        notes.append("One seed per plan: no intervals, and small differences between plans may be chance.")
    oracles = finite(result.get("oracles"))
    if judged and oracles is not None and oracles < FEW_ORACLES:
        notes.append(f"The null bands rest on {oracles:.0f} oracles; more would make their ends firmer.")
    if diverged := finite((result.get("sweep") or {}).get("diverged")):
        notes.append(f"{diverged:.0f} members of the sweep diverged and are left out of the scores.")
    notes += [f"{text}." for text in (result.get("forget") or {}).get("notices") or ()]
    return notes


def _audit_checks(result: Mapping[str, Any]) -> list[str]:
    """Whether the audit can be believed: a genuine retraining must pass, the untouched original must not."""
    notes, judged, bands = [], judgeable(result), result.get("bands") or {}
    for plan in result["plans"]:
        known = [metric for metric in judged if standing(plan, metric, bands.get(metric))]
        failed = [metric for metric in known if not passes(result, plan, metric)]
        if is_steps(plan, "retrain") and failed:
            notes.append(
                f"“{plan['name']}” is a genuine retraining and fails {_labels(result, failed)}: "
                "the audit itself is not to be trusted here."
            )
        if is_steps(plan, "none") and known and not failed:
            notes.append(
                f"“{plan['name']}” leaves the original model as it is and passes all the same: on this "
                "forget set these metrics cannot tell unlearning from doing nothing."
            )
    return notes


def judgeable(result: Mapping[str, Any]) -> list[str]:
    """The headline metrics that have a null band."""
    bands = result.get("bands") or {}
    return [metric for metric in HEADLINE if band_range(bands.get(metric)) is not None]


def passes(result: Mapping[str, Any], plan: Mapping[str, Any], metric: str) -> bool:
    """In the band, or beyond its good end when the metric has one."""
    place = standing(plan, metric, (result.get("bands") or {}).get(metric))
    better = ((result.get("metrics") or {}).get(metric) or {}).get("better")
    return place == "inside" or (place, better) in {("above", "higher"), ("below", "lower")}


def is_steps(plan: Mapping[str, Any], algorithm: str) -> bool:
    """Whether every step of a plan, written ``group: algorithm(…) > …``, is the one algorithm."""
    steps = str(plan.get("steps") or "").split(">")
    return all(step.split(":")[-1].split("(")[0].strip() == algorithm for step in steps)


def metric_label(result: Mapping[str, Any], metric: str) -> str:
    """The metric's display name, or its key."""
    return str(((result.get("metrics") or {}).get(metric) or {}).get("label") or metric)


def _labels(result: Mapping[str, Any], metrics: Sequence[str]) -> str:
    return " and ".join(metric_label(result, metric) for metric in metrics)


def _rank(
    result: Mapping[str, Any], plan: Mapping[str, Any], judged: Sequence[str]
) -> tuple[int, float, float]:
    tow, cost = metric_estimate(plan, "tow").mean, estimate(plan.get("cost")).mean
    worst = float("-inf")
    return (
        sum(passes(result, plan, metric) for metric in judged),
        worst if tow is None else tow,
        worst if cost is None else -cost,
    )


def _evidence(result: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """Value, interval and band of each headline metric, and the cost, as sentences."""
    sentences = []
    for metric in HEADLINE:
        value = metric_estimate(plan, metric)
        if value.mean is None:
            continue
        label, band = metric_label(result, metric), band_range((result.get("bands") or {}).get(metric))
        text = f"{label} is {metric_text(metric, value.mean)}"
        if value.interval:
            text += f" (95% interval {range_text(metric, value.interval)})"
        if band:
            text += f"; retrained models score {range_text(metric, band)} against one another"
        if band and value.interval and value.mean >= band[0] > value.interval[0]:
            text += " (the interval reaches below that range: more seeds would settle it)"
        sentences.append(text + ".")
    cost = estimate(plan.get("cost")).mean
    if cost is not None:
        sentences.append(f"The cost is {cost_text(cost)} of retraining.")
    return " ".join(sentences)
