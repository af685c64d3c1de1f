"""Plan search: choose algorithms, hyper-parameters and order on surrogate forget sets.

Candidates never unlearn the user's forget set, and its oracles are not looked at: they unlearn surrogates,
other examples with a similar profile of scores, and are held against the surrogates' own oracles.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rumfast.config import Recipe
from rumfast.data import ids_digest
from rumfast.errors import UsageError
from rumfast.pipeline.context import Context
from rumfast.pipeline.trial_table import Table, halving_trials
from rumfast.pipeline.trials import Trials
from rumfast.pipeline.variation import Candidate, Variation, standard_families
from rumfast.refinement import filled
from rumfast.store import read_json, write_json

FINALISTS = 8


class Winner(NamedTuple):
    """The best candidate of a family."""

    table: Table
    number: int
    tried: int

    @property
    def candidate(self) -> Candidate:
        """The plan itself."""
        return self.table.candidates[self.number]

    @property
    def rank(self) -> tuple[int, float]:
        """What it was chosen by."""
        return self.table.rank(self.number)

    def describe(self) -> dict[str, Any]:
        """The plan, what it came to, and what to expect of it."""
        return self.table.describe(self.number)


def search_plans(run: Context, families: Mapping[str, Sequence[Candidate]]) -> dict[str, Any]:
    """Find the best candidate of each family, and mixed plans better than all; resumes what the run holds.

    Every candidate takes the run's budget. Mixed plans give each group an algorithm of its own: they start
    from the best of the families and vary the best so far, generation after generation.

    Returns:
        What is written to ``search/result.json``: per family its best candidate with the ToW and ToW-MIA it
        had where it was chosen (``chosen_on``, too good by the choice) and its ``worth``, the objective's
        mean less ``caution`` standard deviations. The best of these and of all mixed plans, the
        ``finalists``, meet on further surrogates; ``best`` is worth most on all pairs that choices
        depend on. Finalists also have what they came to on surrogates that no choice depends on
        (``expected``), which share ``overlap`` of their examples with the others. All intervals are 95 %
        t-intervals over surrogates. Out of time, what has not been tried falls away, and the best so far
        is the only finalist.

    Raises:
        UsageError: the recipe has no budget, or no candidate fits groups and budget.
        DataError: more than half of the data is to be forgotten.
    """
    settings, path = run.recipe.search, run.dir.search / "result.json"
    trials = Trials(run, families)
    if path.exists() and (known := read_json(path))["key"] == trials.key:
        return known  # with a time limit another call might choose again, after models were unlearned
    winners = _best_of_each(trials, families)
    names = [group.name for group in filled(run.groups())]
    seeds = [(winner.candidate, winner.rank[1]) for winner in winners.values()]
    mixed = _mixed(trials, Variation(names, seeds, run.recipe.unlearn.retain, settings.seed))
    if mixed:
        winners["mixed"] = mixed[0]
    late = trials.exhausted()
    finalists = _finalists(
        [*winners.items(), *(("mixed", other) for other in mixed[1:])], 1 if late else FINALISTS
    )
    _run(finalists.values(), trials.checking if late else [*trials.deciding, *trials.checking])
    result = {
        "schema": "rumfast/search/1",
        "key": trials.key,
        "forget": ids_digest(run.split.forget),
        "objective": settings.objective,
        "caution": settings.caution,
        "surrogates": settings.surrogates,
        "pairs": len(trials.choosing) + len(trials.deciding),
        "budget_examples": run.budget,
        "families": {name: {**winner.describe(), "tried": winner.tried} for name, winner in winners.items()},
        "finalists": {name: winner.describe() for name, winner in finalists.items()},
        "best": max(finalists, key=lambda name: finalists[name].table.worth(finalists[name].number)),
        "profile": trials.profile(),
        "overlap": trials.overlap(),
        "wall_s": trials.spent_s(),
    }
    write_json(path, result)
    return result


class SearchSize(NamedTuple):
    """Models that a search trains at most."""

    oracles: int  # of surrogates
    trials: int


def search_size(recipe: Recipe, names: Sequence[str]) -> SearchSize:
    """The size of :func:`search_plans` at most, over :func:`standard_families` of groups ``names``.

    Candidates that do not fit the budget, and what a limit on minutes cuts off, are counted all the same.
    """
    config = recipe.search
    families = standard_families(names, config.algorithms)
    originals = min(config.originals, recipe.evaluate.seeds)
    choosing = config.surrogates * originals
    trials = sum(halving_trials(len(each), choosing) for each in families.values())
    generations = config.generations if len(names) > 1 else 0
    trials += generations * halving_trials(config.children, choosing)
    trials += FINALISTS * (config.finals + config.checks) * originals
    return SearchSize((config.surrogates + config.finals + config.checks) * config.oracles, trials)


def _best_of_each(trials: Trials, families: Mapping[str, Sequence[Candidate]]) -> dict[str, Winner]:
    usable = {name: [one for one in each if trials.feasible(one)] for name, each in families.items()}
    usable = {name: each for name, each in usable.items() if each}
    if not usable:
        raise UsageError("plan search: no candidate fits the groups and the budget")
    table = trials.table("families", [one for each in usable.values() for one in each])
    ends = np.cumsum([len(each) for each in usable.values()]).tolist()
    numbers = {name: range(end - len(usable[name]), end) for name, end in zip(usable, ends, strict=True)}
    ranked = table.halve(numbers)
    winners = {name: Winner(table, order[0], len(order)) for name, order in ranked.items()}
    found = {name: winner for name, winner in winners.items() if not table.failed(winner.number)}
    if not found:
        raise UsageError("plan search: every candidate diverged or ran out of memory")
    return found


def _run(winners: Iterable[Winner], pairs: Sequence[int]) -> None:
    """Try plans of any tables on further pairs."""
    chosen = list(winners)
    for table in {id(winner.table): winner.table for winner in chosen}.values():
        table.run([winner.number for winner in chosen if winner.table is table], pairs)


def _finalists(winners: Sequence[tuple[str, Winner]], most: int) -> dict[str, Winner]:
    """The best of all by name, at most so many; further ones of a family are numbered.

    Families that refine in a way of their own are controls, such as random groups.
    """
    found: dict[str, Winner] = {}
    eligible = [pair for pair in winners if pair[1].candidate.refine is None] or winners
    for name, winner in sorted(eligible, key=lambda pair: pair[1].rank, reverse=True)[:most]:
        count = sum(other.partition(" ")[0] == name for other in found)
        found[f"{name} {count + 1}" if count else name] = winner
    return found


def _mixed(trials: Trials, variation: Variation) -> list[Winner]:
    """Mixed plans of some generations that got as far as any of theirs, the best first."""
    config, tried = trials.config, 0
    found: list[Winner] = []
    for generation in range(config.generations if len(variation.names) > 1 else 0):
        if trials.exhausted():
            break
        parents = [winner.candidate for winner in found]
        children = variation.children(parents, config.children, generation)
        children = [one for one in children if trials.feasible(one)]
        if not children:
            break
        table = trials.table(f"mixed-{generation}", children)
        order = table.halve({"mixed": range(len(children))})["mixed"]
        tried += len(order)
        most = table.rank(order[0])[0]
        found += [Winner(table, number, 0) for number in order if table.rank(number)[0] == most]
        found.sort(key=lambda winner: winner.rank, reverse=True)
    return [winner._replace(tried=tried) for winner in found]
