"""Probes of whole populations: relearning and entanglement, with a fresh model as their second anchor."""

import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rumfast.errors import UsageError
from rumfast.pipeline.context import Context
from rumfast.sweeps import Population, PopulationSpec
from rumfast.sweeps.run import train_members
from rumfast.sweeps.spec import ProbeSpec

FRESH = "fresh"  # name of the untrained models among the populations
SHARE = 0.95  # of the originals' mean forget accuracy, at which a model counts as having relearned
BATCH = 64  # examples
LR = 0.01  # constant, a tenth of the recipes'; momentum and weight decay are the recipe's own
LOOKS = 8  # at the accuracy, per pass over the forget set; with more, most of the time would go into looking
PASSES = 30  # over the forget set at most
STEPS = 200  # that are allowed in any case: a small forget set has few in a pass


def measure_probes(
    run: Context, populations: Mapping[str, Population], members: range, *, fresh: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Measure relearning and entanglement of the models ``members`` of each population.

    Done once per model: results lie under ``audit/probes``, and the same call reads them again.

    Args:
        populations: of finished models, by name: originals, oracles, plans.
        members: indices that each of them holds.
        fresh: untrained models to measure besides.

    Returns:
        For each name, and for untrained models under ``fresh``, arrays [M]: ``entanglement``, the
        entanglement score of forget and retain set in each model's own embedding space, in [0, ∞]; and
        ``relearning``, the steps [M] int64 of fine-tuning on the forget set until its accuracy is 0.95 of the
        originals' mean, or the most that were allowed.

    Raises:
        UsageError: a population is called ``fresh``.
    """
    if FRESH in populations:
        raise UsageError(f"populations: {FRESH} is the name of the untrained models; rename the plan")
    train = run.recipe.train.model_copy(
        update={"batch_size": BATCH, "lr": LR, "flip": False, "crop_padding": 0}
    )
    forget = run.split.forget
    fields = {"train": train, "forget": forget.tolist(), "probe": probe_of(len(forget), _target(run))}
    asked: dict[str, tuple[Population | None, range]] = {
        name: (parent, members) for name, parent in populations.items()
    }
    if fresh:
        asked[FRESH] = (None, range(fresh))
    found = {}
    for name, (parent, indices) in asked.items():
        population = _population(run, name, parent, fields)
        train_members(run.engine, population, indices, f"probes of {name}")
        found[name] = _arrays(population, indices)
    return found


def probe_of(forget: int, target: float) -> ProbeSpec:
    """How relearning of a forget set of so many examples is measured.

    >>> probe_of(3000, 0.9)
    ProbeSpec(target=0.9, every=6, most=1410)
    """
    steps = math.ceil(forget / BATCH)
    return ProbeSpec(target=target, every=math.ceil(steps / LOOKS), most=max(STEPS, PASSES * steps))


def _target(run: Context) -> float:
    """A share of the mean forget accuracy of the recipe's originals: whichever members are probed."""
    forget, label_N = run.split.forget, run.data.train.label_N
    logits = (run.originals.outputs(index)["train"] for index in range(run.recipe.evaluate.seeds))
    accuracies = [(train_NC[forget].argmax(1) == label_N[forget]).mean() for train_NC in logits]
    return SHARE * float(np.mean(accuracies))


def _population(run: Context, name: str, parent: Population | None, fields: Mapping[str, Any]) -> Population:
    """The probes of one population, in a folder of their own that tells which models they are of."""
    folder = run.dir.root / "audit" / "probes"
    where = None
    if parent is not None:
        where = os.path.relpath(parent.root.resolve(), folder.resolve() / name)
    spec: PopulationSpec = run.spec("probes", parent=where, **fields)
    identity = spec.identity() + ("" if parent is None else parent.spec.identity())
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return Population.create(folder / f"{name}-{digest[:12]}", spec)


def _arrays(population: Population, members: range) -> dict[str, np.ndarray]:
    probes = [population.probe(index) for index in members]
    entanglement = [math.inf if probe["entanglement"] is None else probe["entanglement"] for probe in probes]
    return {
        "entanglement": np.array(entanglement, np.float64),
        "relearning": np.array([probe["steps"] for probe in probes], np.int64),
    }
