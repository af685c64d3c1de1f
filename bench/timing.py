"""Interleaved timing: variants run in turn, A B A B …, so that a drifting machine slows all of them alike."""

import ctypes
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from rumfast.runtime import pick_device

Call = Callable[[], Any]
CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux: a 5 written to it resets VmHWM, the peak in memory
LEAST_ROUNDS = 3
COLD_BYTES = 256 << 20  # more than the L2 cache of any GPU


def interleave(
    variants: Mapping[str, Call],
    rounds: int,
    device: torch.device | None = None,
    warmup: int = 1,
    seconds: float = math.inf,
) -> dict[str, list[float]]:
    """Milliseconds of each variant in each of ``rounds`` rounds, all variants in order within a round.

    On CUDA, calls are timed by events with a cold L2 cache, from launch to the last kernel's end; elsewhere
    by the wall clock.

    Args:
        device: None takes the best one.
        warmup: untimed rounds before the first.
        seconds: time after which no round begins but the first three.
    """
    stopwatch = _stopwatch(device or pick_device())
    for _ in range(warmup):
        for call in variants.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in variants}
    started = perf_counter()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and perf_counter() - started > seconds:
            break
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
    """Most memory, in 10⁶ bytes, that each variant takes beyond what was held before.

    On CUDA what torch allocates; on a CPU what the process keeps resident. Empty where the system does not
    count that: only Linux does.
    """
    if device.type == "cuda":
        return {name: _peak_on_cuda(call, device) for name, call in variants.items()}
    if not os.access(CLEAR_REFS, os.W_OK):
        return {}
    return {name: _peak_resident(call) for name, call in variants.items()}


def _peak_on_cuda(call: Call, device: torch.device) -> float:
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - held) / 1e6


def _peak_resident(call: Call) -> float:
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that malloc keeps would be taken again unseen
    CLEAR_REFS.write_text("5")  # the peak starts again from what is resident now
    held = _status("VmRSS")
    call()
    return (_status("VmHWM") - held) / 1e6


def _status(key: str) -> int:
    """Bytes under ``key`` of what Linux knows of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))
