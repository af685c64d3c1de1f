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

    def __enter__(self) -> "Engine": ...

    def __exit__(self, kind: type | None, *_: object) -> None: ...

    def run(self, population: Population, indices: Iterable[int], on_done: OnDone = ignore) -> None:
        """Train the members ``indices`` that the store lacks.

        Args:
            on_done: called with ``status`` (done or diverged) and ``wall_s`` of each member.

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
    settle_s: float  # after which the store's listing can be trusted to show what dead workers committed
    device: str = "auto"

    @property
    @abstractmethod
    def workers(self) -> int:
        """Members that are trained at the same time, as far as is known beforehand."""

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
            jobs = self.submit(population, chunks_of(missing, self.workers, population))
            try:
                self._wait(jobs, watch)
            finally:
                jobs.cancel()
                remove_partial(population.root)
            if why := getattr(jobs, "reason", ""):  # where a cluster knows how its last chunk was lost
                reason = f" ({why})"
            fruitless = 0 if len(watch.missing()) < len(missing) else fruitless + 1

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
            if failure not in self._known and failure.index not in self._done:
                raise error_of(self._population, failure.index, failure.kind, failure.message)


def chunks_of(missing: Sequence[int], workers: int, population: Population) -> list[list[int]]:
    """Cut ``missing`` into chunks of about half an hour, and at least four for each worker."""
    known = list(read_history(population.root).seconds.values())
    fair = -(-len(missing) // (CHUNKS_PER_WORKER * workers))
    size = max(1, min(fair, int(CHUNK_S / max(np.median(known), 1e-3)))) if known else max(1, fair)
    return [list(missing[start : start + size]) for start in range(0, len(missing), size)]


def error_of(population: Population, index: int, kind: str, message: str) -> RumfastError:
    """The error that a worker reported, as its own type."""
    error = getattr(errors, kind, PartialError)
    return error(f"{population.root}, member {index}: {message}")
