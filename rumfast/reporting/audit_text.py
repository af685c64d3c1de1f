"""An audit in words: numbers, bands, marks, a sentence on each model, and what a careful reader must know."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rumfast.reporting.estimates import (
    MISSING,
    band_range,
    count_text,
    estimate,
    finite,
    is_share,
    metric_text,
)
from rumfast.reporting.verdict import Verdict, metric_label

Record = Mapping[str, Any]
# One audit of each kind: usefulness, membership, closeness of whole populations, the competition, relearning.
HEADLINE = (
    "tow",
    "tow_mia",
    "mia",
    "klom_forget",
    "u_lira_auc",
    "rmia_auc",
    "forgetting_quality",
    "relearning",
)
MARKS = {"inside": "✓", "outside": "✗", "cannot tell": "?", "no power": "–"}
LEGEND = (
    "✓ inside the band of retrained models; ✗ outside; ? cannot tell; – inside, but no power: the models "
    "that plans start from are not outside"
)
DIRECTIONS = {
    "higher": "higher is better",
    "lower": "lower is better",
    "oracle": "the retrained models' value is the goal",
}
SETTLED = 64  # models of each kind, at which bands hold the stated share of retrained populations (bench/LOG)
KINDS = {"oracle": "retrained models", "original": "nothing unlearned", "plan": "", "control": "control"}
_SAID = {
    "oracle": {
        "pass": "retrained without the forget set, they pass, as they must.",
        "fail": "retrained without the forget set, they fail all the same: this audit raises false alarms.",
        "cannot tell": "retrained without the forget set; too few models to confirm that they pass.",
    },
    "original": {
        "pass": "trained on the forget set, they pass all the same: this audit takes doing nothing for "
        "unlearning.",
        "fail": "trained on the forget set, they are caught, as they must be.",
        "cannot tell": "trained on the forget set; this audit fails to catch them.",
    },
    "plan": {
        "pass": "no audit tells these models from models that never saw the forget set.",
        "fail": "these models differ from models that never saw the forget set.",
        "useless": "these models no longer do their work.",
        "cannot tell": "too few models, or too weak audits, to tell whether they forgot.",
    },
    "control": {
        "pass": "made to fail, they pass all the same: do not trust this audit.",
        "fail": "made to fail, and they do.",
        "cannot tell": "made to fail; this audit does not show it.",
    },
}
_STATES = {"pass": "passes", "fail": "fails", "cannot tell": "is undecided"}


def number_text(record: Record, metric: str, value: float | None) -> str:
    """A metric's value: three decimals up to one, fewer above, accuracies as percentages.

    >>> record = {"metrics": {"tow": {"range": [0, 1]}, "klom_forget": {"range": [0, None]}}}
    >>> number_text(record, "tow", 0.5), number_text(record, "klom_forget", 11.24)
    ('0.500', '11.2')
    """
    known = (record["metrics"].get(metric) or {}).get("range") or (None, None)
    if value is None or is_share(metric) or (known[1] is not None and known[1] <= 1):
        return metric_text(metric, value)
    size = abs(value)
    return f"{value:,.{3 - sum(size >= ten for ten in (1, 10, 100))}f}"


def span_text(record: Record, metric: str, interval: tuple[float, float] | None) -> str:
    """Two ends in the metric's own format, or nothing when they are not known."""
    if interval is None:
        return ""
    low, high = (number_text(record, metric, end) for end in interval)
    return f"{low.rstrip('%')}–{high}"


def goal_text(record: Record, metric: str) -> str:
    """The ends of a metric's range, and which way is better.

    >>> goal_text({"metrics": {"klom_forget": {"range": [0, None], "better": "lower"}}}, "klom_forget")
    '0 to no limit, lower is better'
    """
    spec = record["metrics"][metric]
    low, high = ("no limit" if end is None else f"{end:.3g}" for end in spec["range"])
    return f"{low} to {high}, {DIRECTIONS[spec['better']]}"


def interval_of(finding: Mapping[str, Any]) -> tuple[float, float] | None:
    """The interval of a finding, or None where it has none."""
    return estimate({"low": finding.get("low"), "high": finding.get("high")}).interval


def shared_band(record: Record, metric: str) -> tuple[float, float] | None:
    """The null band that most models are held against; fewer models have a wider one of their own."""
    bands = [
        band_range(model["findings"][metric]["null"])
        for model in record["models"]
        if metric in model["findings"]
    ]
    known = Counter(band for band in bands if band is not None)
    return known.most_common(1)[0][0] if known else None


def mark_text(record: Record, model: Mapping[str, Any], metric: str) -> str:
    """Value and mark of one audit of one model, or a dash where it was not made.

    >>> record = {"metrics": {"tow": {"range": [0, 1]}}}
    >>> mark_text(record, {"findings": {"tow": {"value": 0.5, "verdict": "outside"}}}, "tow")
    '0.500 ✗'
    """
    finding = model["findings"].get(metric)
    if finding is None:
        return MISSING
    return f"{number_text(record, metric, finite(finding['value']))} {MARKS[finding['verdict']]}"


def verdict_text(finding: Mapping[str, Any]) -> str:
    """The verdict of one audit in words.

    >>> verdict_text({"verdict": "outside", "over_forgotten": True}), verdict_text({"verdict": "no power"})
    ('over-forgotten', 'no power')
    """
    return "over-forgotten" if finding.get("over_forgotten") else str(finding["verdict"])


