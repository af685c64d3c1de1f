"""The page of an audit: a verdict on every model, the matrix, the figures, and how far to trust them.

As the report of a run it is one file without script or network; the template only lays out.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rumfast.reporting import provenance
from rumfast.reporting.audit_figures import (
    agreement,
    breakdown_panels,
    finding_rows,
    margin_panels,
    rank_rows,
    tau_text,
)
from rumfast.reporting.audit_roc import roc_panels
from rumfast.reporting.audit_text import (
    HEADLINE,
    KINDS,
    MARKS,
    Record,
    alarms_text,
    audited,
    cautions,
    checks,
    goal_text,
    interval_of,
    needed_text,
    number_text,
    sentence,
    shared_band,
    span_text,
    verdict,
    verdict_text,
)
from rumfast.reporting.estimates import (
    MISSING,
    TONES,
    band_range,
    cost_text,
    count_text,
    estimate,
    finite,
    metric_text,
)
from rumfast.reporting.templates import fill_template
from rumfast.reporting.verdict import metric_label
from rumfast.store import write_text


def write_audit(path: str | os.PathLike[str], record: Record) -> None:
    """Put the page of an audit (``rumfast/audit/1``) at ``path``, whole or not at all.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_text(Path(path), render(record))


def render(record: Record) -> str:
    """The page as a string, the same for the same record."""
    return fill_template(
        "audit.html.j2",
        name=str(record.get("name") or "unlearning"),
        subtitle=_subtitle(record),
        verdict=verdict(record),
        cautions=cautions(record),
        models=[_model(record, model) for model in record["models"]],
        table=_matrix(record),
        figures=_figures(record),
        alarms=alarms_text(record),
        checks=checks(record),
        ranking=_ranking(record),
        definitions=_definitions(record),
        facts=[("Audit", _audit_facts(record)), *provenance.facts(record)],
        listings=provenance.listings(record),
        version=(record.get("environment") or {}).get("rumfast") or "",
    )


def _subtitle(record: Record) -> str:
    """What was asked, and how many models answered."""
    kinds = [model["kind"] for model in record["models"]]
    plans = kinds.count("plan")
    return (
        f"{provenance.subtitle(record)}; {plans} {'plan' if plans == 1 else 'plans'}, each on "
        f"{record['population']} models, held against {record['population']} models retrained without the "
        f"forget set, and {record['held_out']} more of these to test the audits themselves"
    )


def _model(record: Record, model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's verdict, why, and the guard of its usefulness."""
    utility = model["utility"]
    return {
        "name": model["name"],
        "steps": model.get("steps") or "",
        "price": _price(model) if model["kind"] == "plan" else "",
        "sentence": sentence(model),
        "reasons": model["reasons"],
        "verdict": model["verdict"],
        "utility": metric_text("utility", finite(utility["value"])),
        "least": metric_text("utility", finite(utility["least"])),
        "useful": bool(utility["passed"]),
    }


def _price(model: Mapping[str, Any]) -> str:
    """What unlearning takes against training anew."""
    cost, time = (cost_text(finite(model.get(key))) for key in ("cost", "time"))
    return f"{cost} of the gradients and {time} of the time that retraining takes"


def _matrix(record: Record) -> dict[str, Any]:
    """Audits by models: values with intervals, verdicts, and the band of retrained models."""
    models, rows = record["models"], []
    for metric in audited(record):
        band = shared_band(record, metric)
        rows.append(
            {
                "name": metric_label(record, metric),
                "band": span_text(record, metric, band) or MISSING,
                "cells": [_cell(record, metric, model["findings"].get(metric), band) for model in models],
            }
        )
    columns = [(model["name"], KINDS[model["kind"]]) for model in models]
    return {"columns": columns, "rows": rows, "verdicts": [model["verdict"] for model in models]}


def _cell(
    record: Record, metric: str, finding: Mapping[str, Any] | None, band: tuple[float, float] | None
) -> dict[str, str]:
    """Value, interval, verdict with its mark, the models needed, and the band where it is another."""
    if finding is None:
        return {"text": MISSING, "interval": "", "verdict": "", "tone": "", "note": ""}
    own = band_range(finding["null"])
    notes = [needed_text(finding), "" if own == band else f"band {span_text(record, metric, own) or MISSING}"]
    return {
        "text": number_text(record, metric, finite(finding["value"])),
        "interval": span_text(record, metric, interval_of(finding)),
        "verdict": f"{MARKS[finding['verdict']]} {verdict_text(finding)}",
        "tone": TONES.get(finding["verdict"], ""),
        "note": "; ".join(note for note in notes if note),
    }


def _figures(record: Record) -> dict[str, list[Markup]]:
    """All figures by section; a section without data is empty."""
    metrics, first = audited(record), audited(record, HEADLINE)
    by = [one for one in ("class", "level") if any(parts.get(one) for parts in record["breakdown"].values())]
    return {
        "headline": [Markup(finding_rows(record, metric)) for metric in first],
        "others": [Markup(finding_rows(record, metric)) for metric in metrics if metric not in first],
        "breakdown": [Markup(breakdown_panels(record, one)) for one in by],
        "roc": [Markup(roc_panels(record))] if record["roc"] else [],
        "margins": [Markup(margin_panels(example)) for example in record["examples"]],
        "ranking": [Markup(rank_rows(record, first))] if record["ranking"]["metrics"] else [],
    }


def _ranking(record: Record) -> dict[str, Any]:
    """Kendall's τ between audits, as a square table."""
    ranking = record["ranking"]
    names = [metric_label(record, metric) for metric in ranking["metrics"]]
    rows = []
    for name, taus in zip(names, ranking["tau"], strict=True):
        rows.append({"name": name, "cells": [_tau(tau) for tau in taus]})
    return {"columns": names, "rows": rows, "models": ", ".join(ranking["models"])}


def _tau(tau: Any) -> dict[str, str]:
    interval = estimate(tau).interval
    return {
        "text": tau_text(tau),
        "interval": "" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}",
        "verdict": {"held": "agree", "contradicted": "disagree", "undecided": "either"}[agreement(tau)],
        "tone": {"held": "good", "contradicted": "bad"}.get(agreement(tau), ""),
        "note": "",
    }


def _definitions(record: Record) -> list[tuple[str, str]]:
    """Every audit: what it measures, its range, its direction and where it comes from."""
    rows = []
    for metric in audited(record):
        spec = record["metrics"][metric]
        source = f" Source: {spec['source']}." if spec.get("source") else ""
        text = f"{spec['definition']}; {goal_text(record, metric)}.{source}"
        rows.append((metric_label(record, metric), text))
    return rows


def _audit_facts(record: Record) -> provenance.Rows:
    """How many models, how many draws, how soon they relearn."""
    rmia_a = [("RMIA's a, chosen on the oracles", f"{record['rmia_a']:g}")] if "rmia_a" in record else []
    return [
        ("models of each kind", count_text(record["population"])),
        ("held-out oracles", count_text(record["held_out"])),
        ("random draws per interval and band", count_text(record["splits"])),
        ("stated level", f"{record['level']:.0%}"),
        *rmia_a,
        *(
            (f"relearning steps of {name} models, mean", _mean(values))
            for name, values in record["relearning"].items()
        ),
    ]


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f}" if values else MISSING
