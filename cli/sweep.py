"""``rumfast sweep``: plan, run and look after a sweep."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rumfast.cli.options import (
    Device,
    EngineName,
    Json,
    Members,
    Out,
    RecipeArgument,
    Workers,
    member_range,
    recipe_for,
)
from rumfast.cli.output import show

app = typer.Typer(no_args_is_help=True, help="Train the models that memorization is estimated from.")


Margins = Annotated[
    str | None, typer.Option(help="fp16 or fp32: how margins are stored; overrides the recipe.")
]
Events = Annotated[
    bool | None,
    typer.Option("--events/--no-events", help="Also store when each example was right, and proxies."),
]


def _sweep(
    recipe: str | None, out: Path, engine: Any, device: str, margins: str | None, events: bool | None
) -> tuple[Any, int]:
    """The sweep's population, and the number of members it is about."""
    from rumfast.errors import UsageError
    from rumfast.pipeline import Run

    if margins not in (None, "fp16", "fp32"):
        raise UsageError(f"--margins: got {margins!r}, expected fp16 or fp32")
    chosen = recipe_for(recipe, out)
    given = {"margins": margins, "events": events}
    changes = {key: value for key, value in given.items() if value is not None}
    chosen = chosen.model_copy(update={"sweep": chosen.sweep.model_copy(update=changes)})
    run = Run(chosen, out, engine, device)
    run.pack()
    return run.sweep_population, run.recipe.sweep.members


def _existing(out: Path) -> tuple[Any, int]:
    """As :func:`_sweep`, of a run that exists; nothing is written."""
    from rumfast.store import RunDir
    from rumfast.sweeps import Population

    return Population.open(RunDir(out).sweep), recipe_for(None, out).sweep.members


@app.command()
def plan(
    recipe: RecipeArgument = None,
    *,
    out: Out,
    device: Device = "auto",
    workers: Workers = None,
    engine: EngineName = "local",
    margins: Margins = None,
    events: Events = None,
    slots: Annotated[int, typer.Option(min=1, help="Workers of the cluster to assume.")] = 16,
    usd_per_gpu_hour: Annotated[float | None, typer.Option(min=0, help="Price of one device.")] = None,
    json_output: Json = False,
) -> None:
    """Train two members per worker, then say what the whole sweep takes."""
    from rumfast.sweeps import open_engine
    from rumfast.sweeps.upkeep import estimate

    with open_engine(engine, workers=workers, device=device) as pool:
        population, members = _sweep(recipe, out, pool, device, margins, events)
        result = estimate(pool, population, members, slots=slots, usd_per_gpu_hour=usd_per_gpu_hour)
        show(result, json_output, "sweep-plan")


@app.command()
def run(
    recipe: RecipeArgument = None,
    *,
    out: Out,
    device: Device = "auto",
    workers: Workers = None,
    engine: EngineName = "local",
    members: Members = None,
    margins: Margins = None,
    events: Events = None,
    detach: Annotated[bool, typer.Option("--detach", help="Slurm: submit and leave.")] = False,
    json_output: Json = False,
) -> None:
    """Train the members that are missing, all or those of --members."""
    from rumfast.errors import UsageError
    from rumfast.sweeps import open_engine
    from rumfast.sweeps.reduce import require_converged
    from rumfast.sweeps.run import train_members
    from rumfast.sweeps.upkeep import status as count

    chosen_engine = open_engine(engine, workers=workers, device=device)
    launch = getattr(chosen_engine, "launch", None)
    if detach and launch is None:
        raise UsageError(f"--detach: only Slurm trains on without this command, not {engine}")
    with chosen_engine as pool:
        population, total = _sweep(recipe, out, pool, device, margins, events)
        chosen = member_range(members) or range(total)
        if launch is None or not detach:
            train_members(pool, population, chosen, "sweep members")
            found = count(population, total)
            show(found, json_output, "sweep-status")
            require_converged(population, found["diverged"], found["done"])
        else:
            job = launch(population, chosen)
            show({"job": job, "watch": f"rumfast sweep status --out {out}"}, json_output, "sweep-launch")


@app.command()
def status(out: Out, json_output: Json = False) -> None:
    """Count members done, running, failed, diverged and missing, and say when the last will be there."""
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
