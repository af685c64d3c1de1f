"""``rumfast bench``: throughput against named peers."""

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer


class Suite(StrEnum):
    """What to measure."""

    kernels = "kernels"
    loader = "loader"
    train = "train"
    sweep = "sweep"
    unlearn = "unlearn"
    all = "all"


def bench(
    suite: Annotated[Suite, typer.Argument(help="What to measure.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    save: Annotated[Path | None, typer.Option(help="Also write the record here, case by case.")] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="Fail on a ratio 20 % below this record's median and rounds, three times."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes: under two minutes in all.")] = False,
) -> None:
    """Measure throughput as ratios to named peers, interleaved in one run."""
    from rumfast import bench as benchmarks
    from rumfast.errors import MismatchError
    from rumfast.store import read_json, write_json

    previous = read_json(compare, sealed=False) if compare else None
    record = benchmarks.run(suite.value, quick, partial(write_json, save) if save else None)
    typer.echo(json.dumps(record) if json_output else benchmarks.table(record))
    fallen = benchmarks.fallen(record, previous, quick) if previous else []
    if fallen:
        raise MismatchError(f"{compare}: {'; '.join(fallen)}")
