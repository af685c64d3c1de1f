"""Unlearning by wrong labels: random label, and SalUn, which does so on the salient weights alone."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from rumfast.algorithms.base import Algorithm, SgdConfig
from rumfast.algorithms.gradients import gradient_sum
from rumfast.config import Rate
from rumfast.loaders import Batch
from rumfast.runtime import generator
from rumfast.training import Learner


class RandomLabelConfig(SgdConfig):
    """As the research code has it."""

    lr: Rate = 0.1


class SalunConfig(RandomLabelConfig):
    """``fraction`` of all weights, those with the largest saliency, may move."""

    fraction: Annotated[float, Field(gt=0, le=1)] = 0.5


def _random_label(
    learner: Learner, forget: Tensor, retain: Tensor, config: RandomLabelConfig, seed: int
) -> None:
    """min_θ CE on S with random wrong labels and R with its own, shuffled together."""
    _relabel(learner, forget, retain, config, seed, frozen=None)


def _salun(learner: Learner, forget: Tensor, retain: Tensor, config: SalunConfig, seed: int) -> None:
    """Random label on the weights whose |Σ_S ∇CE| at θo is largest; the others end bit-identical to θo.

    After each step the frozen weights are put back: neither weight decay nor momentum can move them.
    """
    frozen = [~mask for mask in saliency_masks(learner, forget, config.fraction)]
    _relabel(learner, forget, retain, config, seed, frozen)


def _relabel(
    learner: Learner,
    forget: Tensor,
    retain: Tensor,
    config: RandomLabelConfig,
    seed: int,
    frozen: list[Tensor] | None,
) -> None:
    optimizer = learner.optimizer(config.lr, config.momentum, config.weight_decay)
    label_N = learner.loader.label_N.clone()
    label_N[forget] = wrong_labels(label_N[forget], learner.model.fc.out_features, seed)
    parameters = list(learner.model.parameters())
    original = [parameter.detach().clone() for parameter in parameters] if frozen is not None else []

    def loss_of(batch: Batch) -> tuple[Tensor, int]:
        return cross_entropy(learner.logits(batch.image), label_N[batch.id]), len(batch.id)

    @torch.no_grad()
    def restore() -> None:
        for parameter, start, still in zip(parameters, original, frozen or [], strict=True):
            torch.where(still, start, parameter, out=parameter)

    batches = learner.batches(torch.cat([forget, retain]), config.epochs, seed)
    learner.descend(batches, optimizer, loss_of, restore if frozen is not None else None)


def wrong_labels(label_F: Tensor, classes: int, seed: int) -> Tensor:
    """Replace each label by one of the ``classes − 1`` others, uniformly.

    >>> bool((wrong_labels(torch.zeros(99, dtype=torch.int64), 3, seed=0) == 0).any())
    False
    """
    shift = torch.randint(1, classes, label_F.shape, generator=generator("wrong labels", seed))
    return (label_F + shift.to(label_F.device)) % classes


def saliency_masks(learner: Learner, forget: Tensor, fraction: float) -> list[Tensor]:
    """Boolean masks over the parameters: True at the ``fraction`` of all weights with the largest |Σ_S ∇CE|.

    The gradient is taken in eval mode. (The research code keeps the smallest instead.)
    """
    saliency = [gradient.abs() for gradient in gradient_sum(learner, forget)]
    flat = torch.cat([values.flatten() for values in saliency])
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[flat.topk(max(1, round(fraction * flat.numel()))).indices] = True
    return [
        mask.view_as(values)
        for mask, values in zip(kept.split([v.numel() for v in saliency]), saliency, strict=True)
    ]


RANDOM_LABEL = Algorithm(
    RandomLabelConfig,
    _random_label,
    lambda forget, retain, batch, config: (forget + retain, 0),
    "Golatkar et al. 2020",
)
SALUN = Algorithm(
    SalunConfig,
    _salun,
    lambda forget, retain, batch, config: (forget + retain, forget),
    "Fan et al. 2024, section 4",
)
