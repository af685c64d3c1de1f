"""Count, mean and scatter of embeddings per group.

count_g = |{i : g_i = g}|,  mean_g = Σ x_i / count_g,  scatter_g = Σ ‖x_i − mean_g‖².
"""

from typing import NamedTuple

import torch
from torch import Tensor


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
    by_group_ND = embedding_ND[group_N.argsort(stable=True)]
    mean_GD = embedding_ND.new_zeros(groups, embedding_ND.shape[1], dtype=torch.float64)
    scatter_G = embedding_ND.new_zeros(groups, dtype=torch.float64)
    for group, points in enumerate(by_group_ND.split(count_G.tolist())):
        if len(points):
            mean_GD[group] = points.mean(0, dtype=torch.float64)
            scatter_G[group] = (points.double() - mean_GD[group]).square_().sum()
    return Moments(count_G, mean_GD, scatter_G)
