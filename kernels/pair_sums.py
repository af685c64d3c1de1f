"""The Triton kernels of ``pairwise``: sums over all pairs of points that ``frames`` has prepared.

A program goes through tiles ‖x‖² + ‖y‖² − 2⟨x, y⟩ in one loop over the coordinates of all its tiles, so that
a tile's points are loaded while the square roots or exponentials of the one before are computed.
"""

from rumfast.kernels.backend import jit, tl


@jit
def _tile(index, x_rows, y_rows, SYMMETRIC: tl.constexpr, GROUP: tl.constexpr,
          BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):  # fmt: skip
    """Row and column of a tile. GROUP rows of tiles walk side by side, so that their points stay in L2.

    SYMMETRIC: squares of the larger block's size are counted, on and above the diagonal. Row i of squares has
    ``squares`` − i of them, and is followed by the row that completes it to ``length``.
    """
    WIDTH: tl.constexpr = BLOCK_N if BLOCK_N > BLOCK_M else BLOCK_M
    DOWN: tl.constexpr = WIDTH // BLOCK_N if SYMMETRIC else 1
    ACROSS: tl.constexpr = WIDTH // BLOCK_M if SYMMETRIC else 1
    part = index % (DOWN * ACROSS)
    index = index // (DOWN * ACROSS)
    squares = x_rows // WIDTH
    even = 1 - squares % 2
    height = (squares + 1) // 2 if SYMMETRIC else x_rows // BLOCK_N
    length = squares + even if SYMMETRIC else y_rows // BLOCK_M
    group = index // (GROUP * length)
    members = tl.minimum(height - group * GROUP, GROUP)
    i = group * GROUP + index % (GROUP * length) % members
    j = index % (GROUP * length) // members
    if SYMMETRIC:
        beyond = i + j - squares
        j = tl.where(beyond < 0, i + j, squares - even - i + beyond)
        i = tl.where(beyond < 0, i, squares - even - i)
    return i * DOWN + part // ACROSS, j * ACROSS + part % ACROSS


@jit
def _factor(gamma, exponent, unit):
    """−γ·log2(e)·unit² of a γ that is given as mantissa and exponent, since float32 does not hold all.

    Neither −∞ nor 0 in float32, so that 0 times it is 0 and ∞ times it is −∞.
    """
    scale = ((tl.cast(exponent, tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    factor = tl.cast(gamma, tl.float64) * scale * unit * unit * -1.4426950408889634
    return tl.minimum(tl.maximum(factor, -1e38), -1e-30).to(tl.float32)


@jit(do_not_specialize=["tiles"])
def pair_sums_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, unit_ptr, sums_ptr, gammas, tiles, x_rows, y_rows, width,
    SYMMETRIC: tl.constexpr, DISTANCE: tl.constexpr, BANDS: tl.constexpr, SQUARINGS: tl.constexpr,
    SPLIT: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sum over every ``programs``-th tile; of pairs above the diagonal where SYMMETRIC.

    Rows that fill up have norms of −∞ where distances alone are summed, and of ∞ elsewhere: their distances,
    or their kernels, are 0, and no tile needs a mask but those on the diagonal.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    n, m, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    x_offset = n[:, None] * width + d[None, :]
    y_offset = m[None, :] * width + d[:, None]
    x_low, y_low = x_rows.to(tl.int64) * width, y_rows.to(tl.int64) * width
    factors: tl.tuple = ()
    for band in tl.static_range(BANDS):
        factors += (_factor(gammas[2 * band], gammas[2 * band + 1], tl.load(unit_ptr)),)
    sums = (tl.zeros([BLOCK_N], tl.float64),) * (DISTANCE + BANDS)
    product = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    steps = width // BLOCK_D
    step, i, j = steps - 1, program, program  # set at a tile's first step
    tile = program - programs
    for _ in range((tiles - program + programs - 1) // programs * steps):
        step = tl.where(step == steps - 1, 0, step + 1)
        if step == 0:
            tile += programs
            i, j = _tile(tile, x_rows, y_rows, SYMMETRIC, GROUP, BLOCK_N, BLOCK_M)
        x_ptrs = x_ptr + i.to(tl.int64) * BLOCK_N * width + step * BLOCK_D + x_offset
        y_ptrs = y_ptr + j.to(tl.int64) * BLOCK_M * width + step * BLOCK_D + y_offset
        x, y = tl.load(x_ptrs), tl.load(y_ptrs)
        if SPLIT:
            product = tl.dot(tl.load(x_ptrs + x_low), y, product, input_precision="ieee")
            product = tl.dot(x, tl.load(y_ptrs + y_low), product, input_precision="ieee")
        product = tl.dot(x, y, product, input_precision="ieee")
        if step == steps - 1:
            row, column = i * BLOCK_N + n, j * BLOCK_M + m
            y_norm = tl.load(y_norm_ptr + column)[None, :]
            squared = tl.load(x_norm_ptr + row)[:, None] + (y_norm - 2 * product)
            if SYMMETRIC:
                if j * BLOCK_M < (i + 1) * BLOCK_N:
                    FILLER: tl.constexpr = float("inf") if BANDS else float("-inf")
                    squared = tl.where(row[:, None] < column[None, :], squared, FILLER)
            squared = tl.maximum(squared, 0.0, propagate_nan=tl.PropagateNan.ALL)
            sums = _added(sums, squared, factors, DISTANCE, BANDS, SQUARINGS)
            # Here, not by a select at step 0: Hopper's products would then wait for each other.
            product = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for output in tl.static_range(DISTANCE + BANDS):
        tl.store(sums_ptr + output * programs + program, tl.sum(sums[output], 0))


@jit
def _added(sums, squared, factors, DISTANCE: tl.constexpr, BANDS: tl.constexpr, SQUARINGS: tl.constexpr):
    """``sums`` with a tile's rows added."""
    found: tl.tuple = ()
    if DISTANCE:
        distance = tl.sqrt(squared)
        if BANDS:
            distance = tl.where(squared == float("inf"), 0.0, distance)
        found += (sums[0] + tl.sum(distance, 1).to(tl.float64),)
    kernel = squared
    for band in tl.static_range(BANDS):
        if SQUARINGS[band] == 0:
            kernel = tl.exp2(squared * factors[band])
        else:
            kernel = kernel * kernel
            if SQUARINGS[band] == 2:
                kernel = kernel * kernel
        found += (sums[DISTANCE + band] + tl.sum(kernel, 1).to(tl.float64),)
    return found


@jit(do_not_specialize=["programs", "points"])
def pair_total_kernel(
    sums_ptr, unit_ptr, total_ptr, programs, points,
    SYMMETRIC: tl.constexpr, DISTANCE: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add one output's partial sums in a fixed order; with the pairs below the diagonal, and on it."""
    output = tl.program_id(0)
    slot = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, programs, BLOCK):
        total += tl.load(sums_ptr + output * programs + start + slot, start + slot < programs, other=0.0)
    found = tl.sum(total, 0)
    if SYMMETRIC:
        found = 2 * found + tl.where(output < DISTANCE, 0.0, points.to(tl.float64))
    found *= tl.where(output < DISTANCE, tl.load(unit_ptr), 1.0)
    place = output
    for sorted_place in tl.static_range(len(PLACES)):
        place = tl.where(output == sorted_place, PLACES[sorted_place], place)
    tl.store(total_ptr + place, found)
