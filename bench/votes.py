"""Which examples the members of a sweep classify as labelled: all that scores need, in a bit each.

A sweep that goes on from machine to machine keeps this one file of it. Subsets are not stored: they follow
from the population's spec.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rumfast.data import Dataset
from rumfast.errors import MismatchError, UsageError
from rumfast.scores import Memorization
from rumfast.scores.memorization import MemberTotals
from rumfast.store import read_npz, write_npz
from rumfast.sweeps import Population, PopulationSpec, Reliability
from rumfast.sweeps.reduce import agreement, require_converged


class Votes:
    """Votes of the members of one population; a diverged member has none.

    Raises:
        MismatchError: the file holds votes of another population.
    """

    def __init__(self, path: Path, population: Population, data: Dataset) -> None:
        self.path, self.population, self.data = path, population, data
        self._sizes = len(data), len(data.test)
        self._packed: dict[int, np.ndarray] = {}  # index → bits of all training, then all test examples
        self._diverged: set[int] = set()
        if path.exists():
            self._read()

    @property
    def spec(self) -> PopulationSpec:
        """Of the population."""
        return self.population.spec

    def _read(self) -> None:
        stored = read_npz(self.path)
        if str(stored["identity"]) != self.spec.identity():
            raise MismatchError(f"{self.path}: votes of another population; move the file away")
        self._packed = dict(zip(stored["index_M"].tolist(), stored["vote_MB"], strict=True))
        self._diverged = set(stored["diverged"].tolist())

    def __contains__(self, index: int) -> bool:
        return index in self._packed or index in self._diverged

    def __len__(self) -> int:
        """Members that are there, diverged ones too."""
        return len(self._packed) + len(self._diverged)

    @property
    def members(self) -> list[int]:
        """Members with votes, in order."""
        return sorted(self._packed)

    def collect(self, indices: Iterable[int]) -> None:
        """Take over those of ``indices`` that the population's folder holds, and commit the file."""
        new = [index for index in self.population.done(indices) if index not in self]
        for index in new:
            record = self.population.record(index)
            if record.diverged:
                self._diverged.add(index)
            else:
                vote_E = np.concatenate([record.correct_N, record.correct_test_N])
                self._packed[index] = np.packbits(vote_E)
        if new:
            self._write()

    def _write(self) -> None:
        arrays = {
            "identity": np.array(self.spec.identity()),
            "index_M": np.array(self.members, np.int64),
            "vote_MB": np.array([self._packed[index] for index in self.members], np.uint8),
            "diverged": np.array(sorted(self._diverged), np.int64),
        }
        write_npz(self.path, arrays, replace=True)

    def correct(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Is each training example, and each test example, classified as labelled? [N] and [T] boolean."""
        examples, tests = self._sizes
        vote_E = np.unpackbits(self._packed[index], count=examples + tests).astype(bool)
        return vote_E[:examples], vote_E[examples:]

    def halves(self) -> tuple[MemberTotals, MemberTotals]:
        """Totals of members at even and at odd places; complementary pairs stay together.

        Raises:
            UsageError: there is no member.
            DivergedError: more than 2 % of the members diverged.
        """
        if not self._packed:
            raise UsageError(f"{self.path}: no usable member yet")
        require_converged(self.population, len(self._diverged), len(self))
        examples = self._sizes[0]
        together = 2 if self.spec.design == "pairs" else 1
        halves = MemberTotals(examples), MemberTotals(examples)
        for index in self.members:
            include_N = np.zeros(examples, bool)
            include_N[self.spec.subset(index, examples)] = True
            halves[index // together % 2].add(include_N, self.correct(index)[0])
        return halves

    def memorization(self) -> Memorization:
        """Memorization of the training examples."""
        first, second = self.halves()
        return (first + second).memorization()

    def reliability(self) -> Reliability | None:
        """Agreement of the two halves, as ``Sweep.reliability`` has it."""
        first, second = self.halves()
        return agreement(first.memorization().score_N, second.memorization().score_N)

    def test_accuracies(self) -> list[float]:
        """Of each member, in [0, 1]."""
        return [float(self.correct(index)[1].mean()) for index in self.members]
