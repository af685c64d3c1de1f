"""Loss curvature at an example, and how far its output moved: proxies that need passes of their own."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import softplus

from rumfast.errors import DataError

STEP = 0.01  # length of h·v, in pixels from 0 to 1


def loss_curvature(
    model: Callable[[Tensor], Tensor], image_BCHW: Tensor, label_B: Tensor, step: float = STEP
) -> Tensor:
    """Curvature of each example's loss along the sign of its input gradient, by finite difference.

    ‖∇ₓL(x + hv) − ∇ₓL(x)‖₂ with v = sign(g)/‖sign(g)‖₂ and g = ∇ₓL(x), where L is the cross-entropy and x the
    image (Zhao & Triantafillou 2024, arXiv 2410.16516, section 3; the direction is that of Moosavi-Dezfooli
    et al. 2019). Their x is in pixels from 0 to 1, and their network normalises it; for the same ``step``,
    let ``model`` do so. To first order h·‖∇²ₓL · v‖₂. Rises with memorization.

    Args:
        model: logits [B, C] of images, in eval mode: batch norm in train mode would mix the examples.
        image_BCHW: as the model takes them; any shape [B, …].
        label_B: int64.
        step: h, in units of the image.

    Returns:
        [B] float64 in [0, ∞); 0 where the gradient vanishes.

    >>> flat = loss_curvature(lambda x: x * 0, torch.ones(2, 3), torch.tensor([0, 2]))
    >>> flat.tolist()
    [0.0, 0.0]
    """
    gradient = _gradient(model, image_BCHW, label_B)
    sign = gradient.sign()
    length_B = sign.flatten(1).norm(dim=1).clamp_min(1)
    towards = sign * (step / length_B).view(-1, *[1] * (sign.ndim - 1))
    change_BK = (_gradient(model, image_BCHW + towards, label_B) - gradient).flatten(1)
    return vector_norm(change_BK, dim=1, dtype=torch.float64)  # squares of 1e−20 are 0 in float32


@torch.enable_grad()
def _gradient(model: Callable[[Tensor], Tensor], image_BCHW: Tensor, label_B: Tensor) -> Tensor:
    """∇ₓL of each example, since the examples of a batch do not meet in eval mode."""
    image_BCHW = image_BCHW.detach().requires_grad_()
    logits_BC, index_B1 = model(image_BCHW), label_B[:, None]
    others_B = logits_BC.scatter(1, index_B1, -torch.inf).logsumexp(1)
    # softplus(−margin): softmax − one-hot would cancel to 0 on confident examples, and tie them all.
    loss_B = softplus(others_B - logits_BC.gather(1, index_B1).squeeze(1))
    (gradient,) = torch.autograd.grad(loss_B.sum(), image_BCHW)
    return gradient


def symmetric_divergence(before_NC: np.ndarray, after_NC: np.ndarray) -> np.ndarray:
    """½[KL(p‖q) + KL(q‖p)] between the softmax p of one model's logits and q of another's, per example.

    = ½ Σ_c (p_c − q_c)(log p_c − log q_c): how far retraining on other data moved an example's output
    (arXiv 2410.16516, section 3, after Carlini et al. 2019, arXiv 1910.13427). Rises with memorization.

    Returns:
        [N] float64 in [0, ∞), nats.

    Raises:
        DataError: the shapes differ.

    >>> even, odds = np.zeros((1, 2)), np.array([[np.log(3.0), 0.0]])  # (½, ½) and (¾, ¼)
    >>> bool(np.isclose(symmetric_divergence(even, odds)[0], np.log(3) / 8))
    True
    """
    if before_NC.shape != after_NC.shape or before_NC.ndim != 2:
        raise DataError(f"divergence: got logits {before_NC.shape} and {after_NC.shape}, expected [N, C]")
    p, q = (torch.from_numpy(logits).double().log_softmax(1) for logits in (before_NC, after_NC))
    return ((p.exp() - q.exp()) * (p - q)).sum(1).div(2).numpy()
