"""Trials of candidate plans on surrogates of a run's forget set."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from rumfast.config import Refine, Retain
from rumfast.data import Split
from rumfast.errors import DataError, UsageError
from rumfast.evaluation import ModelScores
from rumfast.pipeline import assess
from rumfast.pipeline.context import Context
from rumfast.pipeline.request import regroup
from rumfast.pipeline.trial_table import Table
from rumfast.pipeline.variation import Candidate
from rumfast.plans import bind, parse_plan, spread_budget
from rumfast.refinement import Group, filled
from rumfast.runtime import derive_seed
from rumfast.surrogates import draw_surrogate, other_classes
from rumfast.sweeps import Population
from rumfast.sweeps.journal import read_history
from rumfast.sweeps.run import train_members
from rumfast.sweeps.spec import CandidateSpec, GroupSpec, SurrogateSpec

GOALS = {"mean": ("tow", "tow_mia"), "tow": ("tow",), "tow_mia": ("tow_mia",)}


class Trials:
    """The surrogates of one run's forget set, and the trials on them.

    Pair p is surrogate p % S, unlearned from one of its originals, see ``PopulationSpec.pair``.

    Raises:
        UsageError: the recipe has no budget, so that candidates could not be compared.
    """

    def __init__(self, run: Context, families: Mapping[str, Sequence[Candidate]]) -> None:
        self.run = run
        self.config = run.recipe.search
        self.goals = GOALS[self.config.objective]
        self.originals = min(self.config.originals, run.recipe.evaluate.seeds)
        if run.budget is None:
            raise UsageError("unlearn.budget_epochs: plan search compares plans at one budget; give one")
        self._families = families
        self._populations: list[Population] = []
        self._oracles: dict[int, list[ModelScores]] = {}

    @cached_property
    def key(self) -> str:
        """Digest of all that is asked for: settings, candidates, surrogates."""
        asked = {name: [one.model_dump() for one in each] for name, each in self._families.items()}
        ids = [surrogate.forget.tolist() for surrogate in self.surrogates]
        settings = [self.config.model_dump(), self.originals, self.run.recipe.evaluate.mia_examples]
        return _digest(json.dumps([settings, asked, ids]))

    def _population(self, name: str, kind: str, **fields: Any) -> Population:
        """A population in a folder of its own, so that whatever stays the same is done once."""
        originals = self.run.originals.root.resolve()
        parent = {"parent": os.path.relpath(originals, self.run.dir.search.resolve() / name)}
        spec = self.run.spec(kind, **fields, **(parent if kind == "trials" else {}))
        root = self.run.dir.search / f"{name}-{_digest(spec.model_dump_json())[:12]}"
        population = Population.create(root, spec)
        self._populations.append(population)
        return population

    @cached_property
    def surrogates(self) -> list[Split]:
        """Forget sets to choose on, then those of the finals, then those to check on.

        They may share examples. Sets that do not would have to be easier than the forget set, since examples
        that are hard to forget are few, and then other hyper-parameters win (see ``bench/LOG.md``).
        """
        run, config = self.run, self.config
        forget, pool = run.split.forget, np.sort(np.concatenate([run.split.forget, run.split.retain]))
        wanted = config.surrogates + config.finals + config.checks
        seeds = [derive_seed("surrogate", config.seed, number) for number in range(wanted)]
        classes = other_classes(forget, run.data.train.label_N, pool)
        if classes:
            order = np.random.default_rng(seeds[0]).permutation(len(classes))
            sets = [classes[number] for number in order[:wanted]]
        else:
            score_NK = np.stack(list(run.profile().values()), axis=1)
            sets = [draw_surrogate(forget, score_NK, pool, seed) for seed in seeds]
        return [Split(ids, np.setdiff1d(pool, ids)) for ids in sets]

    def overlap(self) -> float | None:
        """Share of the examples to check on that plans were chosen on too; None where nothing is checked."""
        last = self.config.surrogates + self.config.finals
        chosen = np.unique(np.concatenate([split.forget for split in self.surrogates[:last]]))
        shares = [np.isin(split.forget, chosen).mean() for split in self.surrogates[last:]]
        return float(np.mean(shares)) if shares else None

    def profile(self) -> dict[str, dict[str, Any]]:
        """Mean scores of the forget set and of each surrogate: are these alike?"""
        return {
            name: {
                "forget": float(np.nanmean(score_N[self.run.split.forget])),
                "surrogates": [float(np.nanmean(score_N[split.forget])) for split in self.surrogates],
            }
            for name, score_N in self.run.profile().items()
        }

    def groups(self, surrogate: Split, kind: Refine) -> tuple[Group, ...]:
        """A surrogate's groups under the names of those of the user's that hold examples, and as many.

        A class that imitates a smaller one has examples for more groups than plans know.
        """
        run = self.run
        names = [group.name for group in filled(run.groups(kind))]
        forget = run.recipe.forget.model_copy(update={"groups": len(names)})
        recipe = run.recipe.model_copy(update={"forget": forget})
        found = regroup(recipe, run.data, surrogate, run.score_of, kind)
        if len(names) != len(found):
            raise DataError(
                f"plan search: refined by {kind}, a surrogate falls into {len(found)} groups, "
                f"not {len(names)}"
            )
        return tuple(Group(name, group.ids) for name, group in zip(names, found, strict=True))

    def oracles(self, number: int) -> list[ModelScores]:
        """Scores of a surrogate's oracles, which are trained when they are first asked for."""
        if number not in self._oracles:
            run, members, surrogate = self.run, range(self.config.oracles), self.surrogates[number]
            population = self._population(f"oracles-{number}", "oracle", forget=surrogate.forget.tolist())
            train_members(run.engine, population, members, f"oracles of surrogate {number}")
            seen = Split(surrogate.forget, np.setdiff1d(surrogate.retain, run.split.forget))
            self._oracles[number] = assess.score_population(
                population, len(members), run.data, seen, run.recipe.evaluate.mia_examples
            )
        return self._oracles[number]

    def feasible(self, candidate: Candidate) -> bool:
        """Does the plan fit the groups and the budget?"""
        run, surrogate = self.run, self.surrogates[0]
        bound = bind(parse_plan(candidate.steps), self.groups(surrogate, self._refine(candidate)))
        assert run.budget is not None
        try:
            spread_budget(bound, surrogate.retain, self._retain(candidate), run.budget, run.recipe.train)
        except UsageError:
            return False
        return True

    def _refine(self, candidate: Candidate) -> Refine:
        return candidate.refine or self.run.recipe.forget.refine

    def _retain(self, candidate: Candidate) -> Retain:
        return candidate.retain or self.run.recipe.unlearn.retain

    def table(self, name: str, candidates: Sequence[Candidate]) -> Table:
        """The candidates' trials, in a population of their own."""
        run = self.run
        kinds = sorted({self._refine(candidate) for candidate in candidates})
        population = self._population(
            name,
            "trials",
            seed=self.config.seed,
            forget=run.split.forget.tolist(),
            candidates=[
                CandidateSpec(steps=one.steps, refine=self._refine(one), retain=self._retain(one))
                for one in candidates
            ],
            surrogates=[
                SurrogateSpec(groups={kind: _stored(self.groups(surrogate, kind)) for kind in kinds})
                for surrogate in self.surrogates
            ],
            pairs=len(self.surrogates) * self.originals,
            originals=run.recipe.evaluate.seeds,
            mia_examples=run.recipe.evaluate.mia_examples,
            budget=run.budget,
        )
        return Table(self, population, candidates)

    def pairs(self, first: int, last: int) -> list[int]:
        """Pairs of surrogates ``first`` to ``last`` - 1, each once, then each with its next original."""
        width = len(self.surrogates)
        return [
            original * width + surrogate
            for original in range(self.originals)
            for surrogate in range(first, last)
        ]

    @property
    def choosing(self) -> list[int]:
        """Pairs that the best of each family is chosen on."""
        return self.pairs(0, self.config.surrogates)

    @property
    def deciding(self) -> list[int]:
        """Pairs that the best of all is chosen on, besides those."""
        return self.pairs(self.config.surrogates, self.config.surrogates + self.config.finals)

    @property
    def checking(self) -> list[int]:
        """Pairs that no choice depends on."""
        return self.pairs(self.config.surrogates + self.config.finals, len(self.surrogates))

    def spent_s(self) -> float:
        """Seconds of training and trying so far, over all calls, by as many workers as there are."""
        seconds = [sum(read_history(each.root).seconds.values()) for each in self._populations]
        return sum(seconds) / self.run.engine.workers

    def exhausted(self) -> bool:
        """Is the time over?"""
        minutes = self.config.minutes
        return minutes is not None and self.spent_s() > 60 * minutes


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _stored(groups: Sequence[Group]) -> tuple[GroupSpec, ...]:
    return tuple(GroupSpec(name=group.name, ids=tuple(group.ids.tolist())) for group in groups)
