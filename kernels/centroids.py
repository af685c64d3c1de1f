"""Distance of each point to the mean of its group: ‖x_i − mean_g(i)‖."""

import torch
from torch import Tensor

from rumfast.kernels.backend import Backend, Meta, jit, pick_backend, power_of_2, tl
from rumfast.kernels.moments import CHUNK, check_groups, check_shapes, exact_dtype, triton_dtype


def reference_distances(embedding_ND: Tensor, mean_GD: Tensor, group_N: Tensor | None) -> Tensor:
    """‖x_i − mean_g(i)‖ as written."""
    x_ND = embedding_ND.to(exact_dtype(embedding_ND))
    mean_GD = mean_GD.to(x_ND.dtype)
    return (x_ND - (mean_GD if group_N is None else mean_GD[group_N])).square().sum(1).sqrt()


@jit
def _distances_kernel(
    x, point_stride, value_stride, mean, group, out, points, groups, width,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Distances of a block of points to their groups' means; NaN for a group that does not exist."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    known = row < points
    mean_row = tl.zeros((BLOCK_N,), tl.int64)
    if group is not None:
        mean_row = tl.load(group + row, known, other=0)
        known = known & (mean_row >= 0) & (mean_row < groups)
    square = tl.zeros((BLOCK_N, BLOCK_D), EXACT)
    for block in range(0, width, BLOCK_D):
        column = block + tl.arange(0, BLOCK_D)
        real = known[:, None] & (column < width)[None, :]
        address = x + row[:, None] * point_stride + column.to(tl.int64)[None, :] * value_stride
        values = tl.load(address, real, other=0).to(EXACT)
        if group is None:
            centre = tl.load(mean + column, column < width, other=0)[None, :]
        else:
            centre = tl.load(mean + mean_row[:, None] * width + column[None, :], real, other=0)
        offset = values - centre.to(EXACT)
        square += offset * offset
    distance = tl.where(known, tl.sqrt(tl.sum(square, 1)), float("nan"))
    tl.store(out + row, distance, row < points)


def meta(width: int, exact: torch.dtype) -> Meta:
    """8 KB of values per block."""
    block_d = power_of_2(min(width, 64))
    # With twice as many, Triton 3.6 spills on Hopper.
    block_n = min(512, 8192 // exact.itemsize // block_d)
    return {"BLOCK_N": block_n, "BLOCK_D": block_d, "num_warps": 8, "enable_fp_fusion": True}


def _launch_distances(embedding_ND: Tensor, mean_GD: Tensor, group_N: Tensor | None) -> Tensor:
    points, width = embedding_ND.shape
    exact = exact_dtype(embedding_ND)
    out_N = embedding_ND.new_empty(points, dtype=exact)
    blocks = meta(width, exact)
    group_N = None if group_N is None else group_N.contiguous()
    if points:
        with torch.cuda.device_of(embedding_ND):
            _distances_kernel[(-(-points // blocks["BLOCK_N"]),)](
                embedding_ND, *embedding_ND.stride(), mean_GD.contiguous(), group_N, out_N, points,
                len(mean_GD), width, EXACT=triton_dtype(exact), **blocks,
            )  # fmt: skip
    return out_N


@torch.library.custom_op("rumfast::centroid_distances", mutates_args=(), device_types="cpu")
def _distances(embedding_ND: Tensor, mean_GD: Tensor, group_N: Tensor | None) -> Tensor:
    check_groups(group_N, len(mean_GD))
    points, width = embedding_ND.shape
    mean_GD = mean_GD.to(exact_dtype(embedding_ND))
    buffer = mean_GD.new_empty(max(1, CHUNK // max(1, width)), width)
    out_N = mean_GD.new_empty(points)
    for first in range(0, points, len(buffer)):
        end = min(first + len(buffer), points)
        mean_BD = mean_GD if group_N is None else mean_GD.index_select(0, group_N[first:end])
        offset = torch.sub(embedding_ND[first:end], mean_BD, out=buffer[: end - first])
        torch.linalg.vector_norm(offset, dim=1, out=out_N[first:end])
    return out_N


@_distances.register_kernel("cuda")
def _(embedding_ND: Tensor, mean_GD: Tensor, group_N: Tensor | None) -> Tensor:
    return _launch_distances(embedding_ND, mean_GD, group_N)


@_distances.register_fake
def _(embedding_ND: Tensor, mean_GD: Tensor, group_N: Tensor | None) -> Tensor:
    return embedding_ND.new_empty(len(embedding_ND), dtype=exact_dtype(embedding_ND))


def centroid_distances(
    embedding_ND: Tensor, mean_GD: Tensor, group_N: Tensor | None = None, *, backend: Backend = "auto"
) -> Tensor:
    """Distance of each point to the mean of its group, ‖x_i − mean_g(i)‖.

    Args:
        embedding_ND: [N, D] floating point.
        mean_GD: [G, D], as ``moments`` gives it; rounded to float32 unless points are float64.
        group_N: [N] int64 in [0, G); None where G = 1.
        backend: see ``rumfast.kernels.backend``.

    Returns:
        [N] float32, or float64 for float64 points, in [0, ∞].

    Raises:
        ValueError: shapes or dtypes disagree or a group is out of range; on CUDA, the latter gives NaN.

    >>> centroid_distances(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)).tolist()
    [5.0]
    """
    check_shapes(embedding_ND, group_N, len(mean_GD))
    if mean_GD.shape != (len(mean_GD), embedding_ND.shape[1]):
        raise ValueError(f"mean: got {tuple(mean_GD.shape)}, expected [G, {embedding_ND.shape[1]}]")
    if pick_backend(backend, embedding_ND) == "torch":
        check_groups(group_N, len(mean_GD))
        return reference_distances(embedding_ND, mean_GD, group_N)
    return (_launch_distances if backend == "triton" else _distances)(embedding_ND, mean_GD, group_N)
