"""Influence unlearning: one Newton step away from the forget set, with the inverse empirical Fisher."""

import os
from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rumfast.algorithms.base import Algorithm
from rumfast.algorithms.gradients import example_gradients, gradient_sum, per_parameter, weight_count
from rumfast.config import Positive, Rate, Strict
from rumfast.errors import DivergedError, UsageError
from rumfast.runtime import generator
from rumfast.training import Learner

# Gradients; smaller blocks skip more of the Gram matrix's mirror image, larger ones multiply faster.
GRAM_BLOCK = 128


class InfluenceConfig(Strict):
    """α scales the step; λ (``dampening``) is what F̂ is before any gradient."""

    alpha: Rate = 0.2
    samples: Positive = 1000  # retain examples that F̂ is made of; memory is 4 bytes × samples × weights
    dampening: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-2


def _influence(learner: Learner, forget: Tensor, retain: Tensor, config: InfluenceConfig, seed: int) -> None:
    """θ += α·F̂⁻¹v with v = Σ_S g / N − (Σ_R g)·N_S / (N·N_R), g the gradients at θo, N = N_S + N_R.

    v is the gradient of what changes when the weights 1/N of all examples become 0 on S and 1/N_R on R.
    """
    order = torch.randperm(len(retain), generator=generator("fisher", seed)).to(retain.device)
    sampled, others = retain[order[: config.samples]], retain[order[config.samples :].sort().values]
    check_memory(len(sampled), weight_count(learner), free_bytes(learner.device))
    flat_SP = torch.empty(len(sampled), weight_count(learner), device=learner.device)
    done = 0
    for block in example_gradients(learner, sampled):
        flat_SP[done : done + len(block)] = block  # in place: twice the memory might not be there
        done += len(block)
    retain_P = flat_SP.sum(0) + (_flat(gradient_sum(learner, others)) if len(others) else 0)
    total = len(forget) + len(retain)
    forget_P = _flat(gradient_sum(learner, forget))
    direction_P = forget_P / total - retain_P * (len(forget) / (total * len(retain)))
    step_P = config.alpha * inverse_fisher_product(flat_SP.split(GRAM_BLOCK), direction_P, config.dampening)
    with torch.no_grad():
        for parameter, part in per_parameter(learner, step_P):
            parameter += part
    if not step_P.isfinite().all():
        raise DivergedError("influence: the step is not finite; lower alpha or raise dampening")


def inverse_fisher_product(blocks: Iterable[Tensor], vector_P: Tensor, dampening: float) -> Tensor:
    """(λI + (1/m) Σ g gᵀ)⁻¹ v from the m per-example gradients g.

    Sherman and Morrison's recursion F̂ₙ⁻¹ = F̂ₙ₋₁⁻¹ − F̂ₙ₋₁⁻¹ggᵀF̂ₙ₋₁⁻¹ / (m + gᵀF̂ₙ₋₁⁻¹g) from F̂₀ = λI (Singh &
    Alistarh 2020, section 3; for unlearning Izzo et al. 2021 and Jia et al. 2023), whose m steps are taken
    at once by Woodbury's identity: F̂⁻¹v = [v − Gᵀ(mλI + GGᵀ)⁻¹Gv] / λ. It needs GGᵀ [m, m], never F̂ [P, P],
    and unlike the recursion over two vectors in the unlearning code of Jia et al. it is exact.

    Args:
        blocks: gradients [b, P] that together are G [m, P].
        vector_P: v.
        dampening: λ > 0.

    >>> g = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> inverse_fisher_product([g], torch.ones(2), 0.5)
    tensor([0.2000, 1.0000])
    """
    seen: list[Tensor] = []
    rows: list[Tensor] = []
    for block in blocks:
        seen.append(block)
        rows.append(torch.cat([block @ one.T for one in seen], 1).double())  # GGᵀ is symmetric: left half
    m = sum(map(len, seen))
    gram_MM = vector_P.new_zeros(m, m, dtype=torch.float64)
    for row in rows:
        start = row.shape[1] - len(row)
        gram_MM[start : row.shape[1], : row.shape[1]] = row
    gram_MM.diagonal().add_(m * dampening)
    product_M = torch.cat([block @ vector_P for block in seen]).double()
    # Reads the lower triangle only. In float64, because small λ makes the matrix nearly singular.
    factor_MM, failed = torch.linalg.cholesky_ex(gram_MM)
    if failed or not bool(factor_MM.isfinite().all()):
        raise DivergedError("influence: the model's gradients are not finite; lower alpha of the step before")
    weight_M = torch.cholesky_solve(product_M[:, None], factor_MM)[:, 0].to(vector_P.dtype)
    for block, weight in zip(seen, weight_M.split([len(block) for block in seen]), strict=True):
        vector_P = vector_P - weight @ block
    return vector_P / dampening


def check_memory(samples: int, weights: int, free: int) -> None:
    """Refuse gradients that do not fit.

    Raises:
        UsageError: says how many bytes they take and how many are free.
    """
    need = 4 * samples * weights
    if need > free:
        raise UsageError(
            f"influence: samples={samples} gradients of {weights:,} weights need {need / 1e9:.0f} GB, "
            f"{free / 1e9:.0f} GB are free; lower samples"
        )


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a GPU, or kept there by torch for reuse; on a CPU all, since it makes room."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


INFLUENCE = Algorithm(
    InfluenceConfig,
    _influence,
    lambda forget, retain, batch, config: (0, forget + retain),
    "Jia et al. 2023, section 4 (WoodFisher: Singh & Alistarh 2020)",
)
