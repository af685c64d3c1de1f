"""NegGrad: ascend on the forget set; NegGrad+: descend on the retain set meanwhile."""

from collections.abc import Iterator
from itertools import chain
from typing import Annotated

from pydantic import Field
from torch import Tensor

from rumfast.algorithms.base import Algorithm, Epochs, SgdConfig
from rumfast.config import Rate
from rumfast.loaders import Batch, batch_count
from rumfast.runtime import derive_seed
from rumfast.stepping import Terms
from rumfast.training import Learner


class NegGradConfig(SgdConfig):
    """Ascent has no bound: a small rate, and few epochs."""

    lr: Rate = 1e-4
    epochs: Epochs = 5.0


class NegGradPlusConfig(SgdConfig):
    """α weighs the retain set's loss against the forget set's ascent."""

    epochs: Epochs = 5.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.97


def _neggrad(learner: Learner, forget: Tensor, retain: Tensor, config: NegGradConfig, seed: int) -> None:
    """min_θ −CE(S), from θo; the retain set is not looked at."""
    optimizer = learner.optimizer(config.lr, config.momentum, config.weight_decay)

    def loss_of(batch: Batch) -> tuple[Tensor, int]:
        loss, examples = learner.cross_entropy(batch)
        return -loss, examples

    learner.descend(learner.batches(forget, config.epochs, seed), optimizer, loss_of)


def _neggrad_plus(
    learner: Learner, forget: Tensor, retain: Tensor, config: NegGradPlusConfig, seed: int
) -> None:
    """min_θ α·CE(R) − (1−α)·CE(S); the forget set is cycled beside the retain set's batches."""
    optimizer = learner.optimizer(config.lr, config.momentum, config.weight_decay)
    ascent = _cycle(learner, forget, derive_seed("ascent", seed))

    def loss_of(term: tuple[Batch, float]) -> tuple[Tensor, int]:
        batch, weight = term
        loss, examples = learner.cross_entropy(batch)
        return weight * loss, examples

    pairs = zip(learner.batches(retain, config.epochs, seed), ascent, strict=False)  # the second has no end
    steps = (Terms(((batch, config.alpha), (other, config.alpha - 1))) for batch, other in pairs)
    learner.descend(steps, optimizer, loss_of)


def _cycle(learner: Learner, ids: Tensor, seed: int) -> Iterator[Batch]:
    return chain.from_iterable(learner.loader.epochs(ids, seed))


def _cost(forget: int, retain: int, batch: int, config: NegGradPlusConfig) -> tuple[float, int]:
    """Every retain batch comes with one forget batch, which is smaller where the forget set is."""
    return retain + batch_count(retain, batch) * forget / max(1, batch_count(forget, batch)), 0


NEGGRAD = Algorithm(
    NegGradConfig, _neggrad, lambda forget, retain, batch, config: (forget, 0), "Golatkar et al. 2020"
)
NEGGRAD_PLUS = Algorithm(
    NegGradPlusConfig,
    _neggrad_plus,
    _cost,
    "Kurmanji et al. 2023, section 4",
)
