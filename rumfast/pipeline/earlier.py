"""Recheck of earlier requests after this one: the same oracles never saw their examples either."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rumfast.data import Split
from rumfast.evaluation import METRICS
from rumfast.pipeline.judging import bands_of, findings_of, judged, power_of, score_population, set_sizes
from rumfast.sweeps import Population

if TYPE_CHECKING:
    from rumfast.pipeline.context import Context

LOOKED_AT = ("accuracy_forget", "mia")  # of each earlier request's examples


def first_originals(originals: Population) -> Population:
    """The originals that a chain of requests started from."""
    return [originals, *_parents(originals)][-1]


def _parents(population: Population) -> Iterator[Population]:
    """The populations that one was unlearned from, back to the originals."""
    while population.spec.parent is not None:
        population = Population.open(population.root / population.spec.parent)
        yield population


def earlier_populations(originals: Population) -> list[Population]:
    """The unlearned models of each earlier request, the first one's first."""
    chain = [originals, *_parents(originals)]
    return [population for population in reversed(chain) if population.spec.parent is not None]


def recheck(run: "Context", plans: Mapping[str, Population]) -> list[dict[str, Any]]:
    """Forget accuracy and MIA on each earlier request's examples, of every plan, against this run's oracles.

    The oracles are retrained without the earlier requests too. A metric has power where it tells the
    originals of the first request, which were trained on all of them, from the oracles.
    """
    return [_recheck(run, plans, before) for before in earlier_populations(run.originals)]


def _recheck(run: "Context", plans: Mapping[str, Population], before: Population) -> dict[str, Any]:
    settings = run.recipe.evaluate
    split = Split(np.array(before.spec.forget, np.int64), run.split.retain)

    def scores(population: Population, members: int) -> list[Any]:
        return score_population(population, members, run.data, split, settings.mia_examples)

    oracles = scores(run.oracle_population, settings.oracles)
    bands = bands_of(oracles, set_sizes(run.data, split))
    bands = {name: bands[name] for name in LOOKED_AT}
    untouched = findings_of(scores(first_originals(run.originals), settings.seeds), oracles, bands)
    populations = {"start": run.originals, **plans}
    found = {
        name: judged(findings_of(scores(population, settings.seeds), oracles, bands), untouched)
        for name, population in populations.items()
    }
    asked = before.spec.requests[-1].request if before.spec.requests else None
    return {
        "request": asked,
        "size": len(split.forget),
        "bands": {name: band.record() | {"n": band.n} for name, band in bands.items()},
        "power": power_of(untouched, bands),
        "start": found.pop("start"),
        "plans": found,
    }


def unlike_before(found: Sequence[Mapping[str, Any]], plan: str) -> list[str]:
    """Reasons why a plan differs by earlier requests: that it remembers them, or over-forgets them."""
    reasons = []
    for one in found:
        asked = f"{one['request'] or 'not recorded'}, {one['size']} examples"
        metrics = one["plans"][plan]["metrics"]
        for over, text in ((False, "not forgotten"), (True, "over-forgotten")):
            outside = [
                METRICS[name].label
                for name, entry in metrics.items()
                if entry["verdict"] == "outside" and entry["over_forgotten"] == over
            ]
            if outside:
                reasons.append(f"an earlier request ({asked}) is {text} by {', '.join(outside)}")
    return reasons