def utility_text(model: Mapping[str, Any]) -> str:
    """Accuracy kept against oracles, with the mark of the guard."""
    utility = model["utility"]
    mark = MARKS["inside" if utility["passed"] else "outside"]
    return f"{metric_text('utility', finite(utility['value']))} {mark}"


def sentence(model: Mapping[str, Any]) -> str:
    """What the verdict on one model means, to whoever asked for deletion.

    >>> sentence({"name": "salun", "kind": "plan", "verdict": "fail", "utility": {"passed": True}})
    '“salun” fails: these models differ from models that never saw the forget set.'
    """
    kind, state = model["kind"], model["verdict"]
    useless = (kind, state) == ("plan", "fail") and not model["utility"]["passed"]
    return f"“{model['name']}” {_STATES[state]}: {_SAID[kind]['useless' if useless else state]}"


def verdict(record: Record) -> Verdict:
    """Which plans passed, in one line, and what passing means."""
    size = count_text((record.get("forget") or {}).get("size"))
    plans = [model for model in record["models"] if model["kind"] == "plan"]
    if not plans:
        return Verdict("cannot tell", "No verdict: no unlearning plan was audited.", "")
    passed, undecided = (
        [f"“{plan['name']}”" for plan in plans if plan["verdict"] == one] for one in ("pass", "cannot tell")
    )
    detail = (
        "Every audit asks: could this have come from models that were trained anew without these examples? "
        "It compares with such models, and knows from comparing them with one another how much they differ."
    )
    count = f"{len(passed)} of {len(plans)} {'plan' if len(plans) == 1 else 'plans'}"
    if passed:
        line = f"{count} cannot be told from retraining without the {size} examples: {', '.join(passed)}."
        return Verdict("matches", line, detail)
    if undecided:
        line = f"No plan is shown to pass; more models are needed to tell of {', '.join(undecided)}."
        return Verdict("cannot tell", line, detail)
    return Verdict("differs", f"No plan matches retraining without the {size} examples.", detail)


def cautions(record: Record) -> list[str]:
    """What would make a careful reader doubt or qualify the verdicts; empty when nothing does."""
    wrong = {("oracle", "fail"), ("original", "pass"), ("control", "pass")}
    notes = [sentence(model) for model in record["models"] if (model["kind"], model["verdict"]) in wrong]
    if blind := powerless(record):
        notes.append(
            f"{', '.join(metric_label(record, metric) for metric in blind)}: no power on this forget set. "
            "Even the original models, which were trained on it, are not found outside, so that lying inside "
            "says nothing about forgetting."
        )
    if diverged := record.get("diverged"):
        notes.append(f"Left out, since they diverged from some original: {', '.join(diverged)}.")
    if record["population"] < SETTLED:
        notes.append(
            f"Null bands of {record['population']} oracles are too narrow: more retrained populations than "
            f"the stated {record['level']:.0%} have a value beyond some band. It takes {SETTLED}."
        )
    notes += [f"{text}." for text in (record.get("forget") or {}).get("notices") or ()]
    alarms = record["false_alarms"]
    if alarms["rate"] > record["level"]:
        notes.append(
            f"More false alarms than the stated level of {record['level']:.0%}: {alarms_text(record)}"
        )
    return notes


def powerless(record: Record) -> list[str]:
    """The audits that do not tell the originals from oracles."""
    return [metric for metric, power in record["power"].items() if not power]


def alarms_text(record: Record) -> str:
    """How often a population of held-out oracles was found outside by any audit.

    >>> alarms = {"draws": 20, "counts": {"tow": 1, "mia": 1}, "alarmed": 1, "rate": 0.05}
    >>> alarms_text({"false_alarms": alarms, "level": 0.05})
    '1 of 20 draws of held-out oracles raised an alarm (5%; stated level 5%), 2 of 40 verdicts in all.'
    """
    alarms = record["false_alarms"]
    raised, made = sum(alarms["counts"].values()), alarms["draws"] * len(alarms["counts"])
    return (
        f"{alarms['alarmed']} of {alarms['draws']} draws of held-out oracles raised an alarm "
        f"({alarms['rate']:.0%}; stated level {record['level']:.0%}), {raised} of {made} verdicts in all."
    )


def needed_text(finding: Mapping[str, Any]) -> str:
    """How many models of each kind would settle what these cannot tell, or give the audit power.

    >>> needed_text({"verdict": "cannot tell", "needed": 1234}), needed_text({"verdict": "inside"})
    ('about 1,234 needed', '')
    """
    needed = finite(finding.get("needed"))
    if finding["verdict"] not in {"cannot tell", "no power"} or needed is None:
        return ""
    return f"about {count_text(needed)} needed"


def audited(record: Record, chosen: Sequence[str] | None = None) -> list[str]:
    """The audits that were made of any model, in the record's order; of ``chosen``, in theirs."""
    made = {metric for model in record["models"] for metric in model["findings"]}
    return [metric for metric in (record["metrics"] if chosen is None else chosen) if metric in made]


def checks(record: Record) -> list[dict[str, Any]]:
    """For every audit: whether it asks for membership, catches the originals, and its false alarms."""
    alarms, rows = record["false_alarms"], []
    for metric in audited(record):
        power, count = record["power"].get(metric), alarms["counts"].get(metric)
        rows.append(
            {
                "name": metric_label(record, metric),
                "membership": bool(record["metrics"][metric].get("membership")),
                "power": MISSING if power is None else "yes" if power else "no power",
                "alarms": MISSING if count is None else f"{count} of {alarms['draws']}",
            }
        )
    return rows
