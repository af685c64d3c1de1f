"""Count, mean and scatter of embeddings per group, in one pass.

    count_g = |{i : g_i = g}|,  mean_g = Σ x_i / count_g,  scatter_g = Σ ‖x_i − mean_g‖²

Each block of points is reduced around a pilot p near its group, so that nothing cancels far from the origin:
mean = p + Σ(x−p)/n, scatter = Σ‖x−p‖² − ‖Σ(x−p)‖²/n. Blocks are float32 (float64 for float64 points),
and are added in float64 and in a fixed order.
"""

from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rumfast.kernels.backend import Backend, Meta, jit, pick_backend, power_of_2, tl

CHUNK = 1 << 18  # values per block on a CPU: 1 MB of float32, which the caches of two cores hold
PROGRAMS = 512  # of Triton, enough to fill a GPU
UNEVEN = 4  # a group may hold this many times its share of the points before its strips leave a GPU idle
PILOT = 64  # points whose mean is the pilot on a CPU: one alone may be an outlier


class Moments(NamedTuple):
    """Sufficient statistics of G groups of D-dimensional points, in float64 (the counts in int64)."""

    count_G: Tensor
    mean_GD: Tensor
    scatter_G: Tensor  # sum, not mean, of squared distances to the group's mean


def reference_moments(embedding_ND: Tensor, group_N: Tensor | None, groups: int) -> Moments:
    """The formulas as written, in two passes."""
    x_ND = embedding_ND.to(exact_dtype(embedding_ND))
    if group_N is None:
        group_N = torch.zeros(len(x_ND), dtype=torch.int64, device=x_ND.device)
    count_G = torch.bincount(group_N, minlength=groups)
    total_GD = x_ND.new_zeros(groups, x_ND.shape[1]).index_add_(0, group_N, x_ND)
    mean_GD = total_GD / count_G.clamp(min=1)[:, None]
    square_N = (x_ND - mean_GD[group_N]).square().sum(1)
    scatter_G = x_ND.new_zeros(groups).index_add_(0, group_N, square_N)
    return Moments(count_G, mean_GD.double(), scatter_G.double())


def exact_dtype(embedding_ND: Tensor) -> torch.dtype:
    """What points are computed in: float32, or float64 for float64."""
    return torch.promote_types(embedding_ND.dtype, torch.float32)


@jit
def ends(bound, group, points):
    """Where a group's points start and stop in their order; without ``bound`` all are one group."""
    if bound is None:
        start = tl.zeros((), tl.int64)
        stop = start + points
    else:
        start, stop = tl.load(bound + group), tl.load(bound + group + 1)
    return start, stop


@jit
def pilot_of(x, point_stride, value_stride, order, start, stop, column, inside, EXACT: tl.constexpr):
    """The coordinates of a group's first point; 0 if it has none."""
    row = start
    if order is not None:
        row = tl.load(order + start, stop > start, other=0)
    address = x + row * point_stride + column.to(tl.int64) * value_stride
    return tl.load(address, inside & (stop > start), other=0).to(EXACT)


