"""Per-example margins and their companions from logits.

margin       m(x, y) = z_y − log Σ_{c≠y} exp z_c  = logit(p_y)
hard margin  z_y − max_{c≠y} z_c
loss         −log p_y = softplus(−m)
confidence   p_y = sigmoid(m)

The label is masked out of the logsumexp: lse_all − exp(z_y), or any route through probabilities, cancels on
confidently classified examples, which are the ones memorization is about.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus


class Margins(NamedTuple):
    """Per-example quantities, each of shape [..., N], float32 but for the boolean ``correct``."""

    margin: Tensor
    hard_margin: Tensor
    loss: Tensor
    confidence: Tensor
    correct: Tensor


def margins(logits: Tensor, label: Tensor) -> Margins:
    """Compute margin, hard margin, cross-entropy, confidence and correctness of each example.

    Args:
        logits: [..., N, C] floating point, C ≥ 2; leading dimensions are members of a population.
        label: [N] int64 in [0, C).

    Returns:
        ``Margins`` of shape [..., N]. ``correct`` is argmax z = y, where a tie goes to the lowest class.

    Raises:
        ValueError: shapes disagree, C < 2, or a label is out of range.

    >>> round(margins(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).margin.item(), 6)
    2.0
    """
    if logits.ndim < 2 or label.ndim != 1 or logits.shape[-2] != label.shape[0]:
        raise ValueError(
            f"margins: logits [..., N, C] and label [N] expected, got {tuple(logits.shape)} "
            f"and {tuple(label.shape)}"
        )
    classes = logits.shape[-1]
    if classes < 2:
        raise ValueError(f"margins: got {classes} class, expected at least 2: one class has no margin")
    if label.numel() and not (0 <= int(label.min()) and int(label.max()) < classes):
        raise ValueError(
            f"margins: labels span {int(label.min())}..{int(label.max())}, expected 0..{classes - 1}"
        )
    logits = logits.float()
    index = label.expand(logits.shape[:-1]).unsqueeze(-1)
    own = logits.gather(-1, index).squeeze(-1)
    others = logits.scatter(-1, index, -torch.inf)
    margin = own - others.logsumexp(-1)
    return Margins(
        margin=margin,
        hard_margin=own - others.amax(-1),
        loss=softplus(-margin),
        confidence=margin.sigmoid(),
        correct=logits.argmax(-1) == label,
    )
