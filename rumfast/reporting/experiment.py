"""The page of an experiment: what its intervals say of each claim, the tables, the figures, how it was made.

As the report of a run it is one file without script or network; the template only lays out.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rumfast.reporting import provenance
from rumfast.reporting.estimates import (
    MISSING,
    TONES,
    band_range,
    cost_text,
    estimate,
    metric_estimate,
    metric_text,
    place_text,
    range_text,
    standing,
)
from rumfast.reporting.experiment_figures import difference_rows, level_panels
from rumfast.reporting.figures import metric_bars
from rumfast.reporting.templates import fill_template
from rumfast.reporting.verdict import HEADLINE, metric_label
from rumfast.store import write_text

TITLES = {"difficulty": "What makes unlearning hard", "rum": "Does refinement help"}
FAILED = "cost more than the budget or failed with every setting"
Table = dict[str, Any]


def write_experiments(path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Put the page of one or more experiments at ``path``, whole or not at all.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_text(Path(path), render(records))


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """The page as a string, the same for the same records (``rumfast/difficulty/1`` or ``rumfast/rum/1``)."""
    return fill_template(
        "experiment.html.j2",
        name=str(records[0].get("name") or "experiment"),
        version=(records[0].get("environment") or {}).get("rumfast") or "",
        experiments=[_section(record) for record in records],
    )


def kind_of(record: Mapping[str, Any]) -> str:
    """``difficulty`` or ``rum``."""
    return str(record["schema"]).split("/")[1]


def claim_text(finding: Mapping[str, Any]) -> str:
    """A claim with the number that was compared of those it would speak for.

    >>> claim_text({"claim": "RUM^F beats vanilla in ToW", "compared": 4, "among": 12})
    'RUM^F beats vanilla in ToW, 4 of 12 compared'
    """
    compared, among = finding["compared"], finding["among"]
    return finding["claim"] if among == 1 else f"{finding['claim']}, {compared} of {among} compared"


def finding_text(finding: Mapping[str, Any]) -> str:
    """One claim with its verdict and whom each interval speaks for.

    >>> finding_text({"claim": "ToW falls as memorization rises", "compared": 3, "among": 9,
    ...               "held": ["a", "b"], "contradicted": [], "undecided": ["c"],
    ...               "simultaneous": {"held": ["a"], "contradicted": []}})[:75]
    'ToW falls as memorization rises, 3 of 9 compared: held for 2 of 3 (a, b), u'
    """
    count = finding["compared"]
    parts: list[str] = []
    for verdict in ("held", "contradicted", "undecided"):
        if names := finding[verdict]:
            share = f" of {count}" if not parts else ""
            many = "" if count == 1 else f" for {len(names)}{share}"
            parts.append(f"{verdict}{many} ({', '.join(names)})")
    firm = [f"{len(names)} {verdict}" for verdict, names in finding["simultaneous"].items() if names]
    if finding["held"] or finding["contradicted"]:
        parts[-1] += f"; with Bonferroni {', '.join(firm) or 'none'}"
    return f"{claim_text(finding)}: {', '.join(parts)}."


def _section(record: Mapping[str, Any]) -> dict[str, Any]:
    """All that the template shows of one experiment."""
    kind = kind_of(record)
    tables, figures = _PARTS[kind](record)
    return {
        "id": kind,
        "title": TITLES[kind],
        "subtitle": _subtitle(record),
        "findings": [finding_text(finding) for finding in record["findings"]],
        "notes": [*record.get("notes", ()), *_left_out(record)],
        "tables": tables,
        "figures": [Markup(svg) for svg in figures],
        "facts": [*_profiles(record), *provenance.facts(record)],
        "definitions": [
            (metric_label(record, metric), spec["definition"]) for metric, spec in record["metrics"].items()
        ],
    }


def _subtitle(record: Mapping[str, Any]) -> str:
    forget, data = record.get("forget"), record["dataset"]
    size = record["size"] if forget is None else forget["size"]
    sets = f"{len(record['sets'])} forget sets of {size}" if forget is None else f"a forget set of {size}"
    return (
        f"{sets} among {data['train']:,} training examples of {data['name']}; {record['seeds']} seeds, "
        f"{record['oracles']} oracles"
    )


def _profiles(record: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Are surrogates like the forget sets they stand for? One section, if anything was searched."""
    rows = []
    for each in record.get("sets", [record]):
        request = each["request"] if "request" in each else each["forget"]["request"]
        for score, mean in each["profile"].items():
            text = f"{mean['forget']:.3g}, of its surrogates {mean['surrogates']:.3g}"
            rows.append((f"{request}, mean {score}", text))
    return [("Score profile of forget sets and surrogates", rows)] if rows else []


