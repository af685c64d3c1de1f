"""The estimate of a run on the terminal: a table for ``--dry-run``, or one line before a run."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from rumfast.cli.output import console


def show_estimate(found: Mapping[str, Any], as_json: bool) -> None:
    """Print models, gradients as multiples of one retraining's, and minutes, part by part."""
    if as_json:
        print(json.dumps(found))
        return
    table = Table(title=f"What is left to train, up to {found['until']}", title_justify="left")
    table.add_column("part")
    for label in ("models", "there", "to train", "examples", "retrainings", "worker min"):
        table.add_column(label, justify="right")
    one = found["retraining_examples"]
    for part in found["parts"]:
        name = f"{part['name']} (at most)" if part["at_most"] else part["name"]
        table.add_row(name, *_cells(part, one))
    table.add_section()
    table.add_row("in all", *_cells(found, one))
    console().print(table)
    console().print(_sentence(found), highlight=False, soft_wrap=True)


def tell_estimate(found: Mapping[str, Any]) -> None:
    """Print one line on stderr where something is left to train."""
    if found["missing"]:
        print(f"rumfast: {_sentence(found)}", file=sys.stderr)


def _cells(part: Mapping[str, Any], one: float) -> tuple[str, ...]:
    counts = (part["models"], part["models"] - part["missing"], part["missing"], part["examples"])
    shares = (part["examples"] / one, part["worker_s"] / 60)
    return (*(f"{count:,}" for count in counts), *(f"{share:.1f}" for share in shares))


def _sentence(found: Mapping[str, Any]) -> str:
    from rumfast.reporting.totals import models_text, retrainings_text

    if not found["missing"]:
        return "Nothing is left to train."
    most = "at most " if found["at_most"] else ""
    minutes = "about a minute" if found["minutes"] < 1.5 else f"about {found['minutes']:.0f} min"
    workers = f"{found['workers']} worker{'' if found['workers'] == 1 else 's'}"
    return (
        f"To train: {most}{models_text(found['missing'], 'models')}, as much as "
        f"{retrainings_text(found['retrainings'])}; {most}{minutes} on {workers} "
        f"as fast as this machine is now."
    )
