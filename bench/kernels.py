"""Kernels against the eager formulas in use elsewhere, and against torch.compile of them."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rumfast.bench.cases import OURS, case
from rumfast.bench.setting import Setting
from rumfast.bench.timing import Call, interleave, peak_megabytes
from rumfast.kernels.margins import Margins, margins
from rumfast.scores import entanglement_score

Function = Callable[..., Any]  # inputs → a tensor or number, or a tuple that begins with what is checked
Inputs = tuple[Tensor, ...]
ROTATION = 3  # sets of inputs, taken in turn
BATCH = 256  # examples per batch of the research code's loaders
CONFIDENT = 4.0  # standard deviation of logits, at which some examples are as confident as memorized ones


class Kernel(NamedTuple):
    """A kernel with its peers, all functions of the same inputs.

    Attributes:
        inputs: draws random inputs for a setting.
        compiled: the peer that torch.compile gets as well.
        exact: the formula that float64 inputs are put through for the truth.
    """

    inputs: Callable[[Setting, torch.Generator], Inputs]
    ours: Function
    peers: Mapping[str, Function]
    compiled: Function
    exact: Function


def softmax_margins(logits_NC: Tensor, label_N: Tensor) -> Margins:
    """All of ``margins`` by way of probabilities: logit(p_y) from the full softmax."""
    own_N1 = label_N.unsqueeze(1)
    confidence = logits_NC.softmax(1).gather(1, own_N1).squeeze(1)
    others = logits_NC.scatter(1, own_N1, -torch.inf)
    return Margins(
        margin=confidence.logit(eps=torch.finfo(logits_NC.dtype).eps),
        hard_margin=logits_NC.gather(1, own_N1).squeeze(1) - others.amax(1),
        loss=cross_entropy(logits_NC, label_N, reduction="none"),
        confidence=confidence,
        correct=logits_NC.argmax(1) == label_N,
    )


def masked_margins(logits_NC: Tensor, label_N: Tensor) -> Margins:
    """All of ``margins`` as TRAK writes it: a clone of the logits with −∞ at the label, then logsumexp."""
    row_N = torch.arange(len(label_N), device=label_N.device)
    own = logits_NC[row_N, label_N]
    others = logits_NC.clone()
    others[row_N, label_N] = -torch.inf
    margin = own - others.logsumexp(1)
    return Margins(
        margin=margin,
        hard_margin=own - others.amax(1),
        loss=cross_entropy(logits_NC, label_N, reduction="none"),
        confidence=margin.sigmoid(),
        correct=logits_NC.argmax(1) == label_N,
    )


def batched_entanglement(retain_RD: Tensor, forget_FD: Tensor) -> Tensor:
    """Entanglement as research code has it: one loop over batches for the means, another for the distances.

    But for one thing: sums are exact, where research code averages the means of unequal batches.
    """
    sets = (retain_RD, forget_FD)
    means = [sum(batch.sum(0) for batch in points.split(BATCH)) / len(points) for points in sets]
    within = sum(
        sum((batch - mean).norm(dim=1).square().sum() for batch in points.split(BATCH)) / len(points)
        for points, mean in zip(sets, means, strict=True)
    )
    return _over_between(torch.as_tensor(within), sets, torch.stack(means))


def whole_entanglement(retain_RD: Tensor, forget_FD: Tensor) -> Tensor:
    """Entanglement in a few eager operations on the whole sets."""
    sets = (retain_RD, forget_FD)
    means = [points.mean(0) for points in sets]
    within = [(points - mean).square().sum(1).mean() for points, mean in zip(sets, means, strict=True)]
    return _over_between(torch.stack(within).sum(), sets, torch.stack(means))


def _over_between(within: Tensor, sets: Inputs, mean_2D: Tensor) -> Tensor:
    total = sum(len(points) for points in sets)
    share_2 = torch.tensor([len(points) / total for points in sets]).to(mean_2D)
    return within / (mean_2D - share_2 @ mean_2D).square().sum(1).mean()


def logits_and_labels(setting: Setting, draw: torch.Generator, *, classes: int) -> Inputs:
    """Random logits [N, C] and labels [N], of one size in bytes whatever C."""
    count = setting.size(1 << 20, 1 << 22, 1 << 26) // classes
    logits_NC = CONFIDENT * torch.randn(count, classes, generator=draw)
    return logits_NC.to(setting.device), torch.randint(classes, (count,), generator=draw).to(setting.device)


def embeddings(setting: Setting, draw: torch.Generator) -> Inputs:
    """Random embeddings of a retain and a forget set, 15 to 1, whose means differ."""
    forget, width = setting.size(512, 3000, 3000), 512
    retain_RD = torch.randn(15 * forget, width, generator=draw)
    return retain_RD.to(setting.device), (torch.randn(forget, width, generator=draw) + 0.1).to(setting.device)


_MARGIN_PEERS = {"eager softmax": softmax_margins, "eager masked logsumexp": masked_margins}
CASES = {
    f"margins C={classes}": Kernel(
        partial(logits_and_labels, classes=classes), margins, _MARGIN_PEERS, masked_margins, masked_margins
    )
    for classes in (10, 100)
} | {
    "entanglement": Kernel(
        embeddings,
        entanglement_score,
        {"two passes over batches": batched_entanglement, "eager on whole sets": whole_entanglement},
        whole_entanglement,
        whole_entanglement,
    ),
}


def cases(setting: Setting) -> list[dict[str, Any]]:
    """Time every kernel of ``CASES`` beside its peers; at the copy rate, a kernel's inputs are read once."""
    return [_measure(name, kernel, setting) for name, kernel in CASES.items()]


