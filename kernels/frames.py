"""The GPU's way into a frame (``tiles.Frame``): three Triton kernels, no synchronisation with the host.

    extents     sum, minimum and maximum of each coordinate over some rows of a set
    centre      the mean of both sets, and how far their points reach from it along each coordinate
    operands    every point centred, scaled by the unit, rounded to float16 parts, with its squared norm

Each kernel takes both sets in one launch.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rumfast.kernels.backend import jit, tl
from rumfast.kernels.tiles import LEAST, Frame, Operands

CHUNKS = 256  # that the rows of both sets are cut into, at most: each has 3·D partial values
ROWS, COLUMNS = 32, 128  # a block of points whose extent is taken
MERGED, NARROW = 128, 32  # a block of partial values: narrow, so that many programs share what is one pass
ROUNDED = 16  # rows that a program rounds: few, so that small sets fill a GPU
COUNTS = ["x_count", "y_count", "count", "chunk", "chunks", "x_programs", "reaches"]  # any: one build for all


@jit
def _extent(points_ptr, extent_ptr, first, last, width, row_stride, column_stride,
            EXACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Sum, minimum and maximum over rows ``first`` to ``last`` of one block of columns."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], EXACT)
    least = tl.full([ROWS, COLUMNS], float("inf"), EXACT)
    most = tl.full([ROWS, COLUMNS], float("-inf"), EXACT)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < last)[:, None] & (column < width)[None, :]
        offset = row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
        value = tl.load(points_ptr + offset, inside, other=0.0).to(EXACT)
        total += value
        least = tl.where(inside, tl.minimum(least, value), least)
        most = tl.where(inside, tl.maximum(most, value), most)
    out = extent_ptr + tl.program_id(0).to(tl.int64) * 3 * width + column
    tl.store(out, tl.sum(total, 0), column < width)
    tl.store(out + width, tl.min(least, 0), column < width)
    tl.store(out + 2 * width, tl.max(most, 0), column < width)


@jit(do_not_specialize=COUNTS)
def extents_kernel(
    x_ptr, y_ptr, extent_ptr, x_count, y_count, width, x_row, x_column, y_row, y_column, x_programs, chunk,
    EXACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``extent_ptr`` [programs, 3, width] from ``chunk`` rows each: the first ``x_programs`` take x."""
    program = tl.program_id(0)
    if program < x_programs:
        first = program * chunk
        last = tl.minimum(first + chunk, x_count)
        _extent(x_ptr, extent_ptr, first, last, width, x_row, x_column, EXACT, ROWS, COLUMNS)
    else:
        first = (program - x_programs) * chunk
        last = tl.minimum(first + chunk, y_count)
        _extent(y_ptr, extent_ptr, first, last, width, y_row, y_column, EXACT, ROWS, COLUMNS)


