"""Reductions of Euclidean distances between two point sets, without their N × M matrix.

    mean distance          1/(N·M) Σ_ij ‖x_i − y_j‖
    mean squared distance  1/(N·M) Σ_ij ‖x_i − y_j‖² = ‖μ_x − μ_y‖² + scatter_x/N + scatter_y/M
    RBF mean               1/(N·M) Σ_ij exp(−‖x_i − y_j‖² / (2σ²)),  one for each bandwidth σ

The first and the last go tile by tile through ‖x‖² + ‖y‖² − 2⟨x, y⟩. Both sets are moved by one common centre
beforehand, which takes 10 to 1000 times off the rounding error of data far from the origin; norms come from
the same rounded points as the products, and what rounding makes negative is set to 0.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from rumfast.kernels.backend import Backend, Meta, jit, pick_backend, power_of_2, target_of, tl, triton
from rumfast.kernels.moments import moments
from rumfast.kernels.tiles import (
    Frame,
    check_sets,
    cpu_map,
    cpu_multiplies_bfloat16,
    cpu_products,
    frame,
    operands,
    squared_distances,
)

Precision = Literal["accurate", "fast"]
CPU_TILE = 512  # rows and columns: 1 MB, which stays in the cache
FINITE = -1e38  # least exponent per squared distance: float32 holds it, so that times 0 it is 0
MAX_PROGRAMS = 1 << 13  # beyond it a program takes several tiles of a row, so that partial sums stay O(N)


def reference_pair_sums(x_ND: Tensor, y_MD: Tensor | None, gammas: Sequence[float], distance: bool) -> Tensor:
    """Σ_ij ‖x_i − y_j‖ where ``distance``, then Σ_ij exp(−γ‖x_i − y_j‖²) for each γ, in float64."""
    x_ND, y_MD = x_ND.double(), (x_ND if y_MD is None else y_MD).double()
    d_NM = torch.cdist(x_ND, y_MD, compute_mode="donot_use_mm_for_euclid_dist")
    sums = [d_NM.sum()] if distance else []
    return torch.stack(sums + [torch.exp(-gamma * d_NM.square()).sum() for gamma in gammas])


@jit
def pair_sums_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, gamma_ptr, sums_ptr, count_x, count_y, x_rows, y_rows, width,
    strip, strips,
    SYMMETRIC: tl.constexpr, DISTANCE: tl.constexpr, BANDS: tl.constexpr, SQUARINGS: tl.constexpr,
    SPLIT: tl.constexpr, OUTPUTS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sum over ``strip`` tiles of one row of tiles; of pairs above the diagonal where SYMMETRIC.

    GROUP rows of tiles walk side by side, so that their points stay in L2.
    """
    program = tl.program_id(0)
    group = program // (GROUP * strips)
    members = tl.minimum(x_rows // BLOCK_N - group * GROUP, GROUP)
    i = group * GROUP + program % (GROUP * strips) % members
    first = program % (GROUP * strips) // members * strip
    last = tl.minimum(first + strip, y_rows // BLOCK_M)
    if SYMMETRIC:
        first = tl.maximum(first, i * (BLOCK_N // BLOCK_M))
    row = i * BLOCK_N + tl.arange(0, BLOCK_N)
    output = tl.arange(0, OUTPUTS)
    sums = tl.zeros([OUTPUTS], tl.float64)
    for j in range(first, last):
        column = j * BLOCK_M + tl.arange(0, BLOCK_M)
        squared = squared_distances(
            x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, x_rows, y_rows, width, row, column,
            SPLIT, BLOCK_N, BLOCK_M, BLOCK_D,
        )  # fmt: skip
        if SYMMETRIC:
            valid = (row[:, None] < column[None, :]) & (column < count_y)[None, :]
        else:
            valid = (row < count_x)[:, None] & (column < count_y)[None, :]
        if DISTANCE:
            total = tl.sum(tl.where(valid, tl.sqrt(squared), 0.0))
            sums += tl.where(output == 0, total.to(tl.float64), 0.0)
        kernel = squared
        for band in tl.static_range(BANDS):
            if (SQUARINGS >> (2 * band)) & 3 == 0:
                kernel = tl.exp2(squared * tl.load(gamma_ptr + band))
            else:
                kernel = kernel * kernel
                if (SQUARINGS >> (2 * band)) & 3 == 2:
                    kernel = kernel * kernel
            total = tl.sum(tl.where(valid, kernel, 0.0))
            sums += tl.where(output == DISTANCE + band, total.to(tl.float64), 0.0)
    tl.store(sums_ptr + program.to(tl.int64) * OUTPUTS + output, sums)


def meta(fast: bool, wide: bool, amd: bool) -> Meta:
    """Two programs or more to a multiprocessor, so that one's square roots hide behind the other's products.

    ``wide``: Hopper's products leave registers free for tiles of twice the size if only distances are summed.
    """
    size = dict(BLOCK_N=128, BLOCK_M=128, maxnreg=128) if wide else dict(BLOCK_N=128, BLOCK_M=64)
    return size | dict(
        BLOCK_D=64 if fast else 32, num_warps=8, num_stages=2 if amd else 3, enable_fp_fusion=True
    )


def squarings(gammas: Sequence[float]) -> list[int]:
    """How many squarings lead from the kernel of the γ before to each one's; 0 where exp2 is needed.

    >>> squarings([0.5, 1.0, 4.0, 5.0])
    [0, 1, 2, 0]
    """
    ratios = [gamma / before if before else 0 for before, gamma in zip(gammas, gammas[1:], strict=False)]
    return [0] + [1 if math.isclose(r, 2) else 2 if math.isclose(r, 4) else 0 for r in ratios]


def launch(
    x_ND: Tensor, y_MD: Tensor | None, gammas: Sequence[float], distance: bool, fast: bool, **override: int
) -> Tensor:
    """Run the Triton kernel: partial sums per program, then their sum in float64 in a fixed order."""
    target = target_of(x_ND)
    chosen = meta(fast, target.capability == 90 and not gammas, target.amd) | override
    place = frame(x_ND, y_MD)
    prepare = partial(operands, frame=place, kind=torch.float16, parts=1 if fast else 2)
    x = prepare(x_ND, block=chosen["BLOCK_N"], block_d=chosen["BLOCK_D"])
    y = x if y_MD is None else prepare(y_MD, block=chosen["BLOCK_M"], block_d=chosen["BLOCK_D"])
    rows, columns = len(x.norm) // chosen["BLOCK_N"], len(y.norm) // chosen["BLOCK_M"]
    strip = triton.cdiv(columns, max(1, MAX_PROGRAMS // rows))
    strips = triton.cdiv(columns, strip)
    outputs = distance + len(gammas)
    sums = x.norm.new_empty(rows * strips, power_of_2(outputs), dtype=torch.float64)
    factor = torch.tensor([-gamma * math.log2(math.e) for gamma in gammas], dtype=torch.float64)
    factor = (factor.to(x_ND.device, non_blocking=True) * place.unit.square()).clamp_(min=FINITE).float()
    code = sum(count << (2 * band) for band, count in enumerate(squarings(gammas)))
    with torch.cuda.device_of(x_ND):
        pair_sums_kernel[(rows * strips,)](
            x.points, y.points, x.norm, y.norm, factor, sums,
            len(x_ND), len(x_ND) if y_MD is None else len(y_MD), len(x.norm), len(y.norm), x.points.shape[2],
            strip, strips,
            SYMMETRIC=y_MD is None, DISTANCE=distance, BANDS=len(gammas), SQUARINGS=code, SPLIT=not fast,
            OUTPUTS=sums.shape[1], GROUP=16, **chosen,
        )  # fmt: skip
    total = sums.sum(0)[:outputs]
    if y_MD is None:
        total = total * 2  # and the diagonal, with distance 0
        total[int(distance) :] += len(x_ND)
    return _unscaled(total, distance, place)


@torch.library.custom_op("rumfast::pair_sums", mutates_args=(), device_types="cpu")
def pair_sums(
    x_ND: Tensor, y_MD: Tensor | None, gammas: Sequence[float], distance: bool, fast: bool
) -> Tensor:
    """``reference_pair_sums`` tile by tile, for ascending γ; y None: all pairs of x."""
    place = frame(x_ND, y_MD)
    kind = torch.bfloat16 if fast and cpu_multiplies_bfloat16() else place.centre_D.dtype
    x = operands(x_ND, place, kind)
    y = x if y_MD is None else operands(y_MD, place, kind)
    factors = [max(-gamma * math.log2(math.e) * float(place.unit) ** 2, FINITE) for gamma in gammas]

    def tile(corner: tuple[int, int]) -> list[float]:
        rows, columns = (slice(start, start + CPU_TILE) for start in corner)
        squared = cpu_products(x.points[0, rows] * -2, y.points[0, columns], y.norm[columns])
        squared.add_(x.norm[rows, None]).clamp_min_(0)
        if y_MD is None and rows == columns:
            squared.fill_diagonal_(0)
        return _tile_sums(squared, factors, distance, 2 if y_MD is None and rows != columns else 1)

    starts = range(0, len(x.norm), CPU_TILE), range(0, len(y.norm), CPU_TILE)
    sums = cpu_map(tile, [(i, j) for i, j in product(*starts) if y_MD is not None or i <= j])
    return _unscaled(torch.tensor(sums, dtype=torch.float64).sum(0), distance, place)


def _tile_sums(squared: Tensor, factors: Sequence[float], distance: bool, weight: int) -> list[float]:
    """Uses ``squared`` up. Numbers: small tensors that outlive a tile would lie in the next one's memory."""
    kernel, sums = squared, []
    for factor, count in zip(factors, squarings(factors), strict=False):
        for _ in range(count):
            kernel.square_()
        if not count:
            kernel = torch.mul(squared, factor).exp2_()
        sums.append(weight * kernel.sum().item())
    return ([weight * squared.sqrt_().sum().item()] if distance else []) + sums


@pair_sums.register_kernel("cuda")
def _(x_ND: Tensor, y_MD: Tensor | None, gammas: Sequence[float], distance: bool, fast: bool) -> Tensor:
    return launch(x_ND, y_MD, gammas, distance, fast)


@pair_sums.register_fake
def _(x_ND: Tensor, y_MD: Tensor | None, gammas: Sequence[float], distance: bool, fast: bool) -> Tensor:
    return x_ND.new_empty(distance + len(gammas), dtype=torch.float64)


def _unscaled(sums: Tensor, distance: bool, place: Frame) -> Tensor:
    """Distances back from the frame's unit."""
    return torch.cat([sums[:distance] * place.unit, sums[distance:]])


def _sums(
    x_ND: Tensor, y_MD: Tensor | None, gammas: Sequence[float], distance: bool, fast: bool, backend: Backend
) -> Tensor:
    if pick_backend(backend, x_ND) == "torch":
        return reference_pair_sums(x_ND, y_MD, gammas, distance)
    return (launch if backend == "triton" else pair_sums)(x_ND, y_MD, gammas, distance, fast)


def mean_distance(
    x_ND: Tensor, y_MD: Tensor | None = None, *, precision: Precision = "accurate", backend: Backend = "auto"
) -> Tensor:
    """Mean Euclidean distance of all ordered pairs, in memory O(N + M).

    1/(N·M) Σ_ij ‖x_i − y_j‖; without y over all N² pairs of x, where a point's distance to itself is 0.

    Args:
        x_ND, y_MD: points, finite.
        precision: ``accurate`` is within 1e-6 of float64, relatively; pairs far closer than the sets are
            wide lose more, as in every product form. ``fast`` rounds the centred points to half precision
            (float16 on a GPU, bfloat16 on a CPU that multiplies it): within 1e-4 for clouds of a hundred
            points and more. float64 points are computed in float64 by a CPU, and in float32 once centred
            by a GPU. The ``torch`` backend is always accurate.
        backend: see ``rumfast.kernels.backend``.

    Returns:
        [] float64, not differentiable; NaN where a coordinate is not finite.

    Raises:
        ValueError: a set is empty, the two disagree, or an option is unknown.

    >>> round(mean_distance(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])).item(), 4)
    3.0
    """
    check_sets("mean_distance", x_ND, y_MD)
    if precision not in ("accurate", "fast"):
        raise ValueError(f"precision: got {precision!r}, expected accurate or fast")
    total = _sums(x_ND, y_MD, [], True, precision == "fast", backend)[0]
    return total / len(x_ND) / len(x_ND if y_MD is None else y_MD)


def mean_squared_distance(x_ND: Tensor, y_MD: Tensor | None = None, *, backend: Backend = "auto") -> Tensor:
    """Mean squared Euclidean distance of all ordered pairs, in one pass over the points.

    1/(N·M) Σ_ij ‖x_i − y_j‖² = ‖μ_x − μ_y‖² + scatter_x/N + scatter_y/M; without y, 2·scatter_x/N.

    Args:
        x_ND, y_MD: points, finite.
        backend: see ``rumfast.kernels.backend``.

    Returns:
        [] float64, not differentiable.

    Raises:
        ValueError: a set is empty, the two disagree, or the backend is unknown.

    >>> mean_squared_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]])).item()
    6.5
    """
    check_sets("mean_squared_distance", x_ND, y_MD)
    x = moments(x_ND, backend=backend)
    y = x if y_MD is None else moments(y_MD, backend=backend)
    within = x.scatter_G[0] / len(x_ND) + y.scatter_G[0] / len(x_ND if y_MD is None else y_MD)
    return within + (x.mean_GD - y.mean_GD).square().sum()


def rbf_mean(
    x_ND: Tensor, y_MD: Tensor | None = None, *, bandwidths: Sequence[float], backend: Backend = "auto"
) -> Tensor:
    """Mean of Gaussian kernels over all ordered pairs, several bandwidths in one pass, in memory O(N + M).

    1/(N·M) Σ_ij exp(−‖x_i − y_j‖² / (2σ²)); without y over all N² pairs of x, a point with itself counts 1.

    Args:
        x_ND, y_MD: points, finite.
        bandwidths: B positive σ, in the points' unit. Where σ² doubles from one to the next, the wider kernel
            is squared, which is faster than another exponential.
        backend: see ``rumfast.kernels.backend``.

    Returns:
        [B] float64 in [0, 1], not differentiable; NaN where a coordinate is not finite.

    Raises:
        ValueError: a set is empty, the two disagree, a bandwidth is not positive, or the backend is unknown.

    >>> round(rbf_mean(torch.tensor([[0.0], [2.0]]), bandwidths=[2**0.5]).item(), 4)  # (1 + exp(-1)) / 2
    0.6839
    """
    check_sets("rbf_mean", x_ND, y_MD)
    if not bandwidths or not all(0 < width < math.inf for width in bandwidths):
        raise ValueError(f"bandwidths: got {list(bandwidths)}, expected one or more positive numbers")
    order = sorted(range(len(bandwidths)), key=lambda band: -bandwidths[band])
    total = _sums(x_ND, y_MD, [0.5 / bandwidths[band] ** 2 for band in order], False, False, backend)
    place = torch.tensor(order, device=total.device).argsort()
    return total[place] / len(x_ND) / len(x_ND if y_MD is None else y_MD)
