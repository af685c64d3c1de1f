"""Probes: what is measured on a finished model besides its logits."""

import math

import numpy as np
import torch

from rumfast.data import Dataset
from rumfast.errors import DataError, MismatchError
from rumfast.inference import embeddings_of
from rumfast.models import Classifier, initialize_
from rumfast.runtime import cpu_threads
from rumfast.scores import entanglement_score
from rumfast.sweeps.population import Population
from rumfast.sweeps.relearning import relearn
from rumfast.training import Learner


def run_probe(learner: Learner, population: Population, index: int, data: Dataset) -> bool:
    """Probe and commit one model of the parent, or a fresh one; False where another worker has before.

    Models of one index see the same batches whatever parent they are of, which makes the difference of two
    populations less noisy than either.

    Raises:
        DataError: the parent's model is missing or damaged.
    """
    spec, probe = population.spec, population.spec.probe
    if probe is None or not spec.forget:
        raise DataError(f"{population.root}: probes need a probe and a forget set")
    seed = spec.member_seed(index)
    if spec.parent is None:
        initialize_(learner.model, seed)
    else:
        learner.model.load_state_dict(Population.open(population.root / spec.parent).state(index))
    forget = np.array(spec.forget, np.int64)
    # First, since relearning moves the weights.
    entanglement = _entanglement(learner.model, data, spec.retained(len(data)), forget)
    found = relearn(learner, data, forget, target=probe.target, every=probe.every, most=probe.most, seed=seed)
    try:
        return population.save_probe(index, {**found._asdict(), "entanglement": entanglement})
    except MismatchError:
        if learner.device.type == "cpu":
            raise
        return False  # a GPU may add up in another order


def _entanglement(model: Classifier, data: Dataset, retain: np.ndarray, forget: np.ndarray) -> float | None:
    """ES in the model's own embedding space; None where it is infinite, which JSON has no word for."""
    with cpu_threads(1):  # sums then do not depend on the number of cores
        embedding_ND = embeddings_of(model, data, data.train)
        retain_R, forget_F = (torch.as_tensor(ids, device=embedding_ND.device) for ids in (retain, forget))
        score = entanglement_score(embedding_ND[retain_R], embedding_ND[forget_F])
    return score if math.isfinite(score) else None
