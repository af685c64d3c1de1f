"""``rumfast sweep``: plan, run and look after a sweep."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rumfast.cli.options import Device, Json, Members, Out, RecipeArgument, Workers, member_range, recipe_for
from rumfast.cli.output import show

app = typer.Typer(no_args_is_help=True, help="Train the models that memorization is estimated from.")
Engine = Annotated[str, typer.Option(help="local: processes on this machine.")]


def _sweep(recipe: str | None, out: Path, engine: Any, device: str) -> tuple[Any, int]:
    """The sweep's population, and the number of members it is about."""
    from rumfast.pipeline import Run

    run = Run(recipe_for(recipe, out), out, engine, device)
    run.pack()
    return run.sweep_population, run.recipe.sweep.members


def _existing(out: Path) -> tuple[Any, int]:
    """As :func:`_sweep`, of a run that exists; nothing is written."""
    from rumfast.store import RunDir
    from rumfast.sweeps import Population

    return Population.open(RunDir(out).sweep), recipe_for(None, out).sweep.members


def _engine(name: str, workers: int | None, device: str) -> Any:
    from rumfast.errors import UsageError
    from rumfast.sweeps import LocalEngine

    if name != "local":
        raise UsageError(f"--engine: got {name!r}, expected local")
    return LocalEngine(workers, device)


@app.command()
def plan(
    recipe: RecipeArgument = None,
    *,
    out: Out,
    device: Device = "auto",
    workers: Workers = None,
    engine: Engine = "local",
    usd_per_gpu_hour: Annotated[float | None, typer.Option(help="Price of one device.")] = None,
    json_output: Json = False,
) -> None:
    """Train two members per worker, then say what the whole sweep takes."""
    from rumfast.sweeps.upkeep import estimate

    with _engine(engine, workers, device) as pool:
        population, members = _sweep(recipe, out, pool, device)
        show(estimate(pool, population, members, usd_per_gpu_hour), json_output, "sweep-plan")


@app.command()
def run(
    recipe: RecipeArgument = None,
    *,
    out: Out,
    device: Device = "auto",
    workers: Workers = None,
    engine: Engine = "local",
    members: Members = None,
    json_output: Json = False,
) -> None:
    """Train the members that are missing, all or those of --members."""
    from rumfast.sweeps.run import train_members
    from rumfast.sweeps.upkeep import status as count

    with _engine(engine, workers, device) as pool:
        population, total = _sweep(recipe, out, pool, device)
        train_members(pool, population, member_range(members) or range(total), "sweep members")
        show(count(population, total), json_output, "sweep-status")


@app.command()
def status(out: Out, json_output: Json = False) -> None:
    """Count complete, missing and diverged members."""
    from rumfast.sweeps.upkeep import status as count

    show(count(*_existing(out)), json_output, "sweep-status")


@app.command()
def verify(
    out: Out,
    repair: Annotated[bool, typer.Option("--repair", help="Delete damaged records.")] = False,
    json_output: Json = False,
) -> None:
    """Read every record back; exit 4 if one is damaged and was not repaired."""
    from rumfast.errors import DataError
    from rumfast.sweeps.upkeep import verify as check

    result = check(*_existing(out), repair=repair)
    show(result, json_output, "sweep-verify")
    if result["damaged"] and not repair:
        raise DataError(
            f"{len(result['damaged'])} records are damaged; --repair deletes them, then run the sweep again"
        )


@app.command()
def compact(out: Out, json_output: Json = False) -> None:
    """Stack the records into arrays [M, N] to be memory-mapped."""
    from rumfast.sweeps.upkeep import compact as stack

    show(stack(*_existing(out)), json_output, "sweep-compact")
