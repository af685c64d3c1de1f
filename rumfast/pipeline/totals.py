"""Total of a run's folder: models and gradients, part by part, as multiples of one retraining."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rumfast.sweeps import Population, PopulationSpec
from rumfast.sweeps.journal import read_history

if TYPE_CHECKING:
    from rumfast.pipeline.context import Context

ORIGINALS, SWEEP, PROXIES, ORACLES = "originals", "sweep members", "proxy models", "oracles"
UNLEARNED = "unlearned models"
SURROGATE_ORACLES, TRIALS = "surrogate oracles", "trials"  # of plan search
CURVATURE_GRADIENTS = 2  # that loss curvature takes of each example after each epoch


class Part(NamedTuple):
    """One kind of models of a run.

    Attributes:
        shared: other runs rest on the same models, as the forget sets of an experiment do.
    """

    name: str
    populations: tuple[Population, ...]
    shared: bool = False


def total_of(run: "Context") -> dict[str, Any]:
    """Count all models that the run's folder holds, and the examples whose gradient they took.

    A function of the folder alone, whoever trained in it: plans that were dropped, trials of plan search and
    models that an audit added count too. Models of an earlier request, which a chained one starts from, lie
    in another folder and do not.

    Returns:
        ``parts``, each with ``name``, ``models``, ``examples``, ``retrainings`` (examples over the mean that
        an oracle took) and ``shared``; the sums ``models``, ``examples`` and ``retrainings``; and
        ``retraining_examples``, what one retraining takes.
    """
    n = len(run.data)
    taken = {part: _examples(part, n) for part in parts_of(run)}
    known = [(part, examples) for part, examples in taken.items() if examples]
    one = float(np.mean(next(examples for part, examples in known if part.name == ORACLES)))
    parts = [
        {
            "name": part.name,
            "models": len(examples),
            "examples": sum(examples),
            "retrainings": sum(examples) / one,
            "shared": part.shared,
        }
        for part, examples in known
    ]
    return {
        "parts": parts,
        "models": sum(part["models"] for part in parts),
        "examples": sum(part["examples"] for part in parts),
        "retrainings": sum(part["retrainings"] for part in parts),
        "retraining_examples": one,
    }


def worker_seconds(run: "Context") -> dict[str, float | None]:
    """Seconds that workers spent on the models of each part, from their journals; None where none is left.

    A model that the journals lack counts as the mean of its population's others.
    """
    found = {part.name: [_seconds(each) for each in part.populations] for part in parts_of(run)}
    return {
        name: None if None in seconds else float(sum(one for one in seconds if one is not None))
        for name, seconds in found.items()
    }


def with_seconds(total: dict[str, Any], seconds: dict[str, float | None]) -> dict[str, Any]:
    """The total with ``worker_s`` of each part and of all; None where a part's is not known."""
    parts = [part | {"worker_s": seconds.get(part["name"])} for part in total["parts"]]
    each = [part["worker_s"] for part in parts]
    return total | {"parts": parts, "worker_s": None if None in each else float(sum(each))}


def parts_of(run: "Context") -> Iterator[Part]:
    """The populations that there are in the run's folder, and in its base, by what they are for."""
    paths = run.dir
    shared = paths.original.parent != paths.root
    for name, folder in ((ORIGINALS, paths.original), (SWEEP, paths.sweep), (PROXIES, paths.proxies)):
        yield Part(name, _populations(folder.parent, folder.name), shared)
    yield Part(ORACLES, _populations(paths.root, paths.oracles.name))
    yield Part(UNLEARNED, _populations(paths.plan("any").parent, "*"))
    searched = _populations(paths.search, "*")
    for name, kind in ((SURROGATE_ORACLES, "oracle"), (TRIALS, "trials")):
        yield Part(name, tuple(each for each in searched if each.spec.kind == kind))


def _populations(folder: Path, pattern: str) -> tuple[Population, ...]:
    return tuple(Population.open(path.parent) for path in sorted(folder.glob(f"{pattern}/spec.json")))


def _examples(part: Part, n: int) -> list[int]:
    """Examples whose gradient each of the part's models took."""
    return [examples_of(each, index, n) for each in part.populations for index in each.complete()]


def examples_of(population: Population, index: int, n: int) -> int:
    """Examples whose gradient a complete member took, of a training set of ``n``."""
    spec = population.spec
    if spec.kind == "subsets":
        return spec.train.epochs * spec.subset_size(index, n)
    if spec.kind == "proxies":
        return proxy_examples(spec, index, n, population.metrics(index)["holdout_epochs"])
    if spec.kind == "trials":
        return int(population.trial(index)["examples"])
    return int(population.metrics(index)["examples"])


def proxy_examples(spec: PopulationSpec, index: int, n: int, holdout_epochs: int) -> int:
    """Examples whose gradient a ``proxies`` member takes: in training, loss curvature, holdout retraining."""
    held = len(spec.holdout(index, n))
    trained = n - len(spec.excluded) - held
    return (1 + CURVATURE_GRADIENTS) * spec.train.epochs * trained + holdout_epochs * held


def _seconds(population: Population) -> float | None:
    done = population.complete()
    if not done:
        return 0.0
    seconds = read_history(population.root).seconds
    known = [seconds[index] for index in done if index in seconds]
    return float(np.mean(known)) * len(done) if known else None
