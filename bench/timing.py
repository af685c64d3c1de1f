"""Interleaved timing: variants run in turn, A B A B …, so that a drifting machine slows all of them alike."""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import torch

from rumfast.runtime import pick_device

Call = Callable[[], Any]
COLD_BYTES = 256 << 20  # more than the L2 cache of any GPU


def interleave(
    variants: Mapping[str, Call], rounds: int, device: torch.device | None = None, warmup: int = 1
) -> dict[str, list[float]]:
    """Milliseconds of each variant in each of ``rounds`` rounds, all variants in order within a round.

    On CUDA, calls are timed by events with a cold L2 cache, from launch to the last kernel's end; elsewhere
    by the wall clock.

    Args:
        device: None takes the best one.
        warmup: untimed rounds before the first.
    """
    stopwatch = _stopwatch(device or pick_device())
    for _ in range(warmup):
        for call in variants.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            times[name].append(stopwatch(call))
    return times


def _stopwatch(device: torch.device) -> Callable[[Call], float]:
    if device.type != "cuda":
        return _wall_ms
    cold = torch.empty(COLD_BYTES, dtype=torch.uint8, device=device)

    def on_cuda(call: Call) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        cold.zero_()
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(stop)

    return on_cuda


def _wall_ms(call: Call) -> float:
    started = perf_counter()
    call()
    return 1000 * (perf_counter() - started)


def peak_megabytes(variants: Mapping[str, Call], device: torch.device) -> dict[str, float]:
    """Most device memory, in 10⁶ bytes, that each variant takes beyond what was held before; CUDA only."""
    if device.type != "cuda":
        return {}
    peaks = {}
    for name, call in variants.items():
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        peaks[name] = (torch.cuda.max_memory_allocated(device) - held) / 1e6
    return peaks