def _measure(name: str, kernel: Kernel, setting: Setting) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    rotation = [kernel.inputs(setting, draw) for _ in range(ROTATION)]
    compiled, missing = _compiled(kernel.compiled, setting)
    functions = {OURS: kernel.ours, **kernel.peers, **compiled}
    variants = {variant: _in_turn(function, rotation) for variant, function in functions.items()}
    with torch.no_grad():
        samples = interleave(variants, 15 if setting.quick else 40, setting.device, warmup=2)
        peak = peak_megabytes(variants, setting.device)
        error = {variant: _error(f, kernel.exact, rotation[0]) for variant, f in functions.items()}
    read = sum(tensor.nbytes for tensor in rotation[0])
    copy_ms = read / setting.copy_gb_s / 1e6
    share = {variant: copy_ms / median(times) for variant, times in samples.items()}
    notes = {"error": error, "share of copy rate": share} | ({"peak MB": peak} if peak else {})
    shape = " ".join(str(list(tensor.shape)) for tensor in rotation[0])
    return case(name, shape, "float32", samples, missing=missing, notes=notes)


def _compiled(function: Function, setting: Setting) -> tuple[dict[str, Function], dict[str, str]]:
    """The function compiled, or why not: compiling takes longer than all else of a quick run."""
    modes = {"torch.compile": "default"}
    if setting.device.type == "cuda":
        modes["torch.compile max-autotune"] = "max-autotune-no-cudagraphs"
    reason = "left out of quick runs" if setting.quick else ""
    if setting.device.type == "cpu" and not shutil.which("g++"):
        reason = "no C++ compiler"
    if reason:
        return {}, dict.fromkeys(modes, reason)
    return {name: torch.compile(function, dynamic=False, mode=mode) for name, mode in modes.items()}, {}


def _in_turn(function: Function, rotation: list[Inputs]) -> Call:
    upcoming = cycle(rotation)
    return lambda: function(*next(upcoming))


def _error(function: Function, exact: Function, inputs: Inputs) -> float:
    """Largest error against float64, relative where the truth exceeds 1."""
    truth = _checked(exact(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)))
    found = _checked(function(*inputs)).to(truth)
    return float(((found - truth).abs() / truth.abs().clamp(min=1)).max())


def _checked(output: Any) -> Tensor:
    return torch.as_tensor(output[0] if isinstance(output, tuple) else output)
