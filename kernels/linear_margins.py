"""Margins and their companions straight from embeddings, without storing logits.

    z = φ Wᵀ + b,   then the formulas of ``rumfast.kernels.margins``

A block of rows keeps its running statistics while the classes pass by in blocks, always in the same order, so
memory is O(N) and the result the same on every call.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from rumfast.kernels import margins as dense
from rumfast.kernels.backend import Backend, Meta, jit, pick_backend, power_of_2, target_of, tl
from rumfast.kernels.margins import OUTPUTS, Margins, Statistics, finish, online

NARROW = 4096  # classes up to which a row block's logits are computed at once on a CPU
FEWEST = 64  # rows per matrix product on a CPU


def reference(embedding: Tensor, weight: Tensor, bias: Tensor | None, label: Tensor) -> Margins:
    """The outputs of ``margins`` from logits that are stored, in the dtype of ``embedding``."""
    logits = embedding @ weight.transpose(-1, -2)
    return dense.reference(logits if bias is None else logits + bias.unsqueeze(-2), label)


@jit
def _linear_margins_kernel(
    embedding, weight, bias, label,
    embedding_m, embedding_n, embedding_d, weight_m, weight_c, weight_d, bias_m, bias_c,
    examples, classes, width,
    margin_out, hard_out, loss_out, confidence_out, max_confidence_out, entropy_out, correct_out,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One block of one member's rows per program."""
    member = tl.program_id(1).to(tl.int64)
    example = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = example < examples
    y = tl.load(label + example, inside, other=0).to(tl.int32)
    depth = tl.arange(0, BLOCK_D)
    x_row = embedding + member * embedding_m + example[:, None] * embedding_n
    weight += member * weight_m
    own = tl.zeros((BLOCK_N,), tl.float32)
    best = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    first = tl.full((BLOCK_N,), 2147483647, tl.int32)
    total, moment = own, own
    for block in range(0, classes, BLOCK_C):
        column = block + tl.arange(0, BLOCK_C)
        real = column < classes
        w_column = weight + column.to(tl.int64)[None, :] * weight_c
        z = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        for start in range(0, width, BLOCK_D):
            d = start + depth
            deep = d < width
            x = tl.load(x_row + d[None, :] * embedding_d, inside[:, None] & deep[None, :], other=0.0)
            w = tl.load(w_column + d[:, None] * weight_d, deep[:, None] & real[None, :], other=0.0)
            z = tl.dot(x, w, z, input_precision=PRECISION)
        if bias is not None:
            z += tl.load(bias + member * bias_m + column.to(tl.int64) * bias_c, real, other=0.0).to(
                tl.float32
            )[None, :]
        is_own = column[None, :] == y[:, None]
        own += tl.sum(tl.where(is_own, z, 0.0), 1)
        others = tl.where(is_own | ~real[None, :], float("-inf"), z)
        best, first, total, moment = online(
            others, column[None, :], best, first, total, moment,
            correct_out is not None, entropy_out is not None,
        )  # fmt: skip
    own = tl.where((y >= 0) & (y < classes), own, float("nan"))
    finish(
        own, y, best, first, total, moment, member * examples + example, inside,
        margin_out, hard_out, loss_out, confidence_out, max_confidence_out, entropy_out, correct_out,
    )  # fmt: skip


def meta(classes: int, width: int, dtype: torch.dtype) -> Meta:
    """Block sizes: the largest found that keep seven statistics of each row in registers.

    Float32 operands are split in three for the tensor cores, and rows that do not start at multiples of 16
    elements take more addresses, so their blocks are smaller.
    """
    full = dtype == torch.float32
    return {
        "BLOCK_N": 64,
        "BLOCK_C": max(16, min(64 if full else 128, power_of_2(classes))),
        "BLOCK_D": max(16, min((16 if full else 32) * (1 if width % 16 else 2), power_of_2(width))),
        "num_warps": 8,
        "num_stages": 3 if width % 16 == 0 else 2,
        "enable_fp_fusion": True,
    }


