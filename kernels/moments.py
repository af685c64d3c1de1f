"""Count, mean and scatter of embeddings per group.

count_g = |{i : g_i = g}|,  mean_g = Σ x_i / count_g,  scatter_g = Σ ‖x_i − mean_g‖².
"""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 512  # points converted to float64 at a time, so that they stay in the cache


class Moments(NamedTuple):
    """Sufficient statistics of G groups of D-dimensional points, in float64."""

    count_G: Tensor
    mean_GD: Tensor
    scatter_G: Tensor  # sum, not mean, of squared distances to the group's mean


def moments(embedding_ND: Tensor, group_N: Tensor, groups: int) -> Moments:
    """Reduce points to their groups' count, mean and scatter.

    Args:
        embedding_ND: [N, D] floating point.
        group_N: [N] int64 in [0, groups).
        groups: number of groups G; a group without points has mean and scatter 0.

    Raises:
        ValueError: shapes disagree or a group is out of range.

    >>> moments(torch.tensor([[0.0], [2.0]]), torch.tensor([0, 0]), 1).scatter_G.tolist()
    [2.0]
    """
    if embedding_ND.ndim != 2 or group_N.shape != embedding_ND.shape[:1]:
        raise ValueError(
            f"moments: embedding [N, D] and group [N] expected, got {tuple(embedding_ND.shape)} "
            f"and {tuple(group_N.shape)}"
        )
    if group_N.numel() and not (0 <= int(group_N.min()) and int(group_N.max()) < groups):
        raise ValueError(
            f"moments: groups span {int(group_N.min())}..{int(group_N.max())}, expected 0..{groups - 1}"
        )
    count_G = torch.bincount(group_N, minlength=groups)
    mean_GD = embedding_ND.new_zeros(groups, embedding_ND.shape[1], dtype=torch.float64)
    scatter_G = embedding_ND.new_zeros(groups, dtype=torch.float64)
    for group, ids in enumerate(group_N.argsort(stable=True).split(count_G.tolist())):
        if len(ids):
            mean_GD[group], scatter_G[group] = _one_group(embedding_ND, ids)
    return Moments(count_G, mean_GD, scatter_G)


def _one_group(embedding_ND: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """One pass around a pilot p: mean = p + Σ(x−p)/n, scatter = Σ‖x−p‖² − ‖Σ(x−p)‖²/n.

    The pilot is one of the points, so that nothing cancels when they lie far from the origin.
    """
    pilot_D = embedding_ND[ids[0]].double()
    total_D, squares = torch.zeros_like(pilot_D), pilot_D.new_zeros(())
    for chunk in ids.split(CHUNK):
        offset = embedding_ND.index_select(0, chunk).double().sub_(pilot_D)
        total_D += offset.sum(0)
        squares += torch.dot(offset.view(-1), offset.view(-1))
    return pilot_D + total_D / len(ids), squares - total_D.square().sum() / len(ids)
