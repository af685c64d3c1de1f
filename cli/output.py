"""Results on stdout: tables for people, one JSON object for programs."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

METRICS = ("tow", "tow_mia", "accuracy_forget", "accuracy_retain", "accuracy_test", "mia")


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
    """Print an evaluation: one row per plan, between the original and the oracle with its null band."""
    if as_json:
        print(json.dumps(summary))
        return
    table = Table(
        title=f"{summary['name']}: forget {summary['forget']['size']} of {summary['dataset']['train']} "
        f"examples ({summary['forget']['request']})",
        title_justify="left",
    )
    table.add_column("plan")
    for metric in METRICS:
        table.add_column(summary["metrics"][metric]["label"], justify="right")
    table.add_column("cost", justify="right")
    searched = all("tried" in plan for plan in summary["plans"])
    if searched:
        table.add_column("tried", justify="right")
    for plan in summary["plans"]:
        cells = [estimate_text(plan["metrics"][metric]) for metric in METRICS]
        tried = [str(plan["tried"])] if searched else []
        table.add_row(plan["name"], *cells, f"{plan['cost']:.0%}", *tried)
    table.add_section()
    table.add_row("oracle", *(_band(summary["bands"][metric]) for metric in METRICS), "100%")
    console().print(table)
    console().print(
        f"Mean ± half of the 95 % t-interval over {summary['seeds']} seeds; * inside the band of a genuine "
        f"retrain, in the last row (95 % prediction interval from {summary['oracles']} oracles). "
        "Cost: gradients taken, as a share of retraining's.",
        highlight=False,
        soft_wrap=True,
    )


def console() -> Console:
    """Stdout, and 120 columns of it where that is no terminal."""
    chosen = Console()
    return chosen if chosen.is_terminal else Console(width=120)


def estimate_text(interval: Mapping[str, Any]) -> str:
    """Mean ± half of the interval, with a star where the mean lies inside the null band."""
    half = "" if interval["low"] is None else f" ±{interval['mean'] - interval['low']:.3f}"
    return f"{interval['mean']:.3f}{half}{'*' if interval['inside'] else ' '}"


def _band(band: Mapping[str, Any]) -> str:
    return f"{band['low']:.3f}–{band['high']:.3f} "


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    return "–" if value is None else str(value)
