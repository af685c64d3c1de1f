"""What the numbers say, in plain words: one verdict for the whole request, and the cautions a reader needs.

Whether a plan *matches*, *differs* or *cannot be told* is decided by the evaluation, metric by metric; see
``rumfast.evaluation.verdicts``. Here it becomes sentences, the same for report, terminal and JSON.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from rumfast.reporting.earlier import earlier_text
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
from rumfast.reporting.totals import exact_text, total_text

Result = Mapping[str, Any]
HEADLINE = ("tow", "tow_mia")  # the paper's two summary metrics; everything else explains them
FORGETTING = ("accuracy_forget", "mia", "tow", "tow_mia", "accuracy_test_forgotten")  # look at the forget set
ORDER = ("differs", "cannot tell", "matches")
FEW_ORACLES = 5  # below this the band is a range of so few numbers that its ends are mostly luck


class Verdict(NamedTuple):
    """`state` picks the mark on the page; `headline` is the one line to quote; `detail` is the evidence."""

    state: Literal["matches", "differs", "cannot tell"]
    headline: str
    detail: str


def verdict(result: Result) -> Verdict:
    """Judge the best plan that is not itself a retraining.

    Best: one that matches before one that cannot be told before one that differs, then the fewest metrics
    outside, the highest ToW, the lowest cost.

    >>> verdict({"plans": [], "metrics": {}, "bands": {}}).state
    'cannot tell'
    """
    plans = [plan for plan in result["plans"] if not is_steps(plan, "retrain")]
    if not plans:
        return Verdict("cannot tell", "No verdict: no unlearning plan was evaluated.", "")
    if not result.get("bands"):
        line = "No verdict: there is no range of retrained models to read the numbers against."
        return Verdict("cannot tell", line, "At least two oracles are needed.")
    best = max(plans, key=lambda plan: _rank(result, plan))
    without = f"one retrained without the {_size(result)}"
    if best["verdict"] == "matches":
        line = f"After “{best['name']}”, the model matches {without} on {_labels(result, best, 'inside')}."
        return Verdict("matches", line, _evidence(result, best))
    if best["verdict"] == "differs":
        return Verdict("differs", _difference(result, best), _evidence(result, best))
    if not powerful(result):
        return Verdict("cannot tell", *_powerless(result))
    line = f"Cannot tell whether the model after “{best['name']}” matches {without}: {_doubt(result, best)}."
    return Verdict("cannot tell", line, _evidence(result, best))


def powerful(result: Result) -> list[str]:
    """The metrics of forgetting that tell the original from retrained models."""
    return [metric for metric in FORGETTING if (result["power"].get(metric) or {}).get("power")]


def _size(result: Result) -> str:
    size = (result.get("forget") or {}).get("size")
    return "example" if size == 1 else f"{count_text(size)} examples"


def _difference(result: Result, plan: Mapping[str, Any]) -> str:
    """The headline where no plan matches: how the best one differs."""
    line = f"No plan compared here matches retraining without the {_size(result)}."
    said = f"The closest, “{plan['name']}”,"
    if over := [metric for metric in _placed(result, plan, "outside") if is_over_forgotten(plan, metric)]:
        return f"{line} {said} over-forgets: {_against_band(result, plan, over[0])}."
    if still := [metric for metric in _placed(result, plan, "outside") if _is_one_way(result, metric)]:
        return f"{line} {said} still remembers: {_against_band(result, plan, still[0])}."
    if labels := _labels(result, plan, "outside"):
        return f"{line} {said} differs by {labels}."
    return f"{line} {said} differs: {plan['reasons'][0]}."


def _powerless(result: Result) -> tuple[str, str]:
    """Headline and detail where even the original scores as retrained models do."""
    size = _size(result)
    them = "it" if size == "example" else "them"
    line = (
        f"Cannot tell whether any plan forgot the {size}: the model that plans start from, which was trained "
        f"on {them}, already scores like one that was not, by every metric that looks at {them}."
    )
    shown = [metric for metric in ("accuracy_forget", "mia") if band_range(result["bands"].get(metric))]
    spans = " and ".join(
        f"{range_text(metric, band_range(result['bands'][metric]))} in {metric_label(result, metric)}"
        for metric in shown
    )
    expected = f"As far as {result['oracles']} oracles tell, one more retrained model would score {spans}."
    needed = [
        row["needed"] for metric in FORGETTING if (row := result["power"].get(metric)) and row["needed"]
    ]
    more = (
        f"About {min(needed)} seeds and {min(needed)} oracles would tell that model apart "
        "(evaluate.seeds and evaluate.oracles in the recipe); "
        if needed
        else "Not even 200 seeds and oracles would tell that model apart; "
    )
    audit = f"{more}`rumfast audit` looks with sharper metrics, at many more models."
    return line, " ".join([expected, audit, *earlier_text(result), *whole_cost(result)])


def _doubt(result: Result, plan: Mapping[str, Any]) -> str:
    """The reason why a plan cannot be told, where some metric could tell the original."""
    if unclear := _placed(result, plan, "cannot tell"):
        reach = "more seeds or oracles would settle it"
        return f"{_against_band(result, plan, unclear[0])}, and the interval reaches into that range; {reach}"
    like = _labels(result, plan, "inside") or "no metric with power"
    return (
        f"it scores like one on {like}, but no membership attack made here tells even the model that plans "
        "start from from retrained ones"
    )


def _against_band(result: Result, plan: Mapping[str, Any], metric: str) -> str:
    value = metric_estimate(plan, metric)
    interval = f" ({range_text(metric, value.interval)})" if value.interval else ""
    return (
        f"{metric_label(result, metric)} is {metric_text(metric, value.mean)}{interval} where a retrained "
        f"model is expected at {range_text(metric, band_range(result['bands'][metric]))}"
    )


def cautions(result: Result) -> list[str]:
    """What would make a careful reader doubt or qualify the verdict; empty when nothing does."""
    notes = [*_broken(result), *_over_forgetting(result)]
    if result.get("seeds") == 1:
        notes.append(
            "One seed per plan: its spread is not known and taken to be that of the oracles; small "
            "differences between plans may be chance."
        )
    oracles = finite(result.get("oracles"))
    if oracles is not None and oracles < FEW_ORACLES:
        notes.append(f"The null bands rest on {oracles:.0f} oracles; more would make their ends firmer.")
    if diverged := finite((result.get("sweep") or {}).get("diverged")):
        notes.append(f"{diverged:.0f} members of the sweep diverged and are left out of the scores.")
    notes += [f"{text}." for text in (result.get("forget") or {}).get("notices") or ()]
    return notes


def _broken(result: Result) -> list[str]:
    """A genuine retraining must not differ."""
    return [
        f"“{plan['name']}” is a genuine retraining and lies outside by {_labels(result, plan, 'outside')}: "
        "the evaluation itself is not to be trusted here."
        for plan in result["plans"]
        if is_steps(plan, "retrain") and _placed(result, plan, "outside")
    ]


def _over_forgetting(result: Result) -> list[str]:
    notes = []
    for plan in result["plans"]:
        if over := [metric for metric in result["metrics"] if is_over_forgotten(plan, metric)]:
            labels = " and ".join(metric_label(result, metric) for metric in over)
            notes.append(
                f"“{plan['name']}” over-forgets by {labels}: it forgot more than retraining would, which "
                "gives away what was deleted as surely as forgetting too little."
            )
    return notes


def _is_one_way(result: Result, metric: str) -> bool:
    """True if values on one side of the oracles' mean that more is forgotten, on the other that less is."""
    return bool(((result.get("metrics") or {}).get(metric) or {}).get("forgotten"))


