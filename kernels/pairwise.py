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
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from rumfast.kernels.backend import Backend, Meta, pick_backend, target_of
from rumfast.kernels.frames import Blocks, launch_operands
from rumfast.kernels.moments import moments
from rumfast.kernels.pair_sums import pair_sums_kernel, pair_total_kernel
from rumfast.kernels.tiles import (
    Frame,
    check_sets,
    cpu_map,
    cpu_multiplies_bfloat16,
    cpu_products,
    frame,
    operands,
)

Precision = Literal["accurate", "fast"]
CPU_TILE = 512  # rows and columns: 1 MB, which stays in the cache
FINITE = -1e38  # least exponent per squared distance: float32 holds it, so that times 0 it is 0
WIDE = 1 << 15  # pairs in a tile whose products fill half of a multiprocessor's registers
PROGRAMS = 8  # on a multiprocessor, of tiles that are not wide: some of them compute side by side
ASSUMED = 132  # multiprocessors where none can be asked: an H100's
GROUP = 16  # rows of tiles that walk side by side


def reference_pair_sums(x_ND: Tensor, y_MD: Tensor | None, gammas: Sequence[float], distance: bool) -> Tensor:
    """Σ_ij ‖x_i − y_j‖ where ``distance``, then Σ_ij exp(−γ‖x_i − y_j‖²) for each γ, in float64."""
    x_ND, y_MD = x_ND.double(), (x_ND if y_MD is None else y_MD).double()
    d_NM = torch.cdist(x_ND, y_MD, compute_mode="donot_use_mm_for_euclid_dist")
    sums = [d_NM.sum()] if distance else []
    return torch.stack(sums + [torch.exp(-gamma * d_NM.square()).sum() for gamma in gammas])


def meta(fast: bool, wide: bool, amd: bool) -> Meta:
    """Block sizes; ``wide``: Hopper's products leave registers free for larger tiles of distances.

    The fast mode reads more from L2 than a multiprocessor gets: 128×256 tiles read a quarter less than
    128×128. The accurate mode, with three products of what it reads, waits for its products: two programs to
    a multiprocessor, so that one's square roots hide behind the other's products.
    """
    size = dict(BLOCK_N=128, BLOCK_M=64, num_stages=2 if amd else 3)
    if wide:
        size = dict(BLOCK_N=128, BLOCK_M=256, num_stages=4) if fast else size | dict(BLOCK_M=128, maxnreg=128)
    return size | dict(BLOCK_D=64 if fast else 32, num_warps=8, enable_fp_fusion=True)


def squarings(gammas: Sequence[float]) -> list[int]:
    """How many squarings lead from the kernel of the γ before to each one's; 0 where exp2 is needed.

    >>> squarings([0.5, 1.0, 4.0, 5.0])
    [0, 1, 2, 0]
    """
    ratios = [gamma / before if before else 0 for before, gamma in zip(gammas, gammas[1:], strict=False)]
    return [0] + [1 if math.isclose(r, 2) else 2 if math.isclose(r, 4) else 0 for r in ratios]


def _tiles(rows: int, columns: int, symmetric: bool, block_n: int, block_m: int) -> int:
    """How many tiles cover the pairs, or those on and above the diagonal by squares."""
    if not symmetric:
        return rows // block_n * (columns // block_m)
    square = max(block_n, block_m)
    return rows // square * (rows // square + 1) // 2 * (square // block_n) * (square // block_m)


def _programs(points: Tensor, wide: bool) -> int:
    """As many as compute at once, or several rounds of them where that is not known."""
    asked = points.is_cuda and torch.cuda.get_device_properties(points.device).multi_processor_count
    return (asked or ASSUMED) * (1 if wide else PROGRAMS)


