"""``rumfast experiment``: what makes unlearning hard, and does refinement help?"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from rumfast.cli.options import Device, EngineName, Json, Workers, recipe_for
from rumfast.cli.output import console, estimate_text, show_evaluation

app = typer.Typer(no_args_is_help=True, help="Repeat the paper's experiments on your data, with intervals.")

HEADLINE = ("tow", "tow_mia")
RecipeName = Annotated[str, typer.Argument(help="Recipe file or shipped name.", metavar="RECIPE")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder; what it holds already is not redone.")]
Seeds = Annotated[int | None, typer.Option(min=1, help="Originals; default: as the recipe says.")]
Oracles = Annotated[int | None, typer.Option(min=3, help="Oracles per forget set; default: the recipe's.")]
Size = Annotated[int | None, typer.Option(min=3, help="Examples to forget; default: the recipe's.")]
Budget = Annotated[
    float | None,
    typer.Option(min=0.01, help="Passes over the data that each plan may take, if not the recipe's."),
]
Minutes = Annotated[
    float | None,
    typer.Option(min=0.1, help="Time to search each forget set's plans; default: until all are tried."),
]
Algorithms = Annotated[
    str | None, typer.Option(help="Some algorithms, with commas between; default: all but retrain.")
]


def _register(name: str, summary: str, show: Callable[[Mapping[str, Any], bool], None]) -> None:
    """Add one experiment as a command; both take the same options."""

    @app.command(name, help=summary)
    def command(
        recipe: RecipeName,
        *,
        out: Out,
        seeds: Seeds = None,
        oracles: Oracles = None,
        size: Size = None,
        budget_epochs: Budget = None,
        search_minutes: Minutes = None,
        algorithms: Algorithms = None,
        device: Device = "auto",
        workers: Workers = None,
        engine: EngineName = "local",
        json_output: Json = False,
    ) -> None:
        from rumfast.pipeline.experiment_runs import ExperimentConfig

        config = ExperimentConfig(
            seeds=seeds,
            oracles=oracles,
            size=size,
            budget_epochs=budget_epochs,
            algorithms=None if algorithms is None else tuple(map(str.strip, algorithms.split(","))),
            search_minutes=search_minutes,
        )
        record = _run(name, recipe, out, config, device, workers, engine)
        show(record, json_output)
        if not json_output:
            _show_findings(record, out)


def _run(
    name: str,
    recipe: str,
    out: Path,
    config: Any,
    device: str,
    workers: int | None,
    engine: str,
) -> dict[str, Any]:
    from rumfast.pipeline import experiments
    from rumfast.sweeps import open_engine

    experiment = {"difficulty": experiments.difficulty, "rum": experiments.rum}[name]
    chosen = open_engine(engine, workers=workers, device=device)
    return experiment(recipe_for(recipe, out), out, config, device=device, engine=chosen)


def _show_difficulty(record: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(record))
        return
    for metric in HEADLINE:
        console().print(_levels_table(record, metric))


def _levels_table(record: Mapping[str, Any], metric: str) -> Table:
    sets = record["sets"]
    label = record["metrics"][metric]["label"]
    table = Table(title=f"{record['name']}: {label}, forget {record['size']}", title_justify="left")
    table.add_column("algorithm")
    for each in sets:
        table.add_column(f"{each['axis']}\n{each['level']}: {each[each['axis']]:.3g}", justify="right")
    for name in dict.fromkeys(name for each in sets for name in each["algorithms"]):
        plans = [each["algorithms"].get(name) for each in sets]
        table.add_row(
            name, *("–" if plan is None else estimate_text(plan["metrics"][metric]) for plan in plans)
        )
    table.add_section()
    bands = [each["bands"][metric] for each in sets]
    table.add_row("oracle", *(f"{band['low']:.3f}–{band['high']:.3f} " for band in bands))
    return table


def _show_findings(record: Mapping[str, Any], out: Path) -> None:
    from rumfast.reporting.experiment import finding_text

    lines = [*map(finding_text, record["findings"]), "", *record["notes"]]
    lines.append(f"report: {out / 'report' / 'index.html'}")
    for line in lines:
        console().print(line, highlight=False, soft_wrap=True, markup=False)


_register(
    "difficulty",
    "ToW and ToW-MIA of each algorithm at low, mid and high memorization and entanglement.",
    _show_difficulty,
)
_register(
    "rum",
    "Vanilla algorithms, shuffle, RUM^F, RUM and the searched plan, all within one budget.",
    show_evaluation,
)