def is_over_forgotten(plan: Mapping[str, Any], metric: str) -> bool:
    """True if the plan lies outside by this metric on the side where more is forgotten."""
    entry = (plan.get("metrics") or {}).get(metric)
    return isinstance(entry, Mapping) and bool(entry.get("over_forgotten"))


def is_steps(plan: Mapping[str, Any], algorithm: str) -> bool:
    """True if every step of a plan, written ``group: algorithm(…) > …``, is the one algorithm."""
    steps = str(plan.get("steps") or "").split(">")
    return all(step.split(":")[-1].split("(")[0].strip() == algorithm for step in steps)


def metric_label(result: Result, metric: str) -> str:
    """The metric's display name, or its key."""
    return str(((result.get("metrics") or {}).get(metric) or {}).get("label") or metric)


def _placed(result: Result, plan: Mapping[str, Any], place: str) -> list[str]:
    """The metrics of a plan that have this verdict."""
    bands = result["bands"]
    return [metric for metric in bands if standing(plan, metric, bands[metric]) == place]


def _labels(result: Result, plan: Mapping[str, Any], place: str) -> str:
    *most, last = [metric_label(result, metric) for metric in _placed(result, plan, place)] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _rank(result: Result, plan: Mapping[str, Any]) -> tuple[int, int, float, float]:
    tow, cost = metric_estimate(plan, "tow").mean, estimate(plan.get("cost")).mean
    worst = float("-inf")
    return (
        ORDER.index(plan["verdict"]),
        -len(_placed(result, plan, "outside")),
        worst if tow is None else tow,
        worst if cost is None else -cost,
    )


def _evidence(result: Result, plan: Mapping[str, Any]) -> str:
    """Value, interval and band of each headline metric, the metrics without power, and the cost."""
    known = [metric for metric in HEADLINE if metric in result["bands"]]
    sentences = [f"{_against_band(result, plan, metric)}." for metric in known]
    if blind := _labels(result, plan, "no power"):
        sentences.append(f"The model that plans start from is not outside either, hence no power: {blind}.")
    cost = estimate(plan.get("cost")).mean
    if cost is not None:
        sentences.append(f"Unlearning took {cost_text(cost)} of the gradients of one retraining.")
    if plan["verdict"] == "matches":
        sentences.append("This holds for these metrics, on average; it promises nothing of one example.")
    return " ".join([*sentences, *earlier_text(result), *whole_cost(result)])


def whole_cost(result: Result) -> list[str]:
    """Sentences on the run's total, and on the exact model that it trained on the way."""
    return [text for text in (total_text(result), exact_text(result)) if text]