def _as_members(tensor: Tensor, lead: Sequence[int], keep: int) -> Tensor:
    """Broadcast the leading dimensions to ``lead`` and fold them into one: [M, ...]."""
    return tensor.expand(*lead, *tensor.shape[-keep:]).reshape(math.prod(lead), *tensor.shape[-keep:])


def _launch(
    embedding: Tensor, weight: Tensor, bias: Tensor | None, label: Tensor, outputs: int
) -> list[Tensor]:
    found = _empty(embedding, weight, outputs)
    lead, (examples, width), classes = found[0].shape[:-1], embedding.shape[-2:], weight.shape[-2]
    x_MND, w_MCD = _as_members(embedding, lead, 2), _as_members(weight, lead, 2)
    b_MC = None if bias is None else _as_members(bias, lead, 1)
    if found[0].numel():
        blocks = meta(classes, width, embedding.dtype)
        precision = "ieee" if target_of(embedding).amd else "tf32x3"
        with torch.cuda.device_of(embedding):
            _linear_margins_kernel[(-(-examples // blocks["BLOCK_N"]), len(x_MND))](
                x_MND, w_MCD, b_MC, label.contiguous(), *x_MND.stride(), *w_MCD.stride(),
                *((0, 0) if b_MC is None else b_MC.stride()), examples, classes, width,
                *dense.spread(found, outputs), PRECISION=precision, **blocks,
            )  # fmt: skip
    return found


def _merge(z: Tensor, label: Tensor, low: int, running: Statistics) -> Statistics:
    """As ``online``: add the logits [R, c] of classes ``low``… to running statistics; overwrites ``z``."""
    here = ((label >= low) & (label < low + z.shape[1])).nonzero().squeeze(1)
    at = here * z.shape[1] + label[here] - low
    own, shift = running.own, _shift_of(running.best)
    own[here] = z.view(-1)[at]
    z.view(-1)[at] = -torch.inf
    best = torch.maximum(running.best, z.amax(1))
    drop = torch.where(running.total > 0, shift - _shift_of(best), 0.0)
    z.sub_(_shift_of(best)[:, None])
    weight = (z * dense.LOG2_E).exp2_()
    total = drop.exp() * running.total + weight.sum(1)
    moment = drop.exp() * (running.moment + drop * running.total)
    moment += weight.mul_(z.clamp_(min=torch.finfo(z.dtype).min)).sum(1)
    return Statistics(own, own - _shift_of(best) - total.log(), best, total, moment)


def _shift_of(best: Tensor) -> Tensor:
    return torch.where(best.isinf(), 0.0, best)


def _on_cpu(
    x_ND: Tensor, w_CD: Tensor, bias: Tensor, label: Tensor, outputs: int, rows: int
) -> Iterator[list[Tensor]]:
    """The outputs of one member, ``rows`` rows at a time."""
    classes = len(w_CD)
    step = min(classes, max(1, dense.SCRATCH // rows))
    logits, scratch = torch.empty(rows * step), torch.empty(2, rows, step)
    row_start = torch.arange(0, rows * classes, classes)
    for start in range(0, len(x_ND), rows):
        x, y = x_ND[start : start + rows].float(), label[start : start + rows]
        zero = torch.zeros(len(x))
        running = Statistics(zero.clone(), zero, zero - torch.inf, zero, zero)
        for low in range(0, classes, step):
            w, b = w_CD[low : low + step], bias[low : low + step]
            z = torch.addmm(b, x, w.t(), out=logits[: len(x) * len(w)].view(len(x), len(w)))
            if step < classes:
                running = _merge(z, y, low, running)
        if step == classes:
            yield dense.block_outputs(z, y, row_start[: len(y)] + y, scratch[:, : len(y)], outputs)
        else:
            yield dense.derive(running, y, partial(_predict, x, w_CD, bias), outputs)


def _predict(x_RD: Tensor, w_CD: Tensor, bias: Tensor, rows: Tensor) -> Tensor:
    return torch.addmm(bias, x_RD[rows], w_CD.t()).argmax(1)


@torch.library.custom_op("rumfast::linear_margins", mutates_args=(), device_types="cpu")
def _linear_margins(
    embedding: Tensor, weight: Tensor, bias: Tensor | None, label: Tensor, outputs: int
) -> list[Tensor]:
    classes = weight.shape[-2]
    dense.check_labels(label, classes)
    found = _empty(embedding, weight, outputs)
    lead = found[0].shape[:-1]
    b_MC = _as_members(torch.zeros(classes) if bias is None else bias.float(), lead, 1)
    parts = zip(_as_members(embedding, lead, 2), _as_members(weight.float(), lead, 2), b_MC, strict=True)
    rows = max(FEWEST, dense.SCRATCH // classes)
    for member, (x_ND, w_CD, b_C) in enumerate(parts):
        start = 0
        for block in _on_cpu(x_ND, w_CD, b_C, label, outputs, rows):
            for output, values in zip(found, block, strict=True):
                output.view(-1, len(x_ND))[member, start : start + len(values)] = values
            start += len(block[0])
    return found


@_linear_margins.register_kernel("cuda")
def _(embedding: Tensor, weight: Tensor, bias: Tensor | None, label: Tensor, outputs: int) -> list[Tensor]:
    return _launch(embedding, weight, bias, label, outputs)


def _empty(embedding: Tensor, weight: Tensor, outputs: int) -> list[Tensor]:
    lead = torch.broadcast_shapes(embedding.shape[:-2], weight.shape[:-2])
    return dense.empty_outputs((*lead, embedding.shape[-2]), outputs, embedding.device)


@_linear_margins.register_fake
def _(embedding: Tensor, weight: Tensor, bias: Tensor | None, label: Tensor, outputs: int) -> list[Tensor]:
    return _empty(embedding, weight, outputs)


def linear_margins(
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    label: Tensor,
    outputs: Sequence[str] = OUTPUTS,
    *,
    backend: Backend = "auto",
) -> Margins:
    """Compute ``margins(embedding @ weight.T + bias, label, outputs)`` without storing the logits.

    Products and sums are float32, or tensor-core products of bfloat16 or float16 operands summed in float32.

    Args:
        embedding: [..., N, D] float32, bfloat16 or float16.
        weight: [..., C, D] of the same dtype, C ≥ 2; its leading dimensions (members) broadcast with those of
            ``embedding``.
        bias: [..., C] with the leading dimensions of ``weight``, or None.
        label: [N] int64 in [0, C).
        outputs, backend: as in ``margins``.

    Returns:
        ``Margins`` of shape [..., N], bit by bit the same on every call.

    Raises:
        ValueError: as ``margins``, or dtypes differ.

    >>> found = linear_margins(torch.eye(2), 3 * torch.eye(2), None, torch.tensor([0, 0]))
    >>> found.margin.tolist()
    [3.0, -3.0]
    """
    _check(embedding, weight, bias, label)
    bits = dense.output_bits(outputs)
    if pick_backend(backend, embedding) == "torch":
        dense.check_labels(label, weight.shape[-2])
        return dense.select(reference(embedding, weight, bias, label), bits)
    op = _launch if backend == "triton" else _linear_margins
    return Margins(*dense.spread(op(embedding, weight, bias, label, bits), bits))


def _check(embedding: Tensor, weight: Tensor, bias: Tensor | None, label: Tensor) -> None:
    shapes = [tuple(embedding.shape), tuple(weight.shape), bias is not None and tuple(bias.shape)]
    if (
        min(embedding.ndim, weight.ndim) < 2
        or embedding.shape[-1] != weight.shape[-1]
        or label.shape != embedding.shape[-2:-1]
        or (bias is not None and bias.shape != weight.shape[:-1])
    ):
        raise ValueError(
            "linear_margins: embedding [..., N, D], weight [..., C, D], bias [..., C] or None and label [N] "
            f"expected, got {shapes[0]}, {shapes[1]}, {shapes[2] or None} and {tuple(label.shape)}"
        )
    dtypes = {tensor.dtype for tensor in (embedding, weight, bias) if tensor is not None}
    if len(dtypes) > 1:
        raise ValueError(f"linear_margins: one dtype expected, got {', '.join(map(str, dtypes))}")
    if weight.shape[-2] < 2:
        raise ValueError("linear_margins: got 1 class, expected at least 2: one class has no margin")
