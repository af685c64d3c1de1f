"""k nearest neighbours in Euclidean distance, without the N × M matrix of distances.

    index_nk = the k-th j in ascending order of (‖x_n − y_j‖, j)

Tiles of ‖y‖² − 2⟨x, y⟩, which orders as the distance does, give each point some more candidates than asked
for; these are then ranked by their differences Σ (x − y)², which do not cancel. A neighbour is missed only
if more points than there are spare candidates lie within the rounding error of the k-th.
"""

import torch
from torch import Tensor

from rumfast.kernels.backend import Backend, Meta, jit, pick_backend, power_of_2, target_of, tl, triton
from rumfast.kernels.frames import Blocks, launch_operands
from rumfast.kernels.tiles import check_sets, cpu_map, cpu_products, frame, operands, squared_distances

SPARE = 6  # candidates beyond k, at least
MOST_ON_GPU = 128  # candidates that a Triton program can hold for each of its points
CPU_ROWS, CPU_COLUMNS = 128, 16384  # a tile of 8 MB: the longer its rows, the less there is to select
BLOCK = 8  # columns of a tile that are reduced to their minimum before anything is selected
PROGRAMS = 512  # enough to fill a GPU
CHUNK = 1 << 18  # coordinates of candidates gathered at a time on a CPU