@jit
def _strips_kernel(
    x, point_stride, value_stride, order, bound, points, width, total, square,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Σ(x−p) along coordinates, and Σ‖x−p‖² over a block of them, p the group's first point.

    Of a strip of the group's points, BLOCK_N at a time; squares are taken around each block's own mean first.
    """
    group, strip, strips = tl.program_id(0).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = column < width
    start, stop = ends(bound, group, points)
    length = tl.cdiv(tl.cdiv(stop - start, BLOCK_N), strips) * BLOCK_N
    first = start + strip * length
    last = tl.minimum(first + length, stop)
    pilot = pilot_of(x, point_stride, value_stride, order, start, stop, column, inside, EXACT)
    sums = tl.zeros((BLOCK_D,), tl.float64)
    squares = tl.zeros((BLOCK_D,), tl.float64)
    for block in range(first, last, BLOCK_N):
        row = block + tl.arange(0, BLOCK_N)
        real = (row < last)[:, None] & inside[None, :]
        if order is not None:
            row = tl.load(order + row, row < last, other=0)
        address = x + row[:, None] * point_stride + column.to(tl.int64)[None, :] * value_stride
        values = tl.load(address, real, other=0).to(EXACT)
        around_pilot = tl.where(real, values - pilot[None, :], 0)
        count = tl.minimum(last - block, BLOCK_N)
        part = tl.sum(around_pilot, 0)
        around_mean = around_pilot - (part / count.to(EXACT))[None, :]
        squares += tl.sum(tl.where(real, around_mean * around_mean, 0), 0).to(tl.float64)
        part = part.to(tl.float64)
        squares += part * part / count.to(tl.float64)
        sums += part
    place = group * strips + strip
    tl.store(total + place * width + column, sums, inside)
    tl.store(square + place * tl.num_programs(1) + tl.program_id(1), tl.sum(squares, 0))


@jit
def _merge_kernel(
    x, point_stride, value_stride, order, bound, points, width, total, square, strips, squares,
    count_out, mean_out, scatter_out,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Count, mean and scatter of a group from its strips, BLOCK_T at a time in their order."""
    group = tl.program_id(0).to(tl.int64)
    start, stop = ends(bound, group, points)
    count = tl.maximum(stop - start, 1).to(tl.float64)
    scatter = tl.zeros((BLOCK_D,), tl.float64)
    for block in range(0, width, BLOCK_D):
        column = block + tl.arange(0, BLOCK_D)
        inside = column < width
        sums = tl.zeros((BLOCK_D,), tl.float64)
        for first in range(0, strips, BLOCK_T):
            strip = first + tl.arange(0, BLOCK_T)
            address = total + (group * strips + strip)[:, None] * width + column[None, :]
            sums += tl.sum(tl.load(address, (strip < strips)[:, None] & inside[None, :], other=0), 0)
        pilot = pilot_of(x, point_stride, value_stride, order, start, stop, column, inside, EXACT)
        tl.store(mean_out + group * width + column, pilot.to(tl.float64) + sums / count, inside)
        scatter -= sums * sums / count
    for first in range(0, squares, BLOCK_D):
        place = first + tl.arange(0, BLOCK_D)
        scatter += tl.load(square + group * squares + place, place < squares, other=0)
    found = tl.sum(scatter, 0)
    tl.store(scatter_out + group, tl.where(found < 0, 0.0, found))  # keeps NaN, which a maximum would drop
    tl.store(count_out + group, stop - start)


def meta(width: int, exact: torch.dtype) -> Meta:
    """32 KB of values at a time, at most 64 of a row."""
    block_d = power_of_2(min(width, 64))
    block_n = min(512, 32768 // exact.itemsize // block_d)
    return {"BLOCK_N": block_n, "BLOCK_D": block_d, "num_warps": 8, "enable_fp_fusion": True}


def strips_of(points: int, groups: int, columns: int, block_n: int) -> int:
    """Into how many strips each group is cut, for ``columns`` blocks of coordinates.

    Enough that a GPU is busy where a few of many groups hold most points; how many each has is known on the
    device only. It does not depend on the GPU, so that neither do sums.
    """
    wanted = PROGRAMS // columns // max(1, groups // UNEVEN)
    return max(1, min(-(-points // block_n), max(UNEVEN, wanted)))


def _launch(embedding_ND: Tensor, group_N: Tensor | None, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    points, width = embedding_ND.shape
    exact = exact_dtype(embedding_ND)
    blocks, triton_exact = meta(width, exact), triton_dtype(exact)
    order = bound = None
    if group_N is not None:
        ordered_N, order = group_N.sort(stable=True)
        bound = torch.searchsorted(ordered_N, torch.arange(groups + 1, device=group_N.device))
    columns = max(1, -(-width // blocks["BLOCK_D"]))
    strips = strips_of(points, groups, columns, blocks["BLOCK_N"])
    total = embedding_ND.new_empty(groups, strips, width, dtype=torch.float64)
    square = total.new_empty(groups, strips, columns)
    count_G = total.new_empty(groups, dtype=torch.int64)
    mean_GD, scatter_G = total.new_empty(groups, width), total.new_empty(groups)
    given = embedding_ND, *embedding_ND.stride(), order, bound, points, width, total, square
    with torch.cuda.device_of(embedding_ND):
        _strips_kernel[groups, columns, strips](*given, EXACT=triton_exact, **blocks)
        _merge_kernel[(groups,)](
            *given, strips, strips * columns, count_G, mean_GD, scatter_G,
            EXACT=triton_exact, BLOCK_T=64, BLOCK_D=64, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return count_G, mean_GD, scatter_G


def triton_dtype(exact: torch.dtype) -> Any:
    """Triton's name for float32 or float64."""
    return tl.float64 if exact == torch.float64 else tl.float32


@torch.library.custom_op("rumfast::moments", mutates_args=(), device_types="cpu")
def _moments(embedding_ND: Tensor, group_N: Tensor | None, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    check_groups(group_N, groups)
    width = embedding_ND.shape[1]
    buffer = torch.empty(max(PILOT, CHUNK // max(1, width)), width, dtype=exact_dtype(embedding_ND))
    mean_GD = torch.zeros(groups, width, dtype=torch.float64)
    scatter_G = torch.zeros(groups, dtype=torch.float64)
    count_G, order = torch.tensor([len(embedding_ND)]), None
    if group_N is not None:
        count_G = torch.bincount(group_N, minlength=groups)
        if (group_N[1:] < group_N[:-1]).any():
            order = group_N.argsort(stable=True)
    stop = 0
    for group, count in enumerate(count_G.tolist()):
        start, stop = stop, stop + count
        if count:
            mean_GD[group], scatter_G[group] = _one_group(embedding_ND, order, start, stop, buffer)
    return count_G, mean_GD, scatter_G


def _one_group(
    embedding_ND: Tensor, order: Tensor | None, start: int, stop: int, buffer: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and scatter of the points from ``start`` to ``stop`` in ``order``, offset into ``buffer``."""

    def rows(first: int, size: int) -> Tensor:
        end = min(first + size, stop)
        return embedding_ND[first:end] if order is None else embedding_ND.index_select(0, order[first:end])

    pilot_D = rows(start, PILOT).to(buffer.dtype).mean(0)
    count, firsts = stop - start, range(start, stop, len(buffer))
    total_KD, norm_N = buffer.new_empty(len(firsts), buffer.shape[1]), buffer.new_empty(count)
    for k, first in enumerate(firsts):
        points = rows(first, len(buffer))
        offset = torch.sub(points, pilot_D, out=buffer[: len(points)])
        torch.sum(offset, 0, out=total_KD[k])
        # Row by row, because one long float32 dot product stagnates as it grows.
        torch.linalg.vector_norm(offset, dim=1, out=norm_N[first - start : first - start + len(points)])
    total_D = total_KD.double().sum(0)
    scatter = norm_N.double().square_().sum() - total_D.square().sum() / count
    return pilot_D.double() + total_D / count, scatter.clamp_(min=0)


@_moments.register_kernel("cuda")
def _(embedding_ND: Tensor, group_N: Tensor | None, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    return _launch(embedding_ND, group_N, groups)


@_moments.register_fake
def _(embedding_ND: Tensor, group_N: Tensor | None, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    mean_GD = embedding_ND.new_empty(groups, embedding_ND.shape[1], dtype=torch.float64)
    return mean_GD.new_empty(groups, dtype=torch.int64), mean_GD, mean_GD.new_empty(groups)


def check_groups(group_N: Tensor | None, groups: int) -> None:
    """Raise ValueError unless all groups are in [0, groups)."""
    if group_N is not None and group_N.numel():
        low, high = (int(end) for end in group_N.aminmax())
        if low < 0 or high >= groups:
            raise ValueError(f"moments: groups span {low}..{high}, expected 0..{groups - 1}")


def check_shapes(embedding_ND: Tensor, group_N: Tensor | None, groups: int) -> None:
    """Raise ValueError unless points [N, D], their groups [N] or None, and the number of groups agree."""
    shapes = [tuple(tensor.shape) for tensor in (embedding_ND, group_N) if tensor is not None]
    if embedding_ND.ndim != 2 or shapes[1:] not in ([], [shapes[0][:1]]):
        raise ValueError(
            f"moments: embedding [N, D] and group [N] expected, got {' and '.join(map(str, shapes))}"
        )
    if not embedding_ND.is_floating_point() or (group_N is not None and group_N.dtype != torch.int64):
        found = embedding_ND.dtype if group_N is None else f"{embedding_ND.dtype} and {group_N.dtype}"
        raise ValueError(f"moments: floating-point embedding and int64 group expected, got {found}")
    if groups < 1 or (group_N is None and groups != 1):
        raise ValueError(f"groups: got {groups}, expected 1, or more together with the group of each point")


def moments(
    embedding_ND: Tensor, group_N: Tensor | None = None, groups: int = 1, *, backend: Backend = "auto"
) -> Moments:
    """Reduce points to their groups' count, mean and scatter.

    Args:
        embedding_ND: [N, D] floating point.
        group_N: [N] int64 in [0, groups); None puts all points into one group.
        groups: number of groups G ≥ 1; a group without points has mean and scatter 0.
        backend: see ``rumfast.kernels.backend``.

    Returns:
        ``Moments``; relative error of the scatter below 1e-6, and of float64's size for float64 points.

    Raises:
        ValueError: shapes or dtypes disagree or a group is out of range. On CUDA, points of such a group are
            left out instead.

    >>> moments(torch.tensor([[0.0], [2.0]])).scatter_G.tolist()
    [2.0]
    """
    check_shapes(embedding_ND, group_N, groups)
    if pick_backend(backend, embedding_ND) == "torch":
        check_groups(group_N, groups)
        return reference_moments(embedding_ND, group_N, groups)
    return Moments(*(_launch if backend == "triton" else _moments)(embedding_ND, group_N, groups))


def merge(*parts: Moments) -> Moments:
    """Moments of the union of disjoint sets of points, from theirs.

    scatter = Σ_k scatter_k + Σ_k n_k ‖mean_k − mean‖², two at a time (Chan, Golub & LeVeque 1979).

    Args:
        parts: moments of the same G groups and width D, on any devices.

    Returns:
        ``Moments`` on the first one's device, equal to those of all points at once but for rounding.

    Raises:
        ValueError: none given, or G or D differ.

    >>> merge(moments(torch.tensor([[0.0]])), moments(torch.tensor([[2.0]]))).scatter_G.tolist()
    [2.0]
    """
    shapes = [tuple(part.mean_GD.shape) for part in parts]
    if len(set(shapes)) != 1:
        raise ValueError(f"merge: moments of one number of groups and one width expected, got {shapes}")
    return reduce(_merge_two, parts)


def _merge_two(left: Moments, right: Moments) -> Moments:
    right = Moments(*(tensor.to(left.mean_GD.device) for tensor in right))
    count_G = left.count_G + right.count_G
    share_G = right.count_G / count_G.clamp(min=1).double()
    gap_GD = right.mean_GD - left.mean_GD
    between_G = gap_GD.square().sum(1) * left.count_G * share_G
    return Moments(
        count_G, left.mean_GD + gap_GD * share_G[:, None], left.scatter_G + right.scatter_G + between_G
    )
