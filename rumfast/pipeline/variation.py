"""Candidate plans: families of one shape over a grid, and variations of good plans."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rumfast.algorithms import SgdConfig
from rumfast.algorithms.grid import GRID
from rumfast.config import Refine, Retain, Strict
from rumfast.errors import UsageError
from rumfast.plans import ALONE, EACH, WHOLE, Step, parse_plan, plan_text
from rumfast.runtime import derive_seed

OPTIONS = 8  # steps that mixed plans are made of, besides none
PARENTS = 4  # best plans so far that are varied
RESTARTS = ("euk",)  # throw away what an earlier step of a plan did, so that only their last step counts
LR_FACTORS = (1 / 3, 1 / 2, 2, 3)
EPOCH_FACTORS = (1 / 2, 2)  # of one step: the budget is spread in proportion to epochs


class Candidate(Strict):
    """A plan to try; None stands for what the recipe says."""

    steps: str
    refine: Refine | None = None
    retain: Retain | None = None


def vanilla(algorithm: str) -> list[Candidate]:
    """The algorithm at once on the whole forget set, over its grid."""
    return [Candidate(steps=text) for text in _calls(algorithm)]


def rum_f(algorithm: str) -> list[Candidate]:
    """The algorithm on each group in turn (RUM^F), over its grid."""
    return [Candidate(steps=f"{EACH}: {text}") for text in _calls(algorithm)]


def shuffle(algorithm: str) -> list[Candidate]:
    """The algorithm on random groups in turn, over its grid: the control of :func:`rum_f`."""
    return [Candidate(steps=f"{EACH}: {text}", refine="random") for text in _calls(algorithm)]


def paper_plans() -> list[Candidate]:
    """The paper's plan for three groups, nothing > fine-tuning > SalUn, over both grids."""
    return [
        Candidate(steps=f"low: none > mid: {mid} > high: {high}")
        for mid in _calls("finetune")
        for high in _calls("salun")
    ]


def standard_families(
    names: Sequence[str], algorithms: Sequence[str] | None = None
) -> dict[str, list[Candidate]]:
    """What ``rumfast plan`` tries: every algorithm at once and on each group, and the paper's plan.

    Args:
        names: of the groups; the paper's plan wants low, mid and high.
        algorithms: None takes all.

    Raises:
        UsageError: an algorithm is not known, or is ``retrain``, which there is nothing to choose for.
    """
    chosen = tuple(GRID) if algorithms is None else tuple(algorithms)
    if unknown := [name for name in chosen if name not in GRID]:
        raise UsageError(f"search.algorithms: got {unknown[0]!r}, expected some of {', '.join(GRID)}")
    families = {name: vanilla(name) for name in chosen}
    if len(names) > 1:
        families |= {f"{name}+rum-f": rum_f(name) for name in chosen if name not in ("none", *RESTARTS)}
    if set(names) == {"low", "mid", "high"} and {"none", "finetune", "salun"} <= set(chosen):
        families["rum"] = paper_plans()
    return families


def _calls(algorithm: str) -> list[str]:
    return [f"{algorithm}({arguments})" if arguments else algorithm for arguments in GRID[algorithm]]


class Variation:
    """Mixed plans for named groups, from what has done well.

    Args:
        names: of the groups.
        seeds: candidates of any family with their scores; higher is better.
        retain: what the recipe says, for candidates that do not.
    """

    def __init__(
        self, names: Sequence[str], seeds: Sequence[tuple[Candidate, float]], retain: Retain, seed: int
    ) -> None:
        self.names = tuple(names)
        self.retain = retain
        self.seed = seed
        ranked = sorted(seeds, key=lambda pair: -pair[1])
        steps = [step for candidate, _ in ranked for step in parse_plan(candidate.steps)]
        distinct = {str(replace(step, group=WHOLE)): step for step in reversed(steps)}
        trained = [
            step
            for step in reversed(distinct.values())
            if isinstance(step.config, SgdConfig) and step.algorithm not in RESTARTS
        ]
        self.options = (*trained[:OPTIONS], parse_plan("none")[0])
        named = (self._named(candidate) for candidate, _ in ranked if candidate.refine is None)
        self.firsts = [one for one in named if not any(name in one.steps for name in RESTARTS)]
        self._seen: set[str] = set()

    def children(self, parents: Sequence[Candidate], count: int, generation: int) -> list[Candidate]:
        """New candidates: variations of ``parents``, which come best first.

        Without any, half are variations of the families' best, and half random steps for each group.
        """
        draw = np.random.default_rng(derive_seed("variation", self.seed, generation))
        best = parents[:PARENTS] or self.firsts[:PARENTS]
        found: list[Candidate] = []
        for attempt in range(20 * count):
            if len(found) == count:
                break
            random = not parents and attempt % 2
            child = self._random(draw) if random else self._vary(best, draw)
            if child.model_dump_json() not in self._seen:
                self._seen.add(child.model_dump_json())
                found.append(child)
        return found

    def _named(self, candidate: Candidate) -> Candidate:
        """The same steps with a step for each group by name."""
        steps = parse_plan(candidate.steps)
        if steps[0].group in ALONE:
            steps = tuple(replace(steps[0], group=name) for name in self.names)
        return candidate.model_copy(update={"steps": plan_text(steps)})

    def _random(self, draw: np.random.Generator) -> Candidate:
        steps = [replace(self.options[draw.integers(len(self.options))], group=name) for name in self.names]
        return Candidate(steps=plan_text(steps))

    def _vary(self, parents: Sequence[Candidate], draw: np.random.Generator) -> Candidate:
        """One or two changes of a parent, of which one may be a step of another."""
        parent, other = (parents[int(draw.integers(len(parents)))] for _ in range(2))
        steps, retain = list(parse_plan(parent.steps)), parent.retain or self.retain
        theirs = {step.group: step for step in parse_plan(other.steps)}
        for _ in range(draw.integers(1, 3)):
            change, place = draw.integers(6), draw.integers(len(steps))
            if change == 0:
                option = self.options[draw.integers(len(self.options))]
                steps[place] = replace(option, group=steps[place].group)
            elif change == 1:
                steps[place] = _with_lr(steps[place], draw.choice(LR_FACTORS))
            elif change == 2:
                steps[place] = _with_share(steps[place], draw.choice(EPOCH_FACTORS))
            elif change == 3:
                following = (place + 1) % len(steps)
                steps[place], steps[following] = steps[following], steps[place]
            elif change == 4:
                steps[place] = theirs[steps[place].group]
            else:
                retain = "remaining" if retain == "final" else "final"
        return Candidate(steps=plan_text(steps), retain=None if retain == self.retain else retain)


def _with_lr(step: Step, factor: float) -> Step:
    if not isinstance(step.config, SgdConfig):
        return step
    return replace(
        step, config=step.config.model_copy(update={"lr": float(f"{step.config.lr * factor:.2g}")})
    )


def _with_share(step: Step, factor: float) -> Step:
    """The step with another share of the budget."""
    if not isinstance(step.config, SgdConfig):
        return step
    return replace(step, config=step.config.scaled(float(factor)))
