"""L1-sparse: fine-tune on the retain set while pruning weights by an L1 penalty."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rumfast.algorithms.base import Algorithm, SgdConfig
from rumfast.config import Rate
from rumfast.loaders import Batch
from rumfast.training import Learner


class L1SparseConfig(SgdConfig):
    """α weighs the penalty in the first epoch; it falls linearly from there."""

    alpha: Rate = 5e-4


def _l1_sparse(learner: Learner, forget: Tensor, retain: Tensor, config: L1SparseConfig, seed: int) -> None:
    """min_θ CE(R) + α(1 − e/E)‖θ‖₁ in epoch e = 0, 1, … of E, over all weights."""
    optimizer = learner.optimizer(config.lr, config.momentum, config.weight_decay)
    weights = list(learner.model.parameters())
    steps_per_epoch = learner.steps_per_epoch(len(retain))

    def weighed() -> Iterator[tuple[Batch, Tensor]]:
        for step, batch in enumerate(learner.batches(retain, config.epochs, seed)):
            strength = penalty(config.alpha, step // steps_per_epoch, config.epochs)
            yield batch, torch.full((), strength, device=learner.device)

    def loss_of(pair: tuple[Batch, Tensor]) -> tuple[Tensor, int]:
        batch, strength = pair
        loss, examples = learner.cross_entropy(batch)
        return loss + strength * l1_norm(weights), examples

    learner.descend(weighed(), optimizer, loss_of)


def penalty(alpha: float, epoch: int, epochs: float) -> float:
    """α(1 − e/E): the weight of ‖θ‖₁ in epoch ``epoch``, counted from 0.

    >>> [penalty(0.8, epoch, 4.0) for epoch in range(4)]
    [0.8, 0.6000000000000001, 0.4, 0.2]
    """
    return alpha * (1 - epoch / epochs)


def l1_norm(weights: Sequence[Tensor]) -> Tensor:
    """‖θ‖₁ of all tensors together; its gradient is sign(θ), 0 at 0."""
    return torch.stack([weight.abs().sum() for weight in weights]).sum()


L1_SPARSE = Algorithm(
    L1SparseConfig,
    _l1_sparse,
    lambda forget, retain, batch, config: (retain, 0),
    "Jia et al. 2023, section 4",
)
