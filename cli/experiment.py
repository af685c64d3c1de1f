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
    typer.Option(min=0.01, help="Passes over the data that each plan takes, if not the recipe's."),
]
Minutes = Annotated[
    float | None,
    typer.Option(min=0.1, help="Time to search each forget set's plans; default: until all are tried."),
]
Algorithms = Annotated[
    str | None, typer.Option(help="Some algorithms, with commas between; default: all but retrain.")
]


@app.command("difficulty")
def difficulty_command(
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
    """ToW and ToW-MIA of each algorithm at low, mid and high memorization and entanglement."""
    from rumfast.pipeline.experiments import difficulty

    config = _config(seeds, oracles, size, budget_epochs, search_minutes, algorithms)
    record = _run(difficulty, recipe, out, config, device, workers, engine)
    if json_output:
        print(json.dumps(record))
        return
    for metric in HEADLINE:
        console().print(_levels_table(record, metric))
    _show_findings(record, out)


@app.command("rum")
def rum_command(
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
    """Vanilla algorithms, shuffle, RUM^F, RUM and the searched plan, all at one budget."""
    from rumfast.pipeline.experiments import rum

    config = _config(seeds, oracles, size, budget_epochs, search_minutes, algorithms)
    record = _run(rum, recipe, out, config, device, workers, engine)
    show_evaluation(record, json_output)
    if not json_output:
        _show_findings(record, out)


def _config(
    seeds: int | None,
    oracles: int | None,
    size: int | None,
    budget_epochs: float | None,
    search_minutes: float | None,
    algorithms: str | None,
) -> Any:
    from rumfast.pipeline.experiment_runs import ExperimentConfig

    names = None if algorithms is None else tuple(name.strip() for name in algorithms.split(","))
    return ExperimentConfig(
        seeds=seeds,
        oracles=oracles,
        size=size,
        budget_epochs=budget_epochs,
        algorithms=names,
        search_minutes=search_minutes,
    )


def _run(
    experiment: Callable[..., dict[str, Any]],
    recipe: str,
    out: Path,
    config: Any,
    device: str,
    workers: int | None,
    engine: str,
) -> dict[str, Any]:
    from rumfast.sweeps import open_engine

    chosen = open_engine(engine, workers=workers, device=device)
    return experiment(recipe_for(recipe, out), out, config, device=device, engine=chosen)


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