def reference_nearest(x_ND: Tensor, y_MD: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Distances and indices [N, k] by a full sort."""
    dtype = torch.promote_types(x_ND.dtype, torch.float32)
    x_ND, y_MD = x_ND.to(dtype), None if y_MD is None else y_MD.to(dtype)
    distance_NM = torch.cdist(
        x_ND, x_ND if y_MD is None else y_MD, compute_mode="donot_use_mm_for_euclid_dist"
    )
    if y_MD is None:
        distance_NM.fill_diagonal_(torch.inf)
    order = distance_NM.sort(dim=1, stable=True)
    return order.values[:, :k].clone(), order.indices[:, :k].clone()


@jit
def nearest_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, index_ptr, value_ptr, x_rows, y_rows, width, strip,
    SYMMETRIC: tl.constexpr, SLOTS: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The SLOTS nearest of a strip of Y, unsorted: a tile's minimum replaces the worst while it is better."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * strip
    slot = tl.arange(0, SLOTS)[None, :]
    value = tl.full([BLOCK_N, SLOTS], float("inf"), tl.float32)
    index = tl.full([BLOCK_N, SLOTS], -1, tl.int32)
    for j in range(first, tl.minimum(first + strip, y_rows // BLOCK_M)):
        column = j * BLOCK_M + tl.arange(0, BLOCK_M)
        squared = squared_distances(
            x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, x_rows, y_rows, width, row, column,
            SPLIT, BLOCK_N, BLOCK_M, BLOCK_D,
        )  # fmt: skip
        squared = tl.where(squared < float("inf"), squared, float("inf"))  # NaN would never leave
        if SYMMETRIC:
            squared = tl.where(row[:, None] == column[None, :], float("inf"), squared)
        low, high = tl.min(squared, 1), tl.max(value, 1)
        while tl.max((low < high).to(tl.int32), 0) > 0:
            lowest = tl.min(tl.where(squared == low[:, None], column[None, :], y_rows), 1)[:, None]
            worst = (low < high)[:, None] & (slot == tl.argmax(value, 1)[:, None])
            value = tl.where(worst, low[:, None], value)
            index = tl.where(worst, lowest, index)
            squared = tl.where(column[None, :] == lowest, float("inf"), squared)
            low, high = tl.min(squared, 1), tl.max(value, 1)
    out = (tl.program_id(1).to(tl.int64) * x_rows + row)[:, None] * SLOTS + slot
    tl.store(value_ptr + out, value)
    tl.store(index_ptr + out, index)


def meta(slots: int, amd: bool) -> Meta:
    """Blocks whose tile and slots fit the registers together, beside other programs if the slots are few."""
    size = dict(BLOCK_M=64, num_warps=4) if slots <= 32 else dict(BLOCK_M=128, num_warps=8)
    return dict(BLOCK_N=64, BLOCK_D=32, enable_fp_fusion=True) | size | dict(num_stages=2 if amd else 3)


def launch(x_ND: Tensor, y_MD: Tensor | None, k: int, **override: int) -> tuple[Tensor, Tensor]:
    """Candidates from the Triton kernel, split over Y where X alone would leave the GPU idle; then ranked."""
    slots = power_of_2(k + SPARE)
    chosen = meta(slots, target_of(x_ND).amd) | override
    with torch.cuda.device_of(x_ND):
        blocks = Blocks(chosen["BLOCK_N"], chosen["BLOCK_M"], chosen["BLOCK_D"])
        place, x, y = launch_operands(x_ND, y_MD, blocks, parts=2)
    rows, columns = len(x.norm) // chosen["BLOCK_N"], len(y.norm) // chosen["BLOCK_M"]
    # At least 2: Triton would build for a strip of 1 apart, and that build spills on Blackwell.
    strip = max(2, triton.cdiv(columns, max(1, PROGRAMS // rows)))
    strips = triton.cdiv(columns, strip)
    value = x.norm.new_empty(strips, len(x.norm), slots)
    index = torch.empty_like(value, dtype=torch.int32)
    with torch.cuda.device_of(x_ND):
        nearest_kernel[(rows, strips)](
            x.points, y.points, x.norm, y.norm, index, value, len(x.norm), len(y.norm),
            x.points.shape[2], strip, SYMMETRIC=y_MD is None, SLOTS=slots, SPLIT=True, **chosen,
        )  # fmt: skip
    value_NC, index_NC = (part[:, : len(x_ND)].transpose(0, 1).flatten(1) for part in (value, index))
    y_ND = x_ND if y_MD is None else y_MD
    count = min(slots, len(y_ND) - (y_MD is None))
    index_NC = index_NC.gather(1, value_NC.topk(count, largest=False, sorted=False).indices)
    return _ranked(x_ND, y_ND, index_NC.long(), k, place.centre_D)


@torch.library.custom_op("rumfast::nearest", mutates_args=(), device_types="cpu")
def _nearest(x_ND: Tensor, y_MD: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    place, y_ND = frame(x_ND, y_MD), x_ND if y_MD is None else y_MD
    y = operands(y_ND, place, place.centre_D.dtype, block=BLOCK**2)
    x = y if y_MD is None else operands(x_ND, place, place.centre_D.dtype)
    count = min(k + SPARE, len(y_ND) - (y_MD is None))

    distance_NK, index_NK = _unfilled(x_ND, k)

    def block(start: int) -> None:
        rows, found = slice(start, min(start + CPU_ROWS, len(x_ND))), []
        left = x.points[0, rows] * -2
        for j in range(0, len(y.norm), CPU_COLUMNS):
            columns = slice(j, j + CPU_COLUMNS)
            tile = cpu_products(left, y.points[0, columns], y.norm[columns])
            if y_MD is None:
                tile.diagonal(start - j).fill_(torch.inf)
            value, index = _least(tile, count)
            found.append((value, index + j))
        value, index = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        index = index.gather(1, value.topk(count, largest=False, sorted=False).indices)
        distance_NK[rows], index_NK[rows] = _ranked(x_ND[rows], y_ND, index, k, place.centre_D)

    cpu_map(block, range(0, len(x_ND), CPU_ROWS))
    return distance_NK, index_NK


def _least(tile: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` least of each row and their columns: they lie in the blocks with the least minima."""
    rows, columns = tile.shape
    if columns % BLOCK or columns <= 2 * BLOCK * count:
        return tile.topk(min(count, columns), largest=False, sorted=False)
    # A block is a column of the view, so that the minimum runs along whole vectors.
    _, block = _least(tile.view(rows, BLOCK, columns // BLOCK).amin(1), count)
    column = (block[:, None, :] + torch.arange(0, columns, columns // BLOCK)[:, None]).view(rows, -1)
    value, place = tile.gather(1, column).topk(count, largest=False, sorted=False)
    return value, column.gather(1, place)


def _ranked(
    x_ND: Tensor, y_MD: Tensor, candidate_NC: Tensor, k: int, centre_D: Tensor
) -> tuple[Tensor, Tensor]:
    """The k nearest candidates by direct differences, ties by index; NaN if a coordinate is not finite."""
    # Where nothing is finite, neither need the candidates be points.
    candidate_NC = candidate_NC.clamp(0, len(y_MD) - 1).sort(1).values
    count, width = candidate_NC.shape[1], x_ND.shape[1]
    distance_NC = centre_D.new_empty(candidate_NC.shape)
    step = max(1, (CHUNK if centre_D.is_cpu else 64 * CHUNK) // (count * width))
    for start in range(0, len(x_ND), step):
        ids = slice(start, start + step)
        y_RCD = y_MD.index_select(0, candidate_NC[ids].flatten()).view(-1, count, width).to(centre_D.dtype)
        x_R1D = x_ND[ids, None].to(centre_D.dtype)
        distance_NC[ids] = torch.cdist(x_R1D, y_RCD, compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
    distance_NC += 0 * centre_D.sum()
    distance_NC, order = distance_NC.sort(dim=1, stable=True)
    return distance_NC[:, :k].clone(), candidate_NC.gather(1, order[:, :k])


@_nearest.register_kernel("cuda")
def _(x_ND: Tensor, y_MD: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    return launch(x_ND, y_MD, k)


@_nearest.register_fake
def _(x_ND: Tensor, y_MD: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    return _unfilled(x_ND, k)


def _unfilled(x_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape, dtype = (len(x_ND), k), torch.promote_types(x_ND.dtype, torch.float32)
    return x_ND.new_empty(shape, dtype=dtype), x_ND.new_empty(shape, dtype=torch.int64)


def nearest(
    x_ND: Tensor, y_MD: Tensor | None = None, k: int = 1, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """The k points of y nearest to each point of x, in memory O(N + M).

    index_nk = the k-th j in ascending order of (‖x_n − y_j‖, j); without y among the other points of x.

    Args:
        x_ND, y_MD: points, finite.
        k: at least 1, at most M (N − 1 without y), and at most 122 where Triton computes.
        backend: see ``rumfast.kernels.backend``.

    Returns:
        Distances [N, k] ascending, float32 (float64 for float64), and indices [N, k] int64. Ties go to the
        lowest index, unless more than 6 points beyond the k-th tie with it. Not differentiable; all distances
        are NaN where any coordinate is not finite.

    Raises:
        ValueError: a set is empty, the two disagree, k is out of range, or the backend can not run.

    >>> [part.flatten().tolist() for part in nearest(torch.tensor([[0.0], [1.0], [5.0]]))]
    [[1.0, 1.0, 4.0], [1, 0, 1]]
    """
    check_sets("nearest", x_ND, y_MD)
    triton_runs = pick_backend(backend, x_ND) == "triton" or (backend == "auto" and x_ND.is_cuda)
    most = len(x_ND) - 1 if y_MD is None else len(y_MD)
    if not 1 <= k <= (min(most, MOST_ON_GPU - SPARE) if triton_runs else most):
        raise ValueError(
            f"k: got {k}, expected 1..{most}" + f" and at most {MOST_ON_GPU - SPARE} on a GPU" * triton_runs
        )
    if backend == "torch":
        return reference_nearest(x_ND, y_MD, k)
    return (launch if backend == "triton" else _nearest)(x_ND, y_MD, k)
