"""The trials of some candidate plans, and which of them goes on."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rumfast.evaluation import ModelScores, compare, t_interval
from rumfast.evaluation.bands import interval_dict
from rumfast.pipeline.variation import Candidate
from rumfast.sweeps import Population
from rumfast.sweeps.run import train_members

if TYPE_CHECKING:
    from rumfast.pipeline.trials import Trials

KEEP = 3  # of so many candidates, one goes on to the next rung
RUNG = 2  # pairs that a rung adds


def halving_trials(candidates: int, pairs: int) -> int:
    """Trials that :meth:`Table.halve` does at most on ``pairs`` pairs.

    >>> halving_trials(9, 6)  # 9 on two pairs, 3 on two more, 1 on the last two
    26
    """
    trials = 0
    for start in range(0, pairs, RUNG):
        trials += candidates * min(RUNG, pairs - start)
        candidates = math.ceil(candidates / KEEP)
    return trials


class Trial(NamedTuple):
    """What a candidate came to on one pair of surrogate and original."""

    tow: float
    tow_mia: float


FAILED = Trial(0.0, 0.0)  # it diverged, or does not fit into memory


class Table:
    """Trials of some candidates: run when asked for, read once."""

    def __init__(self, trials: "Trials", population: Population, candidates: Sequence[Candidate]) -> None:
        self.trials = trials
        self.candidates = candidates
        self._population = population
        self._known: dict[tuple[int, int], Trial] = {}

    def run(self, numbers: Sequence[int], pairs: Sequence[int]) -> None:
        """Do the trials of the candidates ``numbers`` on ``pairs`` that are missing."""
        width = self._population.spec.pairs
        cells = [(number, pair) for number in numbers for pair in pairs]
        indices = [number * width + pair for number, pair in cells]
        train_members(
            self.trials.run.engine, self._population, indices, f"trials, {self._population.root.name}"
        )
        for cell, index in zip(cells, indices, strict=True):
            if cell not in self._known:
                self._known[cell] = self._trial(index, cell[1])

    def _trial(self, index: int, pair: int) -> Trial:
        stored = self._population.trial(index)["scores"]
        if stored is None:
            return FAILED
        oracles = self.trials.oracles(pair % len(self.trials.surrogates))
        scores = ModelScores(**stored)
        return Trial(*(compare(metric, scores, oracles) for metric in Trial._fields))

    def failed(self, number: int) -> bool:
        """Did a candidate come to nothing wherever it was tried?"""
        return all(trial == FAILED for (other, _), trial in self._known.items() if other == number)

    def rank(self, number: int) -> tuple[int, float]:
        """Number of pairs that a candidate was chosen on, and its worth there: larger is better.

        A mean over fewer pairs is no match for one over more: the largest of many noisy ones is too large.
        """
        return len(self.values(number, self.trials.choosing, self.trials.goals)), self.worth(number)

    def worth(self, number: int, pairs: Sequence[int] | None = None) -> float:
        """Mean of the objective less ``caution`` standard deviations, over ``pairs``.

        None: all pairs that choices depend on. Some algorithms do well on most models and badly on a few.
        """
        chosen = [*self.trials.choosing, *self.trials.deciding] if pairs is None else pairs
        values = self.values(number, chosen, self.trials.goals)
        return float(np.mean(values) - self.trials.config.caution * np.std(values))

    def values(self, number: int, pairs: Sequence[int], goals: Sequence[str]) -> list[float]:
        """Mean over ``goals`` of a candidate's trials on those ``pairs`` that were run."""
        found = [self._known[number, pair] for pair in pairs if (number, pair) in self._known]
        return [float(np.mean([getattr(trial, goal) for goal in goals])) for trial in found]

    def halve(self, families: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Successive halving within each family (Jamieson & Talwalkar 2016); its candidates, best first.

        All start with two pairs; a third of them goes on to two more, and so on. Those that were tried on
        more pairs come first. Out of time, what has not been tried falls away, and so do the rungs left.
        """
        trials = self.trials
        ranked = self._started(families)
        alive, pairs = {name: len(numbers) for name, numbers in ranked.items()}, RUNG
        while True:
            tried = trials.choosing[:pairs]
            self.run([n for name, size in alive.items() for n in ranked[name][:size]], tried)
            for name, size in alive.items():
                best = sorted(ranked[name][:size], key=lambda n: -self.worth(n, tried))
                ranked[name][:size] = best
            if len(tried) == len(trials.choosing) or trials.exhausted():
                return ranked
            alive = {name: math.ceil(size / KEEP) for name, size in alive.items()}
            pairs += RUNG

    def _started(self, families: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """The candidates there is time for, tried on two pairs each: one of every family after another."""
        trials = self.trials
        started = {name: list(numbers) for name, numbers in families.items()}
        for count in range(1, 1 + max(map(len, started.values())) if trials.config.minutes else 0):
            turn = [numbers[count - 1] for numbers in families.values() if len(numbers) >= count]
            self.run(turn, trials.choosing[:RUNG])
            if trials.exhausted():
                return {name: list(numbers[:count]) for name, numbers in families.items()}
        return started

    def describe(self, number: int) -> dict[str, Any]:
        """A candidate with what it came to where it was chosen, and what to expect of it elsewhere."""
        trials, candidate = self.trials, self.candidates[number]
        goals = {metric: (metric,) for metric in Trial._fields} | {"objective": trials.goals}

        def intervals(pairs: Sequence[int]) -> dict[str, Any]:
            # One value per surrogate: those of its originals are alike, and so no sample of their own.
            width = len(trials.surrogates)
            own = [[pair for pair in pairs if pair % width == surrogate] for surrogate in range(width)]
            return {
                name: interval_dict(t_interval([float(np.mean(each)) for each in values], (0, 1)))
                for name, keys in goals.items()
                if (values := [found for each in own if (found := self.values(number, each, keys))])
            }

        return {
            **candidate.model_dump(),
            "worth": self.worth(number),
            "chosen_on": intervals([*trials.choosing, *trials.deciding]),
            "expected": intervals(trials.checking),
        }
