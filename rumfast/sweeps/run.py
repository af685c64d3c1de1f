"""Train a sweep and read it back as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rumfast.config import TrainConfig
from rumfast.data import Dataset
from rumfast.errors import DivergedError, UsageError
from rumfast.progress import track
from rumfast.runtime import pick_device, pick_precision
from rumfast.sweeps.engines import Engine, LocalEngine
from rumfast.sweeps.population import Population
from rumfast.sweeps.spec import DataRef, PopulationSpec

MOST_DIVERGED = 0.02  # share of members; more is a recipe that does not train


@dataclass(frozen=True)
class Sweep:
    """All members of a sweep that did not diverge, stacked.

    Attributes:
        include_MN: [M, N] boolean, was member m trained on example n?
        correct_MN: [M, N] boolean, does it classify n as labelled?
        margin_MN: [M, N] float16.
        diverged: number of members left out.
    """

    include_MN: np.ndarray
    correct_MN: np.ndarray
    margin_MN: np.ndarray
    diverged: int


def sweep_spec(
    data: Dataset,
    config: TrainConfig,
    *,
    include: float = 0.7,
    seed: int = 0,
    device: str = "auto",
    excluded: tuple[int, ...] = (),
) -> PopulationSpec:
    """Specify a population of models on random subsets."""
    if not 0 < include < 1:
        raise UsageError(f"include: got {include}, expected a share between 0 and 1")
    return PopulationSpec(
        kind="subsets",
        data=DataRef.to(data),
        train=config,
        seed=seed,
        include=include,
        excluded=excluded,
        precision=str(pick_precision(config.precision, pick_device(device))),
    )


def run_sweep(
    data: Dataset,
    config: TrainConfig,
    *,
    members: int,
    include: float = 0.7,
    out: str | Path,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
) -> Sweep:
    """Train ``members`` models on random subsets, resuming what ``out`` holds, and return them stacked.

    Args:
        include: share of the training set each member sees.
        out: the sweep's folder.
        workers: processes; None takes one per core, or one per GPU.

    Raises:
        MismatchError: ``out`` holds a sweep of other data or another recipe.
        DivergedError: more than 2 % of the members diverged.
    """
    population = Population.create(
        Path(out), sweep_spec(data, config, include=include, seed=seed, device=device)
    )
    with LocalEngine(workers, device) as engine:
        train_members(engine, population, range(members), "sweep")
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


def load_sweep(population: Population, indices: range) -> Sweep:
    """Stack the complete members among ``indices``.

    Raises:
        DataError: a record is damaged or belongs to other data; names the file.
        DivergedError: more than 2 % of the members diverged.
    """
    records = [population.record(index) for index in population.done(indices)]
    kept = [record for record in records if not record.diverged]
    diverged = len(records) - len(kept)
    if not kept:
        raise UsageError(f"{population.root}: no usable member yet; run the sweep first")
    if diverged > MOST_DIVERGED * len(records):
        raise DivergedError(
            f"{population.root}: {diverged} of {len(records)} members diverged, more than "
            f"{MOST_DIVERGED:.0%}; lower train.lr"
        )
    return Sweep(
        np.stack([record.include_N for record in kept]),
        np.stack([record.correct_N for record in kept]),
        np.stack([record.margin_N for record in kept]),
        diverged,
    )
