"""From records to scores, reading each record once and keeping O(N) of it."""

import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.format import open_memmap

from rumfast.errors import DataError, DivergedError, UsageError
from rumfast.scores import Influence, MarginStatistics, MemberTotals, Memorization, top_influences
from rumfast.store import commit_folder, read_json, write_json
from rumfast.sweeps.population import Population
from rumfast.sweeps.records import MemberRecord, is_diverged

MOST_DIVERGED = 0.02  # share of members; more is a recipe that does not train
READERS = 4  # threads; checksums are computed outside the interpreter's lock
READ_AHEAD = 16  # records
COMPACT = {
    "include_MN": "include_N",
    "correct_MN": "correct_N",
    "correct_test_MT": "correct_test_N",
    "margin_MN": "margin_N",
    "margin_test_MT": "margin_test_N",
}  # stacked array → field of the records


def require_converged(population: Population, diverged: int, done: int) -> None:
    """Refuse a sweep of which more than 2 % diverged.

    Raises:
        DivergedError: with both numbers.
    """
    if diverged > MOST_DIVERGED * done:
        raise DivergedError(
            f"{population.root}: {diverged} of {done} members diverged, more than {MOST_DIVERGED:.0%}; "
            "lower train.lr"
        )


class Reliability(NamedTuple):
    """How well two halves of a sweep agree.

    Attributes:
        spearman: rank correlation of the scores of the two halves, over examples that both define.
        spearman_whole: what that predicts between the whole sweep and another like it (Spearman-Brown).
        standard_error: of the whole sweep's scores, from the halves' differences: √(mean (a − b)² / 4), since
            the mean of two halves has half the variance of one, and their difference twice.
    """

    spearman: float
    spearman_whole: float
    standard_error: float


def agreement(first_N: np.ndarray, second_N: np.ndarray) -> Reliability | None:
    """How well scores [N] of two halves agree; None where they define fewer than three common examples."""
    from scipy import stats  # here, as it takes each worker a second to import

    both_N = np.isfinite(first_N) & np.isfinite(second_N)
    first_N, second_N = first_N[both_N], second_N[both_N]
    if len(first_N) < 3 or not np.ptp(first_N) or not np.ptp(second_N):
        return None
    rho = float(stats.spearmanr(first_N, second_N).statistic)
    error = float(np.sqrt(np.mean((first_N - second_N) ** 2) / 4))
    return Reliability(rho, 2 * rho / max(1 + rho, 1e-12), error)


