"""Specify a sweep and train what it lacks."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from rumfast.config import Design, TrainConfig, check_design
from rumfast.data import Dataset
from rumfast.errors import UsageError
from rumfast.progress import track
from rumfast.runtime import resolve_precision
from rumfast.sweeps.engines import Engine, LocalEngine
from rumfast.sweeps.population import Population
from rumfast.sweeps.reduce import Sweep
from rumfast.sweeps.spec import DataRef, PopulationSpec


def sweep_spec(
    data: Dataset,
    config: TrainConfig,
    *,
    include: float = 0.7,
    design: Design = "fixed",
    margins: Literal["fp16", "fp32"] = "fp16",
    events: bool = False,
    seed: int = 0,
    device: str = "auto",
    excluded: tuple[int, ...] = (),
) -> PopulationSpec:
    """Specify a population of models on random subsets.

    Raises:
        UsageError: the share is not between 0 and 1, or pairs are not halves.
    """
    if not 0 < include < 1:
        raise UsageError(f"include: got {include}, expected a share between 0 and 1")
    try:
        check_design(design, include)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return PopulationSpec(
        kind="subsets",
        data=DataRef.to(data),
        train=config,
        seed=seed,
        include=include,
        design=design,
        margins=margins,
        events=events,
        excluded=excluded,
        precision=resolve_precision(config.precision, device),
    )


def run_sweep(
    data: Dataset,
    config: TrainConfig,
    *,
    members: int,
    include: float = 0.7,
    design: Design = "fixed",
    margins: Literal["fp16", "fp32"] = "fp16",
    events: bool = False,
    out: str | Path,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    engine: Engine | None = None,
) -> Sweep:
    """Train ``members`` models on random subsets, resuming what ``out`` holds.

    Args:
        include: share of the training set each member sees.
        design: of the subsets, see ``PopulationSpec.subset``.
        margins, events: what the records hold, see ``MemberRecord``.
        out: the sweep's folder.
        workers: processes on this machine; None takes one per core, or one per GPU.
        engine: where to train instead, entered already.

    Raises:
        MismatchError: ``out`` holds a sweep of other data or another recipe.
    """
    spec = sweep_spec(
        data,
        config,
        include=include,
        design=design,
        margins=margins,
        events=events,
        seed=seed,
        device=device,
    )
    population = Population.create(Path(out), spec)
    with nullcontext(engine) if engine is not None else LocalEngine(workers, device) as chosen:
        train_members(chosen, population, range(members), "sweep")
    return load_sweep(population, range(members))


def train_members(
    engine: Engine, population: Population, indices: Sequence[int], description: str
) -> list[float]:
    """Train the members that are missing, with progress; returns the seconds that each of them took."""
    done = population.done(indices)
    seconds: list[float] = []
    if len(done) < len(indices):
        with track(description, len(indices), len(done)) as advance:

            def on_done(answer: dict[str, Any]) -> None:
                seconds.append(answer["wall_s"])
                advance()

            engine.run(population, indices, on_done)
    return seconds


def load_sweep(population: Population, indices: Sequence[int]) -> Sweep:
    """The complete members among ``indices``.

    Raises:
        UsageError: there is none.
    """
    done = population.done(indices)
    if not done:
        raise UsageError(f"{population.root}: no usable member yet; run the sweep first")
    return Sweep(population, done)
