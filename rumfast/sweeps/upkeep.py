"""Look after a sweep's store: what it will cost, what is there, what is damaged."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from rumfast.errors import DataError, UsageError
from rumfast.store import write_bytes
from rumfast.sweeps.engines import Engine
from rumfast.sweeps.population import Population
from rumfast.sweeps.run import load_sweep, train_members


def estimate(
    engine: Engine, population: Population, members: int, usd_per_gpu_hour: float | None = None
) -> dict[str, Any]:
    """Train two members per worker, which are kept, and say what the whole sweep takes.

    The standard error is the worst case, P(correct) = ½ on both sides: √(¼/(rM) + ¼/((1−r)M)) at inclusion
    ratio r and M members.

    Raises:
        UsageError: all of these members exist already, so there is nothing to time.
    """
    workers, include = engine.workers, population.spec.include
    assert include is not None
    missing = [index for index in range(members) if not population.member(index).exists()]
    if not missing:
        raise UsageError(f"{population.root}: all {members} members exist; nothing is left to plan")
    seconds = train_members(engine, population, missing[: 2 * workers], "timed members")
    done = population.done(range(members))
    median, size = float(np.median(seconds)), population.member(done[0]).stat().st_size
    device_hours = median * members / 3600
    return {
        "schema": "rumfast/sweep-plan/1",
        "members": members,
        "workers": workers,
        "seconds_per_member": median,
        "members_per_hour": 3600 * workers / median,
        "device_hours": device_hours,
        "wall_hours": device_hours / workers,
        "disk_bytes": size * members,
        "usd": None if usd_per_gpu_hour is None else usd_per_gpu_hour * device_hours,
        "standard_error": math.sqrt(0.25 / (include * members) + 0.25 / ((1 - include) * members)),
    }


def status(population: Population, members: int) -> dict[str, Any]:
    """Count complete, missing and diverged members."""
    done = population.done(range(members))
    diverged = sum(population.record(index).diverged for index in done)
    return {
        "schema": "rumfast/sweep-status/1",
        "members": members,
        "done": len(done),
        "diverged": diverged,
        "missing": members - len(done),
    }


def verify(population: Population, members: int, *, repair: bool = False) -> dict[str, Any]:
    """Read every record back; ``repair`` deletes the damaged ones, so that the next run makes them again."""
    damaged: dict[str, str] = {}
    done = population.done(range(members))
    for index in done:
        try:
            record = population.record(index)
            expected_N = np.zeros(len(record.include_N), bool)
            expected_N[population.spec.subset(index, len(expected_N))] = True
            if not np.array_equal(expected_N, record.include_N):
                raise DataError(f"{population.member(index)}: trained on another subset than its index names")
        except DataError as error:
            damaged[str(population.member(index))] = str(error)
            if repair:
                population.member(index).unlink()
    return {"schema": "rumfast/sweep-verify/1", "read": len(done), "damaged": damaged, "repaired": repair}


def compact(population: Population, members: int) -> dict[str, Any]:
    """Write the stacked records as ``compact/{include,correct,margin}_MN.npy``, to be memory-mapped.

    A cache: the records stay, and it can be written again at any time.
    """
    sweep = load_sweep(population, range(members))
    folder = population.root / "compact"
    arrays = {"include_MN": sweep.include_MN, "correct_MN": sweep.correct_MN, "margin_MN": sweep.margin_MN}
    for name, array in arrays.items():
        write_bytes(folder / f"{name}.npy", _saver(array), replace=True)
    return {
        "schema": "rumfast/sweep-compact/1",
        "path": str(folder),
        "members": len(sweep.include_MN),
        "diverged": sweep.diverged,
        "shape": list(sweep.include_MN.shape),
    }


def _saver(array: np.ndarray) -> Any:
    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    return save
