"""Per-example margins and their companions from logits, in one pass.

margin          m(x, y) = z_y − log Σ_{c≠y} exp z_c = logit(p_y)
hard margin     z_y − max_{c≠y} z_c
loss            −log p_y = softplus(−m)
confidence      p_y = sigmoid(m)
max confidence  max_c p_c
entropy         −Σ_c p_c log p_c = p_y·softplus(−m) + (1 − p_y)·(softplus(m) + H_{c≠y})
correct         argmax z = y

The label is masked out of the logsumexp: lse_all − exp(z_y), or any route through probabilities, cancels on
confidently classified examples, which are the ones memorization is about. All seven follow from z_y and, over
the other classes with b = max z_c, from Σ exp(z_c − b) and Σ (z_c − b) exp(z_c − b). H_{c≠y} is the entropy
of the softmax over the other classes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rumfast.kernels.backend import Backend, Meta, jit, pick_backend, power_of_2, tl

LOG2_E = math.log2(math.e)
SCRATCH = 1 << 18  # floats worked on at a time on a CPU: 1 MiB stays in the L2 cache
SAFE_SUM = 2.0**40  # within 1/SAFE_SUM..SAFE_SUM, Σ exp z needs no shift: error in its log below 3e-6
THREAD = 32  # classes of a row that one thread takes
WIDE = 256  # classes from which on a row is read by all threads of its program
WIDEST = 4096  # classes in registers at once
MOST_MEMBERS = 65_535  # blocks along a grid's second dimension


class Margins(NamedTuple):
    """Per-example quantities [..., N], float32 but for the boolean ``correct``; None where not asked for."""

    margin: Tensor
    hard_margin: Tensor
    loss: Tensor
    confidence: Tensor
    max_confidence: Tensor
    entropy: Tensor
    correct: Tensor


OUTPUTS = Margins._fields
BIT = {name: 1 << index for index, name in enumerate(OUTPUTS)}
NEEDS_BEST = BIT["hard_margin"] | BIT["correct"]
NEEDS_SHIFT = BIT["max_confidence"] | BIT["entropy"]


def reference(logits: Tensor, label: Tensor) -> Margins:
    """All outputs as their formulas are written, in the dtype of ``logits``: [..., N, C] and [N]."""
    index = label.expand(logits.shape[:-1]).unsqueeze(-1)
    own = logits.gather(-1, index).squeeze(-1)
    others = logits.scatter(-1, index, -torch.inf)
    margin = own - others.logsumexp(-1)
    log_p = logits.log_softmax(-1)
    return Margins(
        margin=margin,
        hard_margin=own - others.amax(-1),
        loss=softplus(-margin),
        confidence=margin.sigmoid(),
        max_confidence=log_p.amax(-1).exp(),
        entropy=-torch.special.xlogy(log_p.exp(), log_p.exp()).sum(-1),
        correct=(logits.argmax(-1) == label) & ~margin.isnan(),
    )


@jit
def shift_of(best):
    """What is subtracted before exp: the maximum, or 0 while that is infinite."""
    return tl.where(tl.abs(best) == float("inf"), 0.0, best)


@jit
def online(others, column, best, first, total, moment, TIES: tl.constexpr, MOMENT: tl.constexpr):
    """Add a block of the other classes' logits (−∞ elsewhere) to the running statistics of its rows.

    ``best`` is their maximum, ``first`` its lowest class, ``total`` Σ exp(z − shift) and ``moment``
    Σ (z − shift) exp(z − shift) with shift = ``shift_of(best)``.
    """
    block_best = tl.max(others, 1)
    if TIES:
        block_first = tl.min(tl.where(others == block_best[:, None], column, 2147483647), 1)
        first = tl.where(block_best > best, block_first, first)
    shift = shift_of(best)
    best = tl.maximum(best, block_best)
    drop = shift - shift_of(best)
    offset = others - shift_of(best)[:, None]
    weight = tl.exp(offset)
    scale = tl.where(total > 0, tl.exp(drop), 0.0)
    if MOMENT:
        moment = scale * (moment + drop * total) + tl.sum(tl.where(weight > 0, weight * offset, 0.0), 1)
    total = scale * total + tl.sum(weight, 1)
    return best, first, total, moment


@jit
def log1p(x):
    """log(1 + x) for x in [0, 1], with what 1 + x rounds off put back."""
    rounded = 1 + x
    return tl.log(rounded) - (rounded - 1 - x) / rounded


@jit
def finish(
    own, label, best, first, total, moment, row, inside,
    margin_out, hard_out, loss_out, confidence_out, max_confidence_out, entropy_out, correct_out,
):  # fmt: skip
    """Turn the statistics of rows into the outputs that are not None."""
    rest = tl.log(total)
    margin = own - shift_of(best) - rest
    tail = tl.exp(-tl.abs(margin))
    small = log1p(tail)
    loss = small + tl.maximum(-margin, 0.0)
    confidence = tl.where(margin >= 0, 1.0, tail) / (1 + tail)
    doubt = tl.where(margin >= 0, tail, 1.0) / (1 + tail)
    if margin_out is not None:
        tl.store(margin_out + row, margin, inside)
    if hard_out is not None:
        tl.store(hard_out + row, tl.where(margin == margin, own - best, margin), inside)
    if loss_out is not None:
        tl.store(loss_out + row, loss, inside)
    if confidence_out is not None:
        tl.store(confidence_out + row, confidence, inside)
    if max_confidence_out is not None:
        other = tl.where(doubt == 0, 0.0, doubt / total)
        tl.store(max_confidence_out + row, tl.where(other > confidence, other, confidence), inside)
    if entropy_out is not None:
        among_others = small + tl.maximum(margin, 0.0) + rest - moment / total
        entropy = tl.where(confidence == 0, 0.0, confidence * loss)
        entropy += tl.where(doubt == 0, 0.0, doubt * among_others)
        tl.store(entropy_out + row, entropy, inside)
    if correct_out is not None:
        correct = (own > best) | ((own == best) & (label < first))
        tl.store(correct_out + row, correct & (margin == margin), inside)


@jit
def own_logit(start, label, example, class_stride, inside, classes):
    """The label of each row as int32, and its logit; NaN where there is no such class."""
    y = tl.load(label + example, inside, other=0)
    known = inside & (y >= 0) & (y < classes)
    y = y.to(tl.int32)
    return y, tl.load(start + y.to(tl.int64) * class_stride, known, other=float("nan")).to(tl.float32)


@jit
def _margins_kernel(
    logits, label, member_stride, row_stride, class_stride, examples,
    margin_out, hard_out, loss_out, confidence_out, max_confidence_out, entropy_out, correct_out,
    CLASSES: tl.constexpr, PACKED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A block of one member's rows per program, whole in registers: BLOCK_C neighbouring classes at a time.

    So few classes lie in one thread or in a few of a warp, and nothing is computed twice by many threads.
    PACKED rows follow each other without gaps: their alignment is known, and loads take several classes.
    """
    member = tl.program_id(1).to(tl.int64)
    example = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = example < examples
    row = member * examples + example
    if PACKED:
        start = logits + row * CLASSES
    else:
        start = logits + member * member_stride + example * row_stride
    y, own = own_logit(start, label, example, class_stride, inside, CLASSES)
    best = tl.full((BLOCK_N, BLOCK_C), float("-inf"), tl.float32)
    first = tl.full((BLOCK_N, BLOCK_C), 2147483647, tl.int32)
    blocks = ()
    for block in tl.static_range(0, CLASSES, BLOCK_C):
        column = block + tl.arange(0, BLOCK_C)[None, :]
        real = inside[:, None] & (column < CLASSES)
        address = start[:, None] + column.to(tl.int64) * class_stride
        z = tl.load(address, real, other=float("-inf")).to(tl.float32)
        others = tl.where(column == y[:, None], float("-inf"), z)
        if correct_out is not None:
            first = tl.where(others > best, column, first)
        best = tl.maximum(best, others)
        blocks = blocks + (others,)  # type: ignore[assignment]
    row_best = tl.max(best, 1)
    first = tl.min(tl.where(best == row_best[:, None], first, 2147483647), 1)
    shift = shift_of(row_best)[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    moment = total
    for index in tl.static_range(len(blocks)):
        offset = blocks[index] - shift
        weight = tl.exp(offset)
        total += weight
        if entropy_out is not None:
            moment += tl.where(weight > 0, weight * offset, 0.0)
    finish(
        own, y, row_best, first, tl.sum(total, 1), tl.sum(moment, 1), row, inside,
        margin_out, hard_out, loss_out, confidence_out, max_confidence_out, entropy_out, correct_out,
    )  # fmt: skip


@jit
def _wide_margins_kernel(
    logits, label, member_stride, row_stride, class_stride, examples, classes,
    margin_out, hard_out, loss_out, confidence_out, max_confidence_out, entropy_out, correct_out,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A block of one member's rows per program; over WIDEST classes, block after block."""
    member = tl.program_id(1).to(tl.int64)
    example = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = example < examples
    start = logits + member * member_stride + example * row_stride
    y, own = own_logit(start, label, example, class_stride, inside, classes)
    best = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    first = tl.full((BLOCK_N,), 2147483647, tl.int32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    moment = total
    for block in range(0, classes, BLOCK_C):
        column = block + tl.arange(0, BLOCK_C)[None, :]
        real = inside[:, None] & (column < classes)
        address = start[:, None] + column.to(tl.int64) * class_stride
        z = tl.load(address, real, other=float("-inf")).to(tl.float32)
        others = tl.where(column == y[:, None], float("-inf"), z)
        best, first, total, moment = online(
            others, column, best, first, total, moment, correct_out is not None, entropy_out is not None
        )
    finish(
        own, y, best, first, total, moment, member * examples + example, inside,
        margin_out, hard_out, loss_out, confidence_out, max_confidence_out, entropy_out, correct_out,
    )  # fmt: skip


def meta(classes: int, packed: bool) -> Meta:
    """Block sizes: below WIDE a thread for every THREAD classes of a row, above it a block of warps.

    Of packed rows a load takes up to four classes, as many as divide a row.
    """
    if classes < WIDE:
        threads = power_of_2(-(-classes // THREAD))
        size = {"BLOCK_N": 128 // threads, "BLOCK_C": threads * (math.gcd(classes, 4) if packed else 1)}
    else:
        block_c = power_of_2(min(classes, WIDEST))
        size = {"BLOCK_N": max(1, 1024 // block_c), "BLOCK_C": block_c}
    return size | {"num_warps": 8 if size["BLOCK_C"] == WIDEST else 4, "enable_fp_fusion": True}


def empty_outputs(shape: Sequence[int], outputs: int, device: torch.device) -> list[Tensor]:
    """A fresh tensor for each output whose bit is set, in the order of ``OUTPUTS``."""
    return [
        torch.empty(shape, dtype=torch.bool if name == "correct" else torch.float32, device=device)
        for name, bit in BIT.items()
        if outputs & bit
    ]


def spread(found: Sequence[Tensor], outputs: int) -> list[Any]:
    """The seven places of ``Margins``, with None where an output's bit is not set."""
    given = iter(found)
    return [next(given) if outputs & bit else None for bit in BIT.values()]


def _launch(logits: Tensor, label: Tensor, outputs: int) -> list[Tensor]:
    members, (examples, classes) = math.prod(logits.shape[:-2]), logits.shape[-2:]
    logits_MNC = logits.reshape(members, examples, classes)
    if members > MOST_MEMBERS:
        parts = [_launch(part, label, outputs) for part in logits_MNC.split(MOST_MEMBERS)]
        return [torch.cat(values).view(logits.shape[:-1]) for values in zip(*parts, strict=True)]
    found = empty_outputs(logits.shape[:-1], outputs, logits.device)
    if members and examples:
        packed = logits_MNC.is_contiguous()
        blocks = meta(classes, packed)
        given = logits_MNC, label.contiguous(), *logits_MNC.stride(), examples
        grid = -(-examples // blocks["BLOCK_N"]), members
        with torch.cuda.device_of(logits):
            if classes < WIDE:
                _margins_kernel[grid](
                    *given, *spread(found, outputs), CLASSES=classes, PACKED=packed, **blocks
                )
            else:
                _wide_margins_kernel[grid](*given, classes, *spread(found, outputs), **blocks)
    return found


class Statistics(NamedTuple):
    """What a block of rows is reduced to on a CPU; what no output needs is empty.

    ``total`` and ``moment`` are sums of exponentials shifted by ``best``.
    """

    own: Tensor
    margin: Tensor
    best: Tensor
    total: Tensor
    moment: Tensor


def shifted(z: Tensor, flat: Tensor, scratch: Tensor, with_moment: bool) -> Statistics:
    """Statistics of contiguous rows [R, C] whose labels stand at ``flat``; ``scratch`` is [2, R, C].

    Powers of two, because torch's exp2 takes a quarter of the time of its exp.
    """
    offset, weight = scratch
    own = z.view(-1).index_select(0, flat)
    offset.copy_(z).view(-1).index_fill_(0, flat, -torch.inf)
    best = offset.amax(1)
    shift = torch.where(best.isinf(), 0.0, best)
    torch.mul(offset.sub_(shift[:, None]), LOG2_E, out=weight).exp2_()
    total = _row_sums(weight)
    margin = own - shift - total.log()
    if not with_moment:
        return Statistics(own, margin, best, total, own.new_empty(0))
    # 0 · −∞ would be NaN.
    moment = _row_sums(weight.mul_(offset.clamp_(min=torch.finfo(z.dtype).min)))
    return Statistics(own, margin, best, total, moment)


def _row_sums(weight: Tensor) -> Tensor:
    """Sum along short rows by a product, a third of the time; along long ones pairwise, at less error."""
    if weight.shape[1] < 64:
        return torch.mv(weight, weight.new_ones(weight.shape[1]))
    return weight.sum(1)


def _unshifted(z: Tensor, flat: Tensor, scratch: Tensor, with_best: bool) -> Statistics:
    """As ``_shifted``, without subtracting the maximum but in rows whose sum leaves float32's middle."""
    weight = scratch[0]
    own = z.view(-1).index_select(0, flat)
    best = nothing = own.new_empty(0)
    if with_best:
        weight.copy_(z).view(-1).index_fill_(0, flat, -torch.inf)
        best = weight.amax(1)
        weight.mul_(LOG2_E).exp2_()
    else:
        torch.mul(z, LOG2_E, out=weight).exp2_().view(-1).index_fill_(0, flat, 0.0)
    total = _row_sums(weight)
    low, high = total.aminmax()
    margin = own - total.log()
    if not (low > 1 / SAFE_SUM and high < SAFE_SUM):
        rows = (~((total > 1 / SAFE_SUM) & (total < SAFE_SUM))).nonzero().squeeze(1)
        at = torch.arange(len(rows)) * z.shape[1] + flat[rows] % z.shape[1]
        margin[rows] = shifted(z[rows], at, scratch[:, : len(rows)], with_moment=False).margin
    return Statistics(own, margin, best, nothing, nothing)


def derive(
    found: Statistics, label: Tensor, predict: Callable[[Tensor], Tensor], outputs: int
) -> list[Tensor]:
    """The outputs whose bits are set, in order; ``finish`` says the same in Triton.

    ``predict`` gives the predicted class of chosen rows, and is asked where the label ties with another.
    """
    own, margin, best, total, moment = found
    made = {"margin": margin}
    if outputs & BIT["hard_margin"]:
        made["hard_margin"] = own - best
    if outputs & (BIT["loss"] | BIT["entropy"]):
        tail = (margin.abs() * -LOG2_E).exp2_()
        rounded = 1 + tail
        small = rounded.log() - (rounded - 1 - tail) / rounded
        made["loss"] = small - margin.clamp(max=0)
    if outputs & (BIT["confidence"] | NEEDS_SHIFT):
        made["confidence"], doubt = margin.sigmoid(), (-margin).sigmoid()
    if outputs & BIT["max_confidence"]:
        other = torch.where(doubt == 0, 0.0, doubt / total)
        made["max_confidence"] = torch.maximum(made["confidence"], other)
    if outputs & BIT["entropy"]:
        among_others = small + margin.clamp(min=0) + total.log() - moment / total
        at_label = torch.where(made["confidence"] == 0, 0.0, made["confidence"] * made["loss"])
        made["entropy"] = at_label + torch.where(doubt == 0, 0.0, doubt * among_others)
    if outputs & BIT["correct"]:
        made["correct"] = (own > best) & ~margin.isnan()
        tied = (own == best).nonzero().squeeze(1)
        made["correct"][tied] = predict(tied) == label[tied]
    return [made[name] for name, bit in BIT.items() if outputs & bit]


def block_outputs(z: Tensor, label: Tensor, flat: Tensor, scratch: Tensor, outputs: int) -> list[Tensor]:
    """The outputs of one contiguous float32 block of rows."""
    if outputs & NEEDS_SHIFT:
        found = shifted(z, flat, scratch, bool(outputs & BIT["entropy"]))
    else:
        found = _unshifted(z, flat, scratch, bool(outputs & NEEDS_BEST))
    return derive(found, label, lambda rows: z[rows].argmax(1), outputs)


@torch.library.custom_op("rumfast::margins", mutates_args=(), device_types="cpu")
def _margins(logits: Tensor, label: Tensor, outputs: int) -> list[Tensor]:
    check_labels(label, logits.shape[-1])
    found = empty_outputs(logits.shape[:-1], outputs, logits.device)
    classes = logits.shape[-1]
    z_RC, label_R = logits.reshape(-1, classes), label.expand(logits.shape[:-1]).reshape(-1)
    step = min(len(z_RC), max(1, SCRATCH // classes))
    scratch, row_start = torch.empty(3, step, classes), torch.arange(0, step * classes, classes)
    for start in range(0, len(z_RC), max(1, step)):
        z, y = z_RC[start : start + step], label_R[start : start + step]
        if z.dtype != torch.float32 or not z.is_contiguous():
            z = scratch[2, : len(y)].copy_(z)
        block = block_outputs(z, y, row_start[: len(y)] + y, scratch[:2, : len(y)], outputs)
        for output, values in zip(found, block, strict=True):
            output.view(-1)[start : start + step] = values
    return found


@_margins.register_kernel("cuda")
def _(logits: Tensor, label: Tensor, outputs: int) -> list[Tensor]:
    return _launch(logits, label, outputs)


@_margins.register_fake
def _(logits: Tensor, label: Tensor, outputs: int) -> list[Tensor]:
    return empty_outputs(logits.shape[:-1], outputs, logits.device)


def check_labels(label: Tensor, classes: int) -> None:
    """Raise ValueError unless all labels are in [0, classes)."""
    if label.numel():
        low, high = (int(end) for end in label.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"margins: labels span {low}..{high}, expected 0..{classes - 1}")


def select(found: Margins, outputs: int) -> Margins:
    """``found`` with None where an output's bit is not set."""
    kept = [value for value, bit in zip(found, BIT.values(), strict=True) if outputs & bit]
    return Margins(*spread(kept, outputs))


def output_bits(outputs: Sequence[str]) -> int:
    """The bits of ``outputs`` ⊆ ``OUTPUTS``."""
    unknown = set(outputs) - set(OUTPUTS)
    if unknown or not outputs:
        raise ValueError(f"outputs: got {list(outputs)}, expected some of {', '.join(OUTPUTS)}")
    return sum(BIT[name] for name in set(outputs))


def margins(
    logits: Tensor, label: Tensor, outputs: Sequence[str] = OUTPUTS, *, backend: Backend = "auto"
) -> Margins:
    """Compute margin, hard margin, loss, confidence, max confidence, entropy and correctness of each example.

    Args:
        logits: [..., N, C] float32, bfloat16 or float16, C ≥ 2; leading dimensions are members.
        label: [N] int64 in [0, C).
        outputs: names of those wanted; the rest costs nothing and is None.
        backend: see ``rumfast.kernels.backend``; ``torch`` computes in the dtype of ``logits``.

    Returns:
        ``Margins`` of shape [..., N], float32. ``correct`` is argmax z = y, where a tie goes to the lowest
        class; a row with NaN has NaN throughout and is not correct.

    Raises:
        ValueError: shapes disagree, C < 2, an output is unknown, or a label is out of range. CUDA tensors are
            not searched for such labels: they give NaN.

    >>> round(margins(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).margin.item(), 6)
    2.0
    """
    if logits.ndim < 2 or label.ndim != 1 or logits.shape[-2] != label.shape[0]:
        raise ValueError(
            f"margins: logits [..., N, C] and label [N] expected, got {tuple(logits.shape)} "
            f"and {tuple(label.shape)}"
        )
    if logits.shape[-1] < 2:
        raise ValueError(
            f"margins: got {logits.shape[-1]} class, expected at least 2: one class has no margin"
        )
    bits = output_bits(outputs)
    if pick_backend(backend, logits) == "torch":
        check_labels(label, logits.shape[-1])
        return select(reference(logits, label), bits)
    found = (_launch if backend == "triton" else _margins)(logits, label, bits)
    return Margins(*spread(found, bits))
