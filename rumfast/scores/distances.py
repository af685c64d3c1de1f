"""How a forget set lies among the retain set in embedding space: kernel distance and neighbourhoods."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pdist

from rumfast.errors import DataError, UsageError
from rumfast.kernels.neighbours import nearest
from rumfast.kernels.pairwise import rbf_mean

SUBSAMPLE = 1000  # points whose distances the median is taken of
VARIANCES = (0.25, 0.5, 1.0, 2.0, 4.0)  # default σ², in squared medians


def mmd2(
    retain_RD: Tensor, forget_FD: Tensor, bandwidths: Sequence[float] | None = None, unbiased: bool = True
) -> float:
    """Squared maximum mean discrepancy of the two sets, for the mean of Gaussian kernels over bandwidths.

    MMD² = E k(r, r') + E k(f, f') − 2 E k(r, f),  k(a, b) = mean_σ exp(−‖a − b‖² / (2σ²))
    (Gretton et al., A kernel two-sample test, JMLR 13, 2012, lemma 6). 0 where the sets come from one
    distribution; lower is more entangled.

    Args:
        retain_RD, forget_FD: embeddings [R, D] and [F, D].
        bandwidths: σ, in the embeddings' unit. By default σ² is ¼, ½, 1, 2 and 4 times the squared median
            of the distances between up to 1000 points, evenly spaced over both sets (section 8's heuristic;
            pairs of equal points do not count).
        unbiased: leave out the pairs of a point with itself, so that 0 is expected under equal distributions
            and values may be negative; otherwise include them.

    Returns:
        The discrepancy, at most 2; not below 0, but for rounding, where not ``unbiased``.

    Raises:
        DataError: a set is empty, or has one point only where ``unbiased``, or widths differ.
        UsageError: a bandwidth is not positive.

    >>> round(mmd2(torch.tensor([[0.0]]), torch.tensor([[2.0]]), [2**0.5], unbiased=False), 4)  # 2 − 2/e
    1.2642
    """
    _check("mmd2", retain_RD, forget_FD, 2 if unbiased else 1)
    if bandwidths is None:
        bandwidths = _bandwidths(retain_RD, forget_FD)
    elif not bandwidths or not all(0 < width < float("inf") for width in bandwidths):
        raise UsageError(f"bandwidths: got {list(bandwidths)}, expected one or more positive numbers")
    sets = (retain_RD, None), (forget_FD, None), (retain_RD, forget_FD)
    means = torch.stack([rbf_mean(*points, bandwidths=bandwidths).mean() for points in sets])
    *within, across = means.tolist()  # a GPU is waited for once
    if unbiased:
        counts = len(retain_RD), len(forget_FD)
        within = [(mean * count - 1) / (count - 1) for mean, count in zip(within, counts, strict=True)]
    return sum(within) - 2 * across


def _bandwidths(retain_RD: Tensor, forget_FD: Tensor) -> list[float]:
    points = torch.cat([retain_RD, forget_FD])
    spaced = torch.linspace(0, len(points) - 1, min(len(points), SUBSAMPLE), dtype=torch.float64)
    distance = pdist(
        points[spaced.round().long().to(points.device)].to(torch.promote_types(points.dtype, torch.float32))
    )
    distance = distance[distance > 0]
    median = float(distance.median()) if len(distance) else 1.0
    return [median * variance**0.5 for variance in VARIANCES]


def neighbour_overlap(retain_RD: Tensor, forget_FD: Tensor, k: int = 10) -> float:
    """How often the neighbours of forget examples are retain examples, in units of chance.

    overlap = 1/(F·k) Σ_f #{retain among the k nearest of f in (R ∪ F) \\ {f}} / (R / (R + F − 1))

    The divisor is the share of retain examples among all but f: 1 where the sets are mixed without structure,
    0 where forget examples have only each other for neighbours. Higher is more entangled.

    Args:
        retain_RD, forget_FD: embeddings [R, D] and [F, D].
        k: neighbours per forget example, from 1 to R + F − 1, and at most 121 on a GPU. At equal distances
            retain comes before forget.

    Returns:
        The overlap in [0, (R + F − 1) / R].

    Raises:
        DataError: a set is empty or widths differ.
        UsageError: k is out of range.

    >>> neighbour_overlap(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [2.5]]), k=1)
    1.5
    """
    _check("neighbour_overlap", retain_RD, forget_FD, 1)
    retain, others = len(retain_RD), len(retain_RD) + len(forget_FD) - 1
    if not 1 <= k <= others:
        raise UsageError(f"k: got {k}, expected 1..{others}")
    _, index_FK = nearest(forget_FD, torch.cat([retain_RD, forget_FD]), k + 1)
    itself_F1 = torch.arange(retain, others + 1, device=index_FK.device)[:, None]
    # Among more than k duplicates a point may miss itself: then the last neighbour is one too many.
    index_FK[:, -1:] = torch.where((index_FK == itself_F1).any(1, keepdim=True), index_FK[:, -1:], itself_F1)
    return float((index_FK < retain).double().sum() / (k * len(forget_FD)) / (retain / others))


def _check(name: str, retain_RD: Tensor, forget_FD: Tensor, least: int) -> None:
    sets = (retain_RD, forget_FD)
    if any(points.ndim != 2 or len(points) < least for points in sets) or len({s.shape[1] for s in sets}) > 1:
        found = " and ".join(str(tuple(points.shape)) for points in sets)
        raise DataError(f"{name}: two sets [≥ {least}, D] of one width expected, got {found}")