def launch(
    x_ND: Tensor, y_MD: Tensor | None, gammas: Sequence[float], distance: bool, fast: bool, **override: int
) -> Tensor:
    """Run the Triton kernels: partial sums per program, then their sum in float64 in a fixed order."""
    target = target_of(x_ND)
    chosen = meta(fast, target.capability == 90 and not gammas, target.amd) | override
    block_n, block_m, symmetric = chosen["BLOCK_N"], chosen["BLOCK_M"], y_MD is None
    order = sorted(range(len(gammas)), key=gammas.__getitem__)
    ascending = [gammas[band] for band in order]
    split = tuple(float(part) for gamma in ascending for part in math.frexp(gamma))
    with torch.cuda.device_of(x_ND):
        blocks = Blocks(block_n, block_m, chosen["BLOCK_D"])
        place, x, y = launch_operands(x_ND, y_MD, blocks, 1 if fast else 2, math.inf if gammas else -math.inf)
        x_rows, y_rows = x.points.shape[1], y.points.shape[1]
        tiles = _tiles(x_rows, y_rows, symmetric, block_n, block_m)
        programs = min(tiles, _programs(x_ND, block_n * block_m >= WIDE))
        outputs = distance + len(gammas)
        sums = place.unit.new_empty(outputs, programs)
        pair_sums_kernel[(programs,)](
            x.points, y.points, x.norm, y.norm, place.unit, sums, split or (0.0, 0.0), tiles,
            x_rows, y_rows, x.points.shape[2], SYMMETRIC=symmetric, DISTANCE=distance,
            BANDS=len(gammas), SQUARINGS=tuple(squarings(ascending)), SPLIT=not fast, GROUP=GROUP, **chosen,
        )  # fmt: skip
        total = place.unit.new_empty(outputs)
        pair_total_kernel[(outputs,)](
            sums, place.unit, total, programs, x_ND.shape[0], SYMMETRIC=symmetric, DISTANCE=distance,
            PLACES=(*range(distance), *(distance + band for band in order)), BLOCK=256, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
    return total


@torch.library.custom_op("rumfast::pair_sums", mutates_args=(), device_types="cpu")
def pair_sums(
    x_ND: Tensor, y_MD: Tensor | None, gammas: Sequence[float], distance: bool, fast: bool
) -> Tensor:
    """``reference_pair_sums`` tile by tile; y None: all pairs of x."""
    order = sorted(range(len(gammas)), key=gammas.__getitem__)
    place = frame(x_ND, y_MD)
    kind = torch.bfloat16 if fast and cpu_multiplies_bfloat16() else place.centre_D.dtype
    x = operands(x_ND, place, kind)
    y = x if y_MD is None else operands(y_MD, place, kind)
    unit = float(place.unit)
    factors = [max(-gammas[band] * math.log2(math.e) * unit**2, FINITE) for band in order]

    def tile(corner: tuple[int, int]) -> list[float]:
        rows, columns = (slice(start, start + CPU_TILE) for start in corner)
        squared = cpu_products(x.points[0, rows] * -2, y.points[0, columns], y.norm[columns])
        squared.add_(x.norm[rows, None]).clamp_min_(0)
        if y_MD is None and rows == columns:
            squared.fill_diagonal_(0)
        return _tile_sums(squared, factors, distance, 2 if y_MD is None and rows != columns else 1)

    starts = range(0, len(x.norm), CPU_TILE), range(0, len(y.norm), CPU_TILE)
    sums = cpu_map(tile, [(i, j) for i, j in product(*starts) if y_MD is not None or i <= j])
    total = _unscaled(torch.tensor(sums, dtype=torch.float64).sum(0), distance, place)
    total[int(distance) + torch.tensor(order, dtype=torch.int64)] = total[int(distance) :].clone()
    return total


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


def _means(
    x_ND: Tensor, y_MD: Tensor | None, gammas: Sequence[float], distance: bool, fast: bool, backend: Backend
) -> Tensor:
    """The sums over all pairs, divided by N·M."""
    if pick_backend(backend, x_ND) == "torch":
        sums = reference_pair_sums(x_ND, y_MD, gammas, distance)
    else:
        sums = (launch if backend == "triton" else pair_sums)(x_ND, y_MD, gammas, distance, fast)
    rows, columns = len(x_ND), len(x_ND if y_MD is None else y_MD)
    if sums.is_cuda:
        return sums / (rows * columns)  # one launch; a CPU keeps the rounding of its recorded results
    return sums / rows / columns


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
    return _means(x_ND, y_MD, [], True, precision == "fast", backend)[0]


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
    return _means(x_ND, y_MD, [0.5 / width**2 for width in bandwidths], False, False, backend)
