"""The matrix of an audit on stdout."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from rumfast.cli.output import console
from rumfast.reporting.audit_text import (
    LEGEND,
    alarms_text,
    audited,
    cautions,
    mark_text,
    sentence,
    shared_band,
    span_text,
    utility_text,
)
from rumfast.reporting.verdict import metric_label

MODELS = 6  # columns that stay readable at 120 characters; more models make more tables


def show_audit(record: Mapping[str, Any], as_json: bool) -> None:
    """Print an audit: audits by models, then a sentence on each model with its reasons."""
    if as_json:
        print(json.dumps(record))
        return
    models = record["models"]
    for start in range(0, len(models), MODELS):
        console().print(_matrix(record, models[start : start + MODELS]))
    lines = [f"{LEGEND}.", ""]
    for model in models:
        lines += [sentence(model), *(f"    {reason}" for reason in model["reasons"])]
    lines += ["", alarms_text(record), *cautions(record)]
    for line in lines:
        console().print(line, highlight=False, soft_wrap=True, markup=False)


def _matrix(record: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> Table:
    size, train = record["forget"]["size"], record["dataset"]["train"]
    table = Table(
        title=f"{record['name']}: forget {size} of {train} examples, {record['population']} models each",
        title_justify="left",
    )
    table.add_column("audit", no_wrap=True)
    table.add_column("retrained", justify="right", no_wrap=True)
    for model in models:
        table.add_column(Text(model["name"]), justify="right", overflow="fold")
    for metric in audited(record):
        band = span_text(record, metric, shared_band(record, metric))
        table.add_row(
            Text(metric_label(record, metric)), band, *(mark_text(record, model, metric) for model in models)
        )
    table.add_section()
    table.add_row("utility", f"≥ {models[0]['utility']['least']:.3f}", *map(utility_text, models))
    table.add_row("verdict", "", *(model["verdict"] for model in models))
    return table
