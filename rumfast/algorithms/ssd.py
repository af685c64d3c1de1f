"""SSD: shrink the weights that matter much more to the forget set than to all the data."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rumfast.algorithms.base import Algorithm
from rumfast.algorithms.gradients import example_gradients, per_parameter, weight_count
from rumfast.config import Rate, Strict
from rumfast.training import Learner


class SsdConfig(Strict):
    """A weight is shrunk where its importance to S is more than ``alpha`` times that to D."""

    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    dampening: Rate = 1.0  # λ; smaller shrinks more


def _ssd(learner: Learner, forget: Tensor, retain: Tensor, config: SsdConfig, seed: int) -> str:
    """θ ← βθ with β = min(λ·I_D / I_S, 1) where I_S > α·I_D; I is the diagonal of the empirical Fisher at θo.

    As I_D ≥ I_S·F/N on D = S ∪ R, no ratio exceeds N/F. On random instances ratios are near 1, and nothing
    happens: the note says how many weights were dampened.
    """
    forget_P, retain_P = (_squared_gradients(learner, ids) for ids in (forget, retain))
    total = len(forget) + len(retain)
    importance_S, importance_D = forget_P / len(forget), (forget_P + retain_P) / total
    factor_P = damping(importance_S, importance_D, config.alpha, config.dampening)
    with torch.no_grad():
        for parameter, factor in per_parameter(learner, factor_P):
            parameter *= factor
    dampened = int((factor_P < 1).sum())
    note = f"ssd dampened {dampened:,} of {len(factor_P):,} weights"
    if dampened:
        return note
    return (
        f"{note}, the model is the original: none is more than alpha={config.alpha:g} times as important to "
        f"the forget set as to all data, and none can be more than {total / len(forget):.3g} times"
    )


def damping(importance_S: Tensor, importance_D: Tensor, alpha: float, dampening: float) -> Tensor:
    """β per weight: min(λ·I_D / I_S, 1) where I_S > α·I_D, and 1 elsewhere.

    >>> damping(torch.tensor([8.0, 2.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]), 4.0, 0.5)
    tensor([0.0625, 1.0000, 1.0000])
    """
    ratio = dampening * importance_D / importance_S
    return torch.where(importance_S > alpha * importance_D, ratio.clamp(max=1), 1.0)


def _squared_gradients(learner: Learner, ids: Tensor) -> Tensor:
    """Σ g² over ``ids``, of each example's own gradient: squares of batch means depend on the batch size."""
    total_P = torch.zeros(weight_count(learner), device=learner.device)
    for block in example_gradients(learner, ids):
        total_P += block.square().sum(0)
    return total_P


SSD = Algorithm(
    SsdConfig,
    _ssd,
    lambda forget, retain, batch, config: (0, forget + retain),
    "Foster et al. 2024, section 4",
)