@jit(do_not_specialize=COUNTS)
def centre_kernel(
    extent_ptr, centre_ptr, reach_ptr, chunks, count, width,
    EXACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The centre of one block of columns, and the largest distance from it in any of them."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], EXACT)
    least = tl.full([ROWS, COLUMNS], float("inf"), EXACT)
    most = tl.full([ROWS, COLUMNS], float("-inf"), EXACT)
    for start in range(0, chunks, ROWS):
        chunk = start + tl.arange(0, ROWS)
        inside = (chunk < chunks)[:, None] & (column < width)[None, :]
        extent_ptrs = extent_ptr + chunk.to(tl.int64)[:, None] * 3 * width + column[None, :]
        total += tl.load(extent_ptrs, inside, other=0.0)
        least = tl.minimum(least, tl.load(extent_ptrs + width, inside, other=float("inf")))
        most = tl.maximum(most, tl.load(extent_ptrs + 2 * width, inside, other=float("-inf")))
    centre = tl.sum(total, 0) / count.to(EXACT)
    reach = tl.maximum(centre - tl.min(least, 0), tl.max(most, 0) - centre)
    tl.store(centre_ptr + column, centre, column < width)
    tl.store(reach_ptr + tl.program_id(0), tl.max(tl.where(column < width, reach, 0.0), 0))


@jit
def _power_of_2(exponent):
    """2^exponent in float64, exactly."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@jit
def _unit_exponent(reach_ptr, reaches, LEAST: tl.constexpr, COLUMNS: tl.constexpr):
    """log2 of the frame's unit."""
    block = tl.arange(0, COLUMNS)
    reach = tl.zeros([COLUMNS], tl.float64)
    for start in range(0, reaches, COLUMNS):
        found = tl.load(reach_ptr + start + block, start + block < reaches, other=0.0)
        reach = tl.maximum(reach, found.to(tl.float64))
    bits = tl.max(reach, 0).to(tl.int64, bitcast=True)
    return tl.maximum(((bits >> 52) & 2047) - 1022, LEAST) - 15


@jit
def _operands(points_ptr, centre_ptr, rounded_ptr, norm_ptr, inverse, first, count, rows, width, filled,
              row_stride, column_stride, filler, PARTS: tl.constexpr, EXACT: tl.constexpr,
              ROUNDED: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Round ``ROUNDED`` rows from ``first`` on; points that fill up are 0, with the norm ``filler``."""
    row = first + tl.arange(0, ROUNDED)
    norm = tl.zeros([ROUNDED, COLUMNS], tl.float32)
    for start in range(0, filled, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = (row < count)[:, None] & (column < width)[None, :]
        offset = row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
        value = tl.load(points_ptr + offset, inside, other=0.0).to(EXACT)
        centre = tl.load(centre_ptr + column, column < width, other=0.0)
        value = tl.where(inside, (value - centre[None, :]) * inverse, 0.0).to(tl.float32)
        high = value.to(tl.float16)
        out = rounded_ptr + row.to(tl.int64)[:, None] * filled + column[None, :]
        written = (row < rows)[:, None] & (column < filled)[None, :]
        tl.store(out, high, written)
        if PARTS == 2:
            low = (value - high.to(tl.float32)).to(tl.float16)
            tl.store(out + rows.to(tl.int64) * filled, low, written)
        else:
            value = high.to(tl.float32)
        norm += value * value
    tl.store(norm_ptr + row, tl.where(row < count, tl.sum(norm, 1), filler), row < rows)


@jit(do_not_specialize=COUNTS)
def operands_kernel(
    x_ptr, y_ptr, centre_ptr, reach_ptr, unit_ptr, x_rounded_ptr, y_rounded_ptr, x_norm_ptr, y_norm_ptr,
    x_count, y_count, x_rows, y_rows, width, filled, x_row, x_column, y_row, y_column, x_programs, reaches,
    filler, PARTS: tl.constexpr, EXACT: tl.constexpr, LEAST: tl.constexpr, ROUNDED: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rounded points and norms of both sets: the first ``x_programs`` take x, and one stores the unit."""
    program = tl.program_id(0)
    exponent = _unit_exponent(reach_ptr, reaches, LEAST, COLUMNS)
    inverse = _power_of_2(-exponent).to(EXACT)
    if program == 0:
        tl.store(unit_ptr, _power_of_2(exponent))
    if program < x_programs:
        _operands(x_ptr, centre_ptr, x_rounded_ptr, x_norm_ptr, inverse, program * ROUNDED, x_count, x_rows,
                  width, filled, x_row, x_column, filler, PARTS, EXACT, ROUNDED, COLUMNS)  # fmt: skip
    else:
        first = (program - x_programs) * ROUNDED
        _operands(y_ptr, centre_ptr, y_rounded_ptr, y_norm_ptr, inverse, first, y_count, y_rows,
                  width, filled, y_row, y_column, filler, PARTS, EXACT, ROUNDED, COLUMNS)  # fmt: skip


class Blocks(NamedTuple):
    """Rows of x, rows of y and coordinates that a kernel's blocks take: powers of two from 16 on."""

    x: int
    y: int
    width: int


def launch_frame(x_ND: Tensor, y_MD: Tensor | None) -> tuple[Frame, Tensor]:
    """The frame of both sets, whose unit is not filled in yet, and [blocks] reaches that give it."""
    (x_count, width), y_count = x_ND.shape, 0 if y_MD is None else y_MD.shape[0]
    y_MD = x_ND if y_MD is None else y_MD
    options = dict(EXACT=_exact(x_ND), num_warps=8, enable_fp_fusion=True)
    chunk = max(4 * ROWS, _ceil(x_count + y_count, CHUNKS))
    x_chunks = _ceil(x_count, chunk)
    chunks = x_chunks + _ceil(y_count, chunk)
    dtype = torch.promote_types(x_ND.dtype, torch.float32)
    extent_K3D = x_ND.new_empty(chunks, 3, width, dtype=dtype)
    extents_kernel[(chunks, _ceil(width, COLUMNS))](
        x_ND, y_MD, extent_K3D, x_count, y_count, width, *x_ND.stride(), *y_MD.stride(), x_chunks, chunk,
        ROWS=ROWS, COLUMNS=COLUMNS, **options,
    )  # fmt: skip
    blocks = _ceil(width, NARROW)
    centre_D, reach = x_ND.new_empty(width, dtype=dtype), x_ND.new_empty(blocks, dtype=dtype)
    centre_kernel[(blocks,)](
        extent_K3D, centre_D, reach, chunks, x_count + y_count, width, ROWS=MERGED, COLUMNS=NARROW, **options
    )
    return Frame(centre_D, x_ND.new_empty((), dtype=torch.float64)), reach


def launch_operands(
    x_ND: Tensor, y_MD: Tensor | None, blocks: Blocks, parts: int, filler: float = math.inf
) -> tuple[Frame, Operands, Operands]:
    """Both sets in their common frame, rounded to ``parts`` float16; without y twice the same operands.

    Rows that fill up blocks have the norm ``filler``.
    """
    place, reach = launch_frame(x_ND, y_MD)
    x = _empty(x_ND, max(blocks.x, blocks.y) if y_MD is None else blocks.x, blocks.width, parts)
    y = x if y_MD is None else _empty(y_MD, blocks.y, blocks.width, parts)
    (_, x_rows, filled), y_rows = x.points.shape, y.points.shape[1]
    x_programs = _ceil(x_rows, ROUNDED)
    programs = x_programs if y_MD is None else x_programs + _ceil(y_rows, ROUNDED)
    y_MD = x_ND if y_MD is None else y_MD
    operands_kernel[(programs,)](
        x_ND, y_MD, place.centre_D, reach, place.unit, x.points, y.points, x.norm, y.norm, x_ND.shape[0],
        y_MD.shape[0], x_rows, y_rows, x_ND.shape[1], filled, *x_ND.stride(), *y_MD.stride(), x_programs,
        reach.shape[0], filler, PARTS=parts, EXACT=_exact(x_ND), LEAST=LEAST, ROUNDED=ROUNDED,
        COLUMNS=COLUMNS, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return place, x, y


def _empty(points_ND: Tensor, block: int, block_d: int, parts: int) -> Operands:
    count, width = points_ND.shape
    rows = _ceil(count, block) * block
    points = points_ND.new_empty(parts, rows, _ceil(width, block_d) * block_d, dtype=torch.float16)
    return Operands(points, points_ND.new_empty(rows, dtype=torch.float32))


def _exact(points: Tensor) -> Any:
    return tl.float64 if points.dtype == torch.float64 else tl.float32


def _ceil(count: int, step: int) -> int:
    """Steps that cover ``count``; ``triton.cdiv`` takes some µs.

    >>> [_ceil(count, 8) for count in (0, 1, 8, 9)]
    [0, 1, 1, 2]
    """
    return -(-count // step)
