"""Where an epoch's time goes: data, forward, backward, optimizer, and what lies between them."""

import math
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from rumfast.bench.timing import Call, interleave
from rumfast.runtime import cpu_threads

PHASES = ("data", "forward", "backward", "optimizer")
REST, GAPS = "rest", "host gaps"


class Loop(NamedTuple):
    """A way to train, whole and in parts.

    Attributes:
        epoch: takes the steps of an epoch, as it is used.
        batches: starts one more epoch of what steps are taken on.
        loss_of: the loss of one of them.
        dtype: that products are computed in.
        threads: of the CPU that ``epoch`` computes with.
    """

    epoch: Call
    batches: Callable[[], Iterable[Any]]
    loss_of: Callable[[Any], Tensor]
    optimizer: torch.optim.Optimizer
    model: nn.Module
    dtype: torch.dtype
    threads: int


def shares(loop: Loop, device: torch.device, rounds: int = 3) -> dict[str, float]:
    """Each phase's share of a whole epoch's time, and the rest, all medians over rounds; they sum to 1.

    The phases are measured on steps that are taken apart, the epoch on steps as they are used, in turn:

        rest = 1 − Σ phases / epoch

    is what an epoch takes beyond its phases. It is not clipped: below zero, the phases take longer apart than
    in the epoch, by chance or because the epoch does without something, as a replayed CUDA graph does without
    launches. On CUDA the phases are times between events, in which the GPU may also have waited for the
    host; the share of an epoch in which no kernel ran is therefore added as ``host gaps``, beside the sum.
    """
    parts: list[dict[str, float]] = []
    calls: dict[str, Call] = {"epoch": loop.epoch, "parts": lambda: parts.append(phase_ms(loop, device))}
    epoch_ms = float(np.median(interleave(calls, rounds, device, warmup=0)["epoch"]))
    found = {phase: float(np.median([part[phase] for part in parts])) / epoch_ms for phase in PHASES}
    found[REST] = 1 - sum(found.values())
    if device.type == "cuda":
        found[GAPS] = 1 - busy_ms(loop.epoch, device) / epoch_ms
    return found


def phase_ms(loop: Loop, device: torch.device) -> dict[str, float]:
    """Milliseconds of each phase, summed over an epoch of steps that are taken one phase at a time.

    Gradients are freed with the backward pass, in which they are made anew.
    """
    mark, between = _clock(device)
    marks: list[list[Any]] = []
    loop.model.train()
    with cpu_threads(loop.threads):
        batches = iter(loop.batches())
        while True:
            started = mark()
            fed = next(batches, None)
            if fed is None:
                break
            loaded = mark()
            loss = loop.loss_of(fed)
            predicted = mark()
            loop.optimizer.zero_grad()
            loss.backward()
            derived = mark()
            loop.optimizer.step()
            marks.append([started, loaded, predicted, derived, mark()])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {
        phase: sum(between(step[place], step[place + 1]) for step in marks)
        for place, phase in enumerate(PHASES)
    }


def _clock(device: torch.device) -> tuple[Callable[[], Any], Callable[[Any, Any], float]]:
    """How to mark a moment, and the milliseconds between two of them: on CUDA, moments of its stream."""
    if device.type != "cuda":
        return perf_counter, lambda start, stop: 1000 * (stop - start)

    def record() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    return record, lambda start, stop: start.elapsed_time(stop)


def busy_ms(call: Call, device: torch.device) -> float:
    """Milliseconds of a call in which at least one kernel or copy ran on a CUDA device."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize(device)
    spans = [
        (event.time_range.start, event.time_range.end)  # µs
        for event in profiler.events() or ()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    return covered(spans) / 1000


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals (start, stop).

    >>> covered([(5, 6), (0, 2), (1, 3)])
    4.0
    """
    total, reached = 0.0, -math.inf
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total
