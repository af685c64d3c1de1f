"""Results on stdout: tables for people, one JSON object for programs."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from rumfast.reporting.audit_text import LEGEND, MARKS
from rumfast.reporting.provenance import starting_point
from rumfast.reporting.verdict import cautions, verdict


def show(result: Mapping[str, Any], as_json: bool, schema: str) -> None:
    """Print a flat result."""
    if as_json:
        print(json.dumps({"schema": f"rumfast/{schema}/1", **result}))
        return
    table = Table(show_header=False, box=None)
    for key, value in result.items():
        if key != "schema":
            table.add_row(key.replace("_", " "), _text(value))
    console().print(table)


def show_evaluation(summary: Mapping[str, Any], as_json: bool) -> None:
    """Print an evaluation: one row per plan, between the original and the oracle with its null band.

    The verdict comes last, where it is read first.
    """
    if as_json:
        print(json.dumps(summary))
        return
    metrics = list(summary["metrics"])
    table = Table(
        title=f"{summary['name']}: forget {summary['forget']['size']} of {summary['dataset']['train']} "
        f"examples ({summary['forget']['request']})",
        title_justify="left",
    )
    table.add_column("plan", overflow="fold")
    for metric in metrics:
        table.add_column(summary["metrics"][metric]["label"], justify="right", overflow="fold")
    table.add_column("cost", justify="right")
    searched = all("tried" in plan for plan in summary["plans"])
    if searched:
        table.add_column("tried", justify="right")
    start = starting_point(summary)[0].lower()
    table.add_row(start, *(estimate_text(summary["reference"]["original"][metric]) for metric in metrics))
    table.add_section()
    for plan in summary["plans"]:
        cells = [estimate_text(plan["metrics"][metric]) for metric in metrics]
        tried = [str(plan["tried"])] if searched else []
        table.add_row(plan["name"], *cells, f"{plan['cost']:.0%}", *tried)
    table.add_section()
    table.add_row("retrained", *(_band(summary["bands"][metric]) for metric in metrics), "100%")
    console(24 + 17 * len(metrics)).print(table)
    found = verdict(summary)
    lines = [
        f"Mean over {summary['seeds']} seeds; below it its 95 % t-interval, cut to the metric's range. "
        f"{LEGEND}. Last row: the band, a 95 % prediction interval for one more retrained model from "
        f"{summary['oracles']} oracles. Cost: gradients taken, as a share of one retraining's.",
        "",
        *cautions(summary),
        found.headline,
        found.detail,
    ]
    for line in lines:
        console().print(line, highlight=False, soft_wrap=True, markup=False)


def console(wanted: int = 120) -> Console:
    """Stdout, and ``wanted`` columns of it, at least 120, where that is no terminal."""
    chosen = Console()
    return chosen if chosen.is_terminal else Console(width=max(120, wanted))


def estimate_text(interval: Mapping[str, Any]) -> str:
    """Mean with the mark of its verdict, and its interval below.

    >>> estimate_text({"mean": 0.5, "low": 0.25, "high": 0.75, "verdict": "outside"})
    '0.500 ✗\\n0.250–0.750  '
    """
    mark = MARKS[interval["verdict"]] if "verdict" in interval else " "
    span = "" if interval["low"] is None else f"\n{interval['low']:.3f}–{interval['high']:.3f}  "
    return f"{interval['mean']:.3f} {mark}{span}"


def _band(band: Mapping[str, Any]) -> str:
    return f"{band['low']:.3f}–{band['high']:.3f}  "


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    return "–" if value is None else str(value)