def _left_out(record: Mapping[str, Any]) -> list[str]:
    """Plans that are missing, and why."""
    notes = []
    for each in record.get("sets", [record]):
        where = f" on {each['request']}" if "request" in each else ""
        for key, why in (("diverged", "diverged"), ("infeasible", FAILED)):
            if names := each.get(key):
                notes.append(
                    f"{', '.join(names)} {why}{where} and {'is' if len(names) == 1 else 'are'} left out."
                )
    return notes


def _difficulty_parts(record: Mapping[str, Any]) -> tuple[list[Table], list[str]]:
    tables = [_levels_table(record, metric) for metric in HEADLINE]
    axes = list(dict.fromkeys(each["axis"] for each in record["sets"]))
    figures = []
    for axis in axes:
        sets = [each for each in record["sets"] if each["axis"] == axis]
        for metric in HEADLINE:
            figures.append(level_panels(sets, axis, metric, f"{metric_label(record, metric)} against {axis}"))
        rows = [row for row in record["differences"] if row["one"].startswith(f"{axis}:")]
        figures.append(difference_rows(rows, f"Lowest against highest {axis}"))
    return tables, figures


def _levels_table(record: Mapping[str, Any], metric: str) -> Table:
    """Algorithms by forget sets, for one metric."""
    sets = record["sets"]
    names = list(dict.fromkeys(name for each in sets for name in each["algorithms"]))
    rows = [
        {
            "name": name,
            "steps": "",
            "cells": [_cell(record, each["algorithms"].get(name), metric, each["bands"]) for each in sets],
        }
        for name in names
    ]
    return {
        "title": f"{metric_label(record, metric)} of every algorithm",
        "first": "Algorithm",
        "columns": [
            f"{each['axis']} {each['level']}: memorization {each['memorization']:.2f}, "
            f"ES {each['entanglement']:.3g}"
            for each in sets
        ],
        "band": [range_text(metric, band_range(each["bands"].get(metric))) or MISSING for each in sets],
        "rows": rows,
    }


def _rum_parts(record: Mapping[str, Any]) -> tuple[list[Table], list[str]]:
    metrics, bands = list(record["metrics"]), record["bands"]
    rows = []
    for plan in record["plans"]:
        cells = [_cell(record, plan, metric, bands) for metric in metrics]
        others = (cost_text(estimate(plan.get("cost")).mean), str(plan["tried"]))
        rows.append({"name": plan["name"], "steps": plan["steps"], "cells": [*cells, *map(_plain, others)]})
    table = {
        "title": "Plans of at most one budget",
        "first": "Plan",
        "columns": [
            *(metric_label(record, metric) for metric in metrics),
            "Cost against retraining",
            "Tried",
        ],
        "band": [
            *(range_text(metric, band_range(bands.get(metric))) or MISSING for metric in metrics),
            "",
            "",
        ],
        "rows": rows,
    }
    figures = []
    for metric in HEADLINE:
        label = metric_label(record, metric)
        ordered = sorted(record["plans"], key=lambda plan: -(metric_estimate(plan, metric).mean or 0.0))
        figures.append(metric_bars(ordered, metric, bands.get(metric), f"{label}, best first"))
        differences = [row for row in record["differences"] if row["metric"] == metric]
        figures.append(difference_rows(differences, f"Differences in {label}"))
    return [table], figures


def _plain(text: str) -> dict[str, Any]:
    return {"text": text, "interval": "", "place": "", "tone": ""}


def _cell(
    record: Mapping[str, Any], plan: Mapping[str, Any] | None, metric: str, bands: Mapping[str, Any]
) -> dict[str, Any]:
    """Mean, interval and place against the band; a dash where the algorithm was left out."""
    value = metric_estimate(plan or {}, metric)
    place = standing(plan, metric, bands.get(metric)) if plan else None
    return {
        "text": metric_text(metric, value.mean),
        "interval": range_text(metric, value.interval),
        "place": place_text(plan or {}, metric, place),
        "tone": TONES.get(place or "", ""),
    }


_PARTS: dict[str, Callable[[Mapping[str, Any]], tuple[list[Table], list[str]]]] = {
    "difficulty": _difficulty_parts,
    "rum": _rum_parts,
}
