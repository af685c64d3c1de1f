"""SCRUB: leave the original on the forget set, stay with it on the retain set."""

import copy
import math
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Self

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from rumfast.algorithms.base import Algorithm, Epochs, SgdConfig
from rumfast.algorithms.distillation import divergence, teach
from rumfast.config import Rate
from rumfast.loaders import Batch
from rumfast.runtime import derive_seed
from rumfast.training import Learner


class ScrubConfig(SgdConfig):
    """γ weighs the true labels and β the teacher, on the retain set."""

    lr: Rate = 0.005
    epochs: Epochs = 5.0
    msteps: Rate = 4.0  # epochs, from the first on, that also take max steps over the forget set
    gamma: Rate = 0.99
    beta: Rate = 0.001
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0

    def scaled(self, factor: float) -> Self:
        """The same share of max steps in ``factor`` times the epochs."""
        return super().scaled(factor).model_copy(update={"msteps": self.msteps * factor})


def _scrub(learner: Learner, forget: Tensor, retain: Tensor, config: ScrubConfig, seed: int) -> None:
    """max_θ T²·KL(θo ‖ θ) over S, then min_θ γ·CE + β·T²·KL(θo ‖ θ) over R, in turn, epoch by epoch.

    Exactly the first ``msteps`` epochs have max steps. (The research code takes one epoch more.)
    """
    optimizer = learner.optimizer(config.lr, config.momentum, config.weight_decay)
    original = copy.deepcopy(learner.model)
    taught = teach(learner, [(original, forget), (original, retain)], max(config.epochs, _max_epochs(config)))

    def loss_of(phase: tuple[Batch, bool]) -> tuple[Tensor, int]:
        batch, leave = phase
        logits = learner.logits(batch.image)
        apart = divergence(taught(batch), logits, config.temperature)
        if leave:
            return -apart, len(batch.id)
        return config.gamma * cross_entropy(logits, batch.label) + config.beta * apart, len(batch.id)

    learner.descend(phases(learner, forget, retain, config, seed), optimizer, loss_of)


def phases(
    learner: Learner, forget: Tensor, retain: Tensor, config: ScrubConfig, seed: int
) -> Iterator[tuple[Batch, bool]]:
    """Batches in the order they are learned from, each with whether it is a max step.

    An epoch is one pass over S, while ``msteps`` last, and then one over R. Fractions of ``msteps`` and
    ``epochs`` end with a whole batch of theirs.
    """
    leave = learner.batches(forget, _max_epochs(config), derive_seed("max", seed))
    stay = learner.batches(retain, config.epochs, seed)
    for _ in range(math.ceil(config.epochs)):
        yield from ((batch, True) for batch in islice(leave, learner.steps_per_epoch(len(forget))))
        yield from ((batch, False) for batch in islice(stay, learner.steps_per_epoch(len(retain))))


def _max_epochs(config: ScrubConfig) -> float:
    return min(config.msteps, config.epochs)


def _cost(forget: int, retain: int, batch: int, config: ScrubConfig) -> tuple[float, int]:
    """A pass over R each epoch, and one over S in ``msteps`` of ``epochs``."""
    return retain + forget * _max_epochs(config) / config.epochs, 0


SCRUB = Algorithm(ScrubConfig, _scrub, _cost, "Kurmanji et al. 2023, section 4, algorithm 1")
