"""What engines have in common: they run "train these members of that population" somewhere.

Only the store knows what is done. An engine may lose workers, nodes and itself; the same call resumes.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from rumfast import errors
from rumfast.errors import PartialError, RumfastError
from rumfast.store import remove_partial, require_writable
from rumfast.sweeps.journal import HistoryReader, read_history
from rumfast.sweeps.population import Population

ATTEMPTS = 3  # times a member may take its worker down with it, or a round of chunks end without any member
CHUNK_S = 1800.0  # seconds of work that a cluster's scheduler is asked for at once
CHUNKS_PER_WORKER = 4  # at least, where there are enough members, so that all workers end at about one time

OnDone = Callable[[dict[str, Any]], None]


def ignore(answer: dict[str, Any]) -> None:
    """Where nobody wants to know of each member."""


class Engine(Protocol):
    """Trains members; use it as a context manager."""

    device: str

    @property
    def workers(self) -> int:
        """Members that are trained at the same time, as far as is known beforehand."""

    @property
    def devices(self) -> float:
        """Devices that they share."""

    def __enter__(self) -> "Engine": ...

    def __exit__(self, kind: type | None, *_: object) -> None: ...

    def run(self, population: Population, indices: Iterable[int], on_done: OnDone = ignore) -> None:
        """Train the members ``indices`` that the store lacks.

        Args:
            on_done: called with ``status`` and ``wall_s`` of each member; the latter is 0 where it is not
                known, as of members that another command has trained.

        Raises:
            RumfastError: the first error a worker reported, as its own type; finished members are kept.
            PartialError: members are missing, and trying again did not help.
        """


class Jobs(Protocol):
    """Chunks that were handed to a cluster."""

    def alive(self) -> int:
        """Number of chunks that wait or are at work; 0 also where they are lost."""

    def cancel(self) -> None:
        """Take back what waits and stop what is at work."""


class ChunkEngine(ABC):
    """An engine whose workers are a cluster's: it hands out chunks of members and watches the store."""

    poll_s: float  # between two looks at the store
    least_s = 0.0  # of work in a chunk, where starting one is dear
    settle_s: float  # after which the store's listing can be trusted to show what dead workers committed
    device: str = "auto"

    @property
    @abstractmethod
    def workers(self) -> int:
        """Members that are trained at the same time, as far as is known beforehand."""

    @property
    def devices(self) -> float:
        """Devices that they share."""
        return self.workers

    @abstractmethod
    def submit(self, population: Population, chunks: Sequence[list[int]]) -> Jobs:
        """Hand out chunks; each becomes a call of ``worker.do_chunk``."""

    def run(self, population: Population, indices: Iterable[int], on_done: OnDone = ignore) -> None:
        """See :class:`Engine`."""
        wanted = sorted(set(indices))
        if wanted and population.done(wanted) != wanted:
            require_writable(population.root)
        watch = Watch(population, wanted, on_done)
        fruitless, reason = 0, ""
        while missing := watch.missing():
            if fruitless == ATTEMPTS:
                raise PartialError(
                    f"{population.root}: {len(missing)} of {len(wanted)} members are missing after "
                    f"{ATTEMPTS} rounds without progress{reason}; finished members are kept, the same "
                    "command resumes"
                )
            jobs = self.submit(population, self.chunks(missing, population))
            try:
                self._wait(jobs, watch)
            finally:
                jobs.cancel()
                remove_partial(population.root)
            if why := getattr(jobs, "reason", ""):  # where a cluster knows how its last chunk was lost
                reason = f" ({why})"
            fruitless = 0 if len(watch.missing()) < len(missing) else fruitless + 1

    def chunks(self, missing: Sequence[int], population: Population) -> list[list[int]]:
        """``missing``, cut by the time that members of this population have taken."""
        known = [seconds for seconds in read_history(population.root).seconds.values() if seconds > 0]
        return chunks_of(missing, self.workers, float(np.median(known)) if known else None, self.least_s)

    def _wait(self, jobs: Jobs, watch: "Watch") -> None:
        """Until all members are there, or no job that could make them is."""
        while True:
            alive = jobs.alive()
            watch.look()
            if not watch.missing():
                return
            if not alive:
                deadline = time.monotonic() + self.settle_s
                while watch.missing() and time.monotonic() < deadline:
                    time.sleep(min(self.poll_s, self.settle_s))
                    watch.look()
                return
            time.sleep(self.poll_s)


class Watch:
    """Which of the members ``wanted`` the store has, as of the last look."""

    def __init__(self, population: Population, wanted: Sequence[int], on_done: OnDone) -> None:
        self._population = population
        self._wanted = wanted
        self._on_done = on_done
        self._waited_for = set(wanted)
        self._done = set(population.done(wanted))
        self._journals = HistoryReader(population.root)
        self._known = set(self._journals.read().failures)

    def missing(self) -> list[int]:
        """Members without which the work is not done."""
        return [index for index in self._wanted if index not in self._done]

    def look(self) -> None:
        """List the store again and report members that are new.

        Raises:
            RumfastError: a worker has journalled an error since this watch began.
        """
        new = [index for index in self._population.done(self._wanted) if index not in self._done]
        history = self._journals.read()
        for index in new:
            self._done.add(index)
            self._on_done({"status": "done", "wall_s": history.seconds.get(index, 0.0)})
        for failure in history.failures:
            ours = failure.index in self._waited_for and not self._population.has(failure.index)
            if ours and failure not in self._known:
                raise error_of(self._population, failure.index, failure.kind, failure.message)


def chunks_of(
    missing: Sequence[int], workers: int, member_s: float | None, least_s: float = 0.0
) -> list[list[int]]:
    """Cut ``missing`` into chunks: four for each worker, of half an hour at most and ``least_s`` at least.

    Args:
        member_s: seconds that a member takes; None where that is not known, which leaves four per worker.

    >>> chunks_of(range(6), 1, member_s=600)
    [[0, 1], [2, 3], [4, 5]]
    """
    size = max(1, -(-len(missing) // (CHUNKS_PER_WORKER * workers)))
    if member_s is not None:
        size = min(size, int(CHUNK_S / member_s))
        size = max(size, int(least_s / member_s), 1)
    return [list(missing[start : start + size]) for start in range(0, len(missing), size)]


def error_of(population: Population, index: int, kind: str, message: str) -> RumfastError:
    """The error that a worker reported, as its own type."""
    error = getattr(errors, kind, PartialError)
    return error(f"{population.root}, member {index}: {message}")
