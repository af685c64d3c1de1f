"""Entanglement of a forget set with the retain set in embedding space."""

from typing import Literal

import torch
from torch import Tensor

from rumfast.errors import DataError, UsageError
from rumfast.kernels.moments import Moments, merge, moments


def entanglement_score(
    retain_RD: Tensor, forget_FD: Tensor, center: Literal["pooled", "midpoint"] = "pooled"
) -> float:
    """Entanglement score: variance within the two sets over variance between them.

    ES = [mean_R ‖φ−μ_R‖² + mean_S ‖φ−μ_S‖²] / ½[‖μ_R−μ‖² + ‖μ_S−μ‖²]
    (Zhao et al. 2024, arXiv 2406.01257, section 4.1). Higher is more entangled; ∞ where the means coincide.

    Args:
        retain_RD, forget_FD: penultimate embeddings [R, D] and [F, D] of the original model.
        center: μ is the mean over both sets (``pooled``, the paper's text) or (μ_R + μ_S)/2 (``midpoint``,
            the paper's code, whose values are larger: nearly twice when |S| ≪ |R|).

    Returns:
        The score in [0, ∞].

    Raises:
        DataError: a set is empty or widths differ.
        UsageError: ``center`` is neither.

    >>> entanglement_score(torch.tensor([[0.0], [2.0]]), torch.tensor([[10.0], [12.0]]))
    0.08
    """
    if center not in ("pooled", "midpoint"):
        raise UsageError(f"center: got {center!r}, expected pooled or midpoint")
    if not len(retain_RD) or not len(forget_FD) or retain_RD.shape[1:] != forget_FD.shape[1:]:
        raise DataError(
            f"entanglement: two non-empty sets of one width expected, got {tuple(retain_RD.shape)} "
            f"and {tuple(forget_FD.shape)}"
        )
    return entanglement_of(moments(retain_RD), moments(forget_FD), center)


def entanglement_of(
    retain: Moments, forget: Moments, center: Literal["pooled", "midpoint"] = "pooled"
) -> float:
    """:func:`entanglement_score` of two sets whose moments are known, each as one group."""
    both = merge(retain, forget)
    forget = Moments(*(tensor.to(both.mean_GD.device) for tensor in forget))
    mean_2D = torch.cat([retain.mean_GD, forget.mean_GD])
    centre_1D = both.mean_GD if center == "pooled" else mean_2D.mean(0, keepdim=True)
    variances = [part.scatter_G / part.count_G for part in (retain, forget)]
    between_1 = (mean_2D - centre_1D).square().sum(1).mean(0, keepdim=True)
    of_retain, of_forget, between = torch.cat([*variances, between_1]).tolist()  # a GPU is waited for once
    return (of_retain + of_forget) / between if between else float("inf")
