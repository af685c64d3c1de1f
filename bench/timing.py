"""Interleaved timing: variants run in turn, A B A B …, so that a drifting machine slows all of them alike."""

import ctypes
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from rumfast.runtime import pick_device

Call = Callable[[], Any]
CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux: a 5 written to it resets VmHWM, the peak in memory
LEAST_ROUNDS = 3
COLD_BYTES = 256 << 20  # more than the L2 cache of any GPU
SLEEP_MS = 5.0  # of the stream before a timed call: many times what a call of ours takes to launch
SLEEP_TRIAL = 10_000_000  # cycles; some milliseconds, by which the clock is measured


class Timed(NamedTuple):
    """Samples of variants that took turns, round by round.

    Attributes:
        ms: milliseconds of each variant.
        host_us: microseconds until each call returned, on CUDA; empty elsewhere, where ``ms`` says it.
    """

    ms: dict[str, list[float]]
    host_us: dict[str, list[float]]


def interleave(
    variants: Mapping[str, Call],
    rounds: int,
    device: torch.device | None = None,
    warmup: int = 1,
    seconds: float = math.inf,
) -> dict[str, list[float]]:
    """Milliseconds of each variant in each of ``rounds`` rounds; see :func:`take_turns`."""
    return take_turns(variants, rounds, device, warmup, seconds).ms


def take_turns(
    variants: Mapping[str, Call],
    rounds: int,
    device: torch.device | None = None,
    warmup: int = 1,
    seconds: float = math.inf,
) -> Timed:
    """Time each variant in each of ``rounds`` rounds, all variants in order within a round.

    On CUDA, calls are timed by events with a cold L2 cache, to the last kernel's end. The stream sleeps while
    the host launches, so that a call shorter than its launches shows the device's time and not the host's;
    the host's is returned apart. Elsewhere calls are timed by the wall clock.

    Args:
        device: None takes the best one.
        warmup: untimed rounds before the first.
        seconds: time after which no round begins but the first three.
    """
    device = device or pick_device()
    stopwatch = _cuda_stopwatch(device) if device.type == "cuda" else _wall_clock
    for _ in range(warmup):
        for call in variants.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in variants}
    host: dict[str, list[float]] = {name: [] for name in variants}
    started = perf_counter()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and perf_counter() - started > seconds:
            break
        for name, call in variants.items():
            ms, host_us = stopwatch(call)
            times[name].append(ms)
            host[name].append(host_us)
    return Timed(times, host if device.type == "cuda" else {})


def _cuda_stopwatch(device: torch.device) -> Callable[[Call], tuple[float, float]]:
    """Milliseconds of a call on the device, and microseconds until it returned to the host."""
    cold = torch.empty(COLD_BYTES, dtype=torch.uint8, device=device)
    cycles = _cycles(SLEEP_MS, device)

    def timed(call: Call) -> tuple[float, float]:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        cold.zero_()
        torch.cuda._sleep(cycles)
        start.record()
        called = perf_counter()
        call()
        host_us = 1e6 * (perf_counter() - called)
        stop.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(stop), host_us

    return timed


def _cycles(ms: float, device: torch.device) -> int:
    """Cycles for which a CUDA stream sleeps so long, by the second of two measured sleeps."""
    taken = 1.0
    for _ in range(2):  # the clock rises in the first
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.cuda._sleep(SLEEP_TRIAL)
        stop.record()
        torch.cuda.synchronize(device)
        taken = start.elapsed_time(stop)
    return round(SLEEP_TRIAL * ms / taken)


def _wall_clock(call: Call) -> tuple[float, float]:
    started = perf_counter()
    call()
    seconds = perf_counter() - started
    return 1e3 * seconds, 1e6 * seconds


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
