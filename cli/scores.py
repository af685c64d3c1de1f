"""``rumfast score``: memorization, its proxies, and how well they agree."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from rumfast.cli.options import (
    After,
    Device,
    EngineName,
    Forget,
    Json,
    Out,
    RecipeArgument,
    Scores,
    Workers,
    recipe_for,
)
from rumfast.cli.output import console, show

Export = Annotated[Path | None, typer.Option(help="Also write the scores to this .npz, .parquet or .csv.")]
All = Annotated[
    bool,
    typer.Option("--all", help="Compute every score, and say how they agree, by class, and what each costs."),
]


def score(
    recipe: RecipeArgument = None,
    *,
    out: Out,
    all_scores: All = False,
    device: Device = "auto",
    workers: Workers = None,
    engine: EngineName = "local",
    forget: Forget = None,
    after: After = None,
    scores: Scores = None,
    export: Export = None,
    json_output: Json = False,
) -> None:
    """Reduce the sweep to memorization scores (after the stages before it), or read published ones."""
    from rumfast.pipeline import run
    from rumfast.sweeps import open_engine

    results = run(
        recipe_for(recipe, out, forget, after, scores),
        out,
        until="score",
        device=device,
        engine=open_engine(engine, workers=workers, device=device),
        export=export,
        all_scores=all_scores,
    )
    if all_scores:
        show_scores(results["scores"], json_output)
    else:
        show(results["score"], json_output, "score")


def show_scores(summary: Mapping[str, Any], as_json: bool) -> None:
    """Print how scores agree: with memorization and its cost, with each other, and by class."""
    if as_json:
        print(json.dumps(summary))
        return
    printer = console()
    for table in (_costs(summary), _matrix(summary), _classes(summary)):
        printer.print(table)
    printer.print(_notes(summary), highlight=False, soft_wrap=True)


def _costs(summary: Mapping[str, Any]) -> Table:
    table = _table("Spearman with memorization, and seconds of one worker")
    for heading in ("", "score"):
        table.add_column(heading)
    for heading in ("Spearman [95 %]", "examples", "s", "of the sweep", "with its training", "of the sweep"):
        table.add_column(heading, justify="right")
    for index, row in enumerate(summary["scores"]):
        cost = row["cost"]
        table.add_row(
            str(index + 1),
            row["label"],
            _interval(summary, index) if index else "",
            f"{summary['count'][0][index]:,}",
            _seconds(cost["marginal_s"]),
            _share(cost["marginal_share"]),
            _seconds(cost["whole_s"]),
            _share(cost["whole_share"]),
        )
    return table


def _matrix(summary: Mapping[str, Any]) -> Table:
    table = _table("Spearman of each pair, its 95 % interval below")
    table.add_column("")
    for column in range(len(summary["names"]) - 1):
        table.add_column(str(column + 1), justify="right", no_wrap=True)
    for index in range(1, len(summary["names"])):
        table.add_row(str(index + 1), *(_cell(summary, index, column) for column in range(index)))
    return table


def _classes(summary: Mapping[str, Any]) -> Table:
    table = _table("Means by class, that of memorization with its 95 % interval over examples")
    others = summary["names"][1:]
    table.add_column("class")
    for heading in ("examples", "flipped", "1", *(str(index + 2) for index in range(len(others)))):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary["classes"]:
        found = _number(row["means"]["memorization"])
        if row["interval"] is not None:
            found += " {:.3f}–{:.3f}".format(*row["interval"])
        means = [_number(row["means"][name]) for name in others]
        table.add_row(row["name"], f"{row['count']:,}", f"{row['flipped']:.1%}", found, *means)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1), pad_edge=False)


def _notes(summary: Mapping[str, Any]) -> str:
    bound = ""
    if summary["ceiling"] is not None:
        bound = (
            f"Noise of the memorization estimate bounds any score's Spearman at {summary['ceiling']:.3f}: "
            "the root of the reliability that the sweep's two halves show. "
        )
    return (
        f"{bound}Intervals of Spearman: bootstrap over examples, {summary['resamples']} resamples. Seconds: "
        "what a score takes where its model is trained anyway, and with that training."
    )


def _interval(summary: Mapping[str, Any], index: int) -> str:
    rho, low, high = (summary["spearman"][key][0][index] for key in ("rho", "low", "high"))
    return "–" if rho is None else f"{rho:+.3f} [{low:+.3f}, {high:+.3f}]"


def _cell(summary: Mapping[str, Any], row: int, column: int) -> str:
    rho, low, high = (summary["spearman"][key][row][column] for key in ("rho", "low", "high"))
    return "–" if rho is None else f"{rho:+.2f}\n{low:+.2f}…{high:+.2f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
