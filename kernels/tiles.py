"""What reductions over pairs of points share: centred, rounded operands, and one tile of squared distances.

    ‖x − y‖² = ‖x‖² + ‖y‖² − 2⟨x, y⟩

Both sets are moved by one common centre first, which takes 10 to 1000 times off the rounding error of data
far from the origin. Norms come from the same rounded points as the products; what rounding makes negative
becomes 0.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rumfast.kernels.backend import jit, tl

Item = TypeVar("Item")
Result = TypeVar("Result")
LEAST = -110  # exponent of the largest coordinate from which on the unit's inverse would leave float32
CHUNK = 1 << 18  # coordinates rounded at a time


@jit
def squared_distances(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, x_rows, y_rows, width, row, column,
    SPLIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """‖x‖² + ‖y‖² − 2⟨x, y⟩ of the points ``row`` and ``column`` of two ``Operands``, in their unit."""
    d = tl.arange(0, BLOCK_D)
    x_ptrs = x_ptr + row.to(tl.int64)[:, None] * width + d[None, :]
    y_ptrs = y_ptr + column.to(tl.int64)[None, :] * width + d[:, None]
    x_low, y_low = x_rows.to(tl.int64) * width, y_rows.to(tl.int64) * width
    product = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, width, BLOCK_D):
        x, y = tl.load(x_ptrs + start), tl.load(y_ptrs + start)
        if SPLIT:
            product = tl.dot(tl.load(x_ptrs + x_low + start), y, product, input_precision="ieee")
            product = tl.dot(x, tl.load(y_ptrs + y_low + start), product, input_precision="ieee")
        product = tl.dot(x, y, product, input_precision="ieee")
    norms = tl.load(x_norm_ptr + row)[:, None] + tl.load(y_norm_ptr + column)[None, :]
    squared = norms - 2 * product
    return tl.where(squared < 0, 0.0, squared)  # keeps NaN, which a maximum would drop


class Frame(NamedTuple):
    """Origin and unit of length that two point sets are brought to.

    The unit is the power of two that puts their largest coordinate into [2^14, 2^15): there float16 has 2^29
    of range at full precision, and no square leaves float32.
    """

    centre_D: Tensor
    unit: Tensor  # [] float64


def frame(x_ND: Tensor, y_MD: Tensor | None) -> Frame:
    """The mean of both sets, in float32 or better, and the unit that fits them; on a GPU, ``frames``."""
    dtype = torch.promote_types(x_ND.dtype, torch.float32)
    sets = [x_ND] if y_MD is None else [x_ND, y_MD]

    def extent(chunk: Tensor, start: int) -> Tensor:
        return torch.stack([chunk.sum(0, dtype=dtype), chunk.amin(0).to(dtype), chunk.amax(0).to(dtype)])

    extent_K3D = torch.stack([part for points in sets for part in chunk_map(extent, points)])
    centre_D = extent_K3D[:, 0].sum(0) / sum(map(len, sets))
    exponent = torch.frexp((extent_K3D[:, 1:] - centre_D).abs().amax()).exponent.clamp(min=LEAST) - 15
    return Frame(centre_D, torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent))


class Operands(NamedTuple):
    """A point set in its frame, rounded; rows and width are filled up to whole blocks.

    points: [1, rows, width], or [2, rows, width] with what the rounding to the first lost. The two float16 of
        the GPU's accurate mode hold 22 bits, and their three products cost half of what tf32x3 would.
    norm: [rows] squared, in float32 or better; infinite in rows that fill up.
    """

    points: Tensor
    norm: Tensor


def operands(
    points_ND: Tensor, frame: Frame, kind: torch.dtype, parts: int = 1, block: int = 1, block_d: int = 1
) -> Operands:
    """Bring points to the frame and round them to ``parts`` of ``kind``."""
    (count, width), dtype = points_ND.shape, frame.centre_D.dtype
    exact_dtype = torch.promote_types(kind, torch.float32)
    points = points_ND.new_zeros(parts, _filled(count, block), _filled(width, block_d), dtype=kind)
    norm = points_ND.new_full(points.shape[1:2], torch.inf, dtype=exact_dtype)
    inverse = (1 / frame.unit).to(dtype)

    def fill(chunk: Tensor, start: int) -> None:
        ids = slice(start, start + len(chunk))
        exact = (chunk.to(dtype) - frame.centre_D).mul_(inverse).to(exact_dtype)
        points[0, ids, :width] = exact
        if parts == 2:
            points[1, ids, :width] = exact - points[0, ids, :width]
        else:
            exact = points[0, ids, :width].to(exact_dtype)
        norm[ids] = torch.linalg.vector_norm(exact, dim=1).square_()

    chunk_map(fill, points_ND)
    return Operands(points, norm)


def _filled(count: int, block: int) -> int:
    return math.ceil(count / block) * block


def cpu_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``[function(item) for item in items]``, on as many threads as torch computes with, one to an item.

    Threads that share each operation wait for each other after it: where something else runs on the CPU too,
    several times as long as a tile takes.
    """
    threads = min(torch.get_num_threads(), len(items))
    if threads <= 1:
        return [function(item) for item in items]
    ready = Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread's first use would take over the number that is restored below
        ready.wait()

    count = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=start) as pool:
        try:
            results = [pool.submit(function, item) for item in items]
            ready.wait()
        finally:
            torch.set_num_threads(count)
        return [result.result() for result in results]


def chunk_map(function: Callable[[Tensor, int], Result], points_ND: Tensor) -> list[Result]:
    """``function`` of some rows at a time and their first's index, by threads."""
    step = max(1, CHUNK // points_ND.shape[1])

    def of_rows(start: int) -> Result:
        return function(points_ND[start : start + step], start)

    return cpu_map(of_rows, range(0, len(points_ND), step))


def cpu_products(left_ND: Tensor, right_MD: Tensor, norm_M: Tensor) -> Tensor:
    """norm_m + ⟨left_n, right_m⟩ as [N, M], newly allocated; float32 for bfloat16 points."""
    if left_ND.dtype == torch.bfloat16:
        return torch.add(norm_M, torch.mm(left_ND, right_MD.T))
    if left_ND.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # oneDNN's float32 product: twice as fast as the BLAS behind mm where that BLAS knows the CPU badly.
        return torch.ops.mkldnn._linear_pointwise(left_ND, right_MD, norm_M, "none", [], "")
    return torch.addmm(norm_M, left_ND, right_MD.T)


@lru_cache(maxsize=1)
def cpu_multiplies_bfloat16() -> bool:
    """Whether in hardware: float32 is faster elsewhere."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def check_sets(name: str, x_ND: Tensor, y_MD: Tensor | None) -> None:
    """Raise ValueError unless both are non-empty [rows, D], floating point, and alike but for the rows."""
    sets = [x_ND] if y_MD is None else [x_ND, y_MD]
    kinds = {(points.shape[1:], points.dtype, points.device) for points in sets}
    if any(points.ndim != 2 or not points.numel() for points in sets) or len(kinds) > 1:
        found = " and ".join(f"{points.dtype} {tuple(points.shape)} on {points.device}" for points in sets)
        raise ValueError(f"{name}: non-empty [N, D] and [M, D] of one dtype and device expected, got {found}")
    if not x_ND.is_floating_point():
        raise ValueError(f"{name}: floating point expected, got {x_ND.dtype}")