@dataclass(frozen=True)
class Sweep:
    """A sweep's complete members; diverged ones are left out of everything.

    Scores are streamed from the records in O(N) memory. The arrays [M, N] are stacked when first asked for.
    """

    population: Population
    members: Sequence[int]  # complete ones, in order of index

    def records(self) -> Iterator[MemberRecord]:
        """Records in order of index, read ahead by a few threads.

        Raises:
            DataError: a record is damaged or belongs to other data; names the file.
        """
        waiting: deque[Future[MemberRecord]] = deque()
        indices = iter(self.members)
        with ThreadPoolExecutor(READERS) as pool:
            try:
                waiting.extend(pool.submit(self.population.record, i) for i in islice(indices, READ_AHEAD))
                while waiting:
                    record = waiting.popleft().result()
                    waiting.extend(pool.submit(self.population.record, i) for i in islice(indices, 1))
                    if not record.diverged:
                        yield record
            finally:
                for future in waiting:
                    future.cancel()

    @cached_property
    def diverged(self) -> int:
        """Number of members left out."""
        return len(self.members) - sum(totals.members for totals in self._halves)

    @cached_property
    def _halves(self) -> tuple[MemberTotals, MemberTotals]:
        """Totals of members at even and at odd places; complementary pairs stay together."""
        halves: tuple[MemberTotals, MemberTotals] | None = None
        together = 2 if self.population.spec.design == "pairs" else 1
        for record in self.records():
            if halves is None:
                halves = MemberTotals(len(record.include_N)), MemberTotals(len(record.include_N))
            half = halves[record.index // together % 2]
            half.add(record.include_N, record.correct_N, record.margin_N)
        self._check(0 if halves is None else halves[0].members + halves[1].members)
        assert halves is not None
        return halves

    def _check(self, usable: int) -> None:
        require_converged(self.population, len(self.members) - usable, len(self.members))
        if not usable:
            raise UsageError(f"{self.population.root}: no usable member yet; run the sweep first")

    @cached_property
    def _totals(self) -> MemberTotals:
        return self._halves[0] + self._halves[1]

    def memorization(self) -> Memorization:
        """Memorization of the training examples, from correctness.

        Raises:
            DivergedError: more than 2 % of the members diverged.
        """
        return self._totals.memorization()

    def margin_memorization(self) -> Memorization:
        """Memorization of the training examples, from margins."""
        return self._totals.margin_memorization()

    def margins(self) -> MarginStatistics:
        """Margins of each training example in members that were, and were not, trained on it."""
        return self._totals.margins()

    def reliability(self) -> Reliability | None:
        """Agreement of two halves of the sweep; None where they define fewer than three common examples."""
        return agreement(*(half.memorization().score_N for half in self._halves))

    def influence(self, k: int) -> Influence:
        """The ``k`` training examples that help each test example most."""
        return top_influences(self.include_MN, self.correct_test_MT, k)

    @cached_property
    def include_MN(self) -> np.ndarray:
        """[M, N] boolean, was member m trained on example n?"""
        return self._stack("include_MN")

    @cached_property
    def correct_MN(self) -> np.ndarray:
        """[M, N] boolean, does member m classify training example n as labelled?"""
        return self._stack("correct_MN")

    @cached_property
    def correct_test_MT(self) -> np.ndarray:
        """[M, T] boolean, the same of the test examples."""
        return self._stack("correct_test_MT")

    @cached_property
    def margin_MN(self) -> np.ndarray:
        """[M, N] margins of the training examples, float16 or float32 as stored."""
        return self._stack("margin_MN")

    @cached_property
    def margin_test_MT(self) -> np.ndarray:
        """[M, T] margins of the test examples."""
        return self._stack("margin_test_MT")

    def _stack(self, name: str) -> np.ndarray:
        cached = self._compacted(name)
        if cached is not None:
            return cached
        stacked, rows = np.empty(0), 0
        for rows, record in enumerate(self.records(), 1):
            values = getattr(record, COMPACT[name])
            if rows == 1:
                stacked = np.empty((len(self.members), *values.shape), values.dtype)
            stacked[rows - 1] = values
        self._check(rows)
        return stacked[:rows]

    def _compacted(self, name: str) -> np.ndarray | None:
        """The array that ``compact`` wrote of just these members, memory-mapped; None if it did not."""
        folder = self.population.root / "compact"
        try:
            if read_json(folder / "members.json")["members"] != list(self.members):
                return None
            return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except (DataError, KeyError, OSError, ValueError):
            return None  # a cache: what is not there, or not whole, is read from the records

    def compact(self) -> Path:
        """Write the stacked arrays, to be memory-mapped from now on; returns their folder.

        A cache without checksums: the records stay, and it can be deleted, or written again, at any time.
        """
        kept = [index for index in self.members if not is_diverged(self.population.member(index))]
        self._check(len(kept))
        folder = self.population.root / "compact"

        def fill(temporary: Path) -> None:
            stacked: dict[str, np.ndarray] = {}
            for row, record in enumerate(self.records()):
                for name, field in COMPACT.items():
                    values = getattr(record, field)
                    if name not in stacked:
                        shape = (len(kept), *values.shape)
                        file = temporary / f"{name}.npy"
                        stacked[name] = open_memmap(file, "w+", values.dtype, shape)
                        _allocate(file)
                    stacked[name][row] = values
            write_json(temporary / "members.json", {"members": list(self.members)})
            shutil.rmtree(folder, ignore_errors=True)

        commit_folder(folder, fill)
        return folder


def _allocate(path: Path) -> None:
    """Take the space of a sparse file now: on a full disk, writing to its mapping would kill the process."""
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
