"""Look after a sweep's store: what it will cost, what is there, what is damaged."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from rumfast.errors import DataError, PartialError, UsageError
from rumfast.runtime import environment
from rumfast.scores import worst_standard_error
from rumfast.sweeps.engines import Engine
from rumfast.sweeps.journal import read_history
from rumfast.sweeps.population import Population
from rumfast.sweeps.records import is_diverged
from rumfast.sweeps.run import load_sweep, train_members

RECENT_S = 3600.0  # of finished members that the time left is judged by


def estimate(
    engine: Engine,
    population: Population,
    members: int,
    *,
    slots: int = 16,
    usd_per_gpu_hour: float | None = None,
) -> dict[str, Any]:
    """Train two members per worker, which are kept, and say what the whole sweep takes.

    The first member of a worker also loads data and compiles, so times are the median of the faster half. The
    standard error is the worst case, see ``worst_standard_error``.

    Args:
        slots: workers of the cluster that ``wall_hours_cluster`` is about.

    Raises:
        UsageError: all of these members exist already, so there is nothing to time.
        PartialError: another command has trained all that were to be timed.
    """
    workers, include = engine.workers, population.spec.include
    assert include is not None
    missing = [index for index in range(members) if not population.member(index).exists()]
    if not missing:
        raise UsageError(f"{population.root}: all {members} members exist; nothing is left to plan")
    seconds = train_members(engine, population, missing[: 2 * workers], "timed members")
    timed = sorted(one for one in seconds if one > 0)
    if not timed:
        raise PartialError(
            f"{population.root}: another command has trained the members to be timed; run again"
        )
    median = float(np.median(timed[: -(-len(timed) // 2)]))
    size = max(population.member(index).stat().st_size for index in population.done(range(members)))
    hours = median * members / 3600
    device_hours = hours * engine.devices / workers
    return {
        "schema": "rumfast/sweep-plan/1",
        "members": members,
        "workers": workers,
        "seconds_per_member": median,
        "members_per_hour": 3600 * workers / median,
        "device_hours": device_hours,
        "wall_hours": hours / workers,
        "slots": slots,
        "wall_hours_cluster": hours / slots,
        "disk_bytes": size * members,
        "usd": None if usd_per_gpu_hour is None else usd_per_gpu_hour * device_hours,
        "standard_error": worst_standard_error(members, include),
        "environment": dict(environment()),
    }


def status(population: Population, members: int) -> dict[str, Any]:
    """Count members by what became of them, and say when the missing ones will be there.

    What is done or diverged is known from the store; what runs, failed, was repeated and took how long, from
    the workers' journals. ``failed`` members ended in an error and are still missing.
    """
    done = set(population.done(range(members)))
    history = read_history(population.root)
    failed = {failure.index: failure for failure in history.failures if failure.index not in done}
    missing, rate = members - len(done), _members_per_hour(history.finished_at)
    ends = [_end(population.member(index)) for index in done]
    return {
        "schema": "rumfast/sweep-status/1",
        "members": members,
        "done": len(done),
        "running": len(history.running - done),
        "failed": len(failed),
        "diverged": ends.count("diverged"),
        "damaged": ends.count("damaged"),
        "missing": missing,
        "repeated": history.repeated,
        "members_per_hour": rate,
        "eta_hours": 0.0 if not missing else missing / rate if rate else None,
        "device_hours": history.spent_s / 3600,
        "last_failure": failed[max(failed)].message if failed else None,
    }


def _end(path: Path) -> str:
    try:
        return "diverged" if is_diverged(path) else "done"
    except DataError:
        return "damaged"


def _members_per_hour(finished_at: list[float]) -> float | None:
    """Of the last hour of work; None where fewer than two members were finished in it."""
    recent = [at for at in finished_at if at > finished_at[-1] - RECENT_S]
    if len(recent) < 2 or recent[-1] <= recent[0]:
        return None
    return 3600 * (len(recent) - 1) / (recent[-1] - recent[0])


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
    """Write the stacked arrays of the complete members, see ``Sweep.compact``."""
    started = time.perf_counter()
    sweep = load_sweep(population, range(members))
    folder = sweep.compact()
    return {
        "schema": "rumfast/sweep-compact/1",
        "path": str(folder),
        "members": len(sweep.include_MN),
        "diverged": len(sweep.members) - len(sweep.include_MN),
        "shape": list(sweep.include_MN.shape),
        "seconds": time.perf_counter() - started,
    }
