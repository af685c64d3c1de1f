"""Kernels against the formulas in use elsewhere, and against torch.compile of them."""

import shutil
from collections.abc import Mapping
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any

import torch
from torch import Tensor

from rumfast.bench import peers
from rumfast.bench.cases import OURS, Case, Measure, case
from rumfast.bench.setting import Setting
from rumfast.bench.timing import Call, peak_megabytes, take_turns
from rumfast.bench.workloads import CASES, Function, Inputs, Kernel, bytes_of

ROTATION = 3  # sets of inputs, taken in turn
LARGE_INPUTS = 1 << 30  # bytes of a set, far beyond any cache, from which on there is one
MOST_ON_CPU = 4e9  # bytes that a peer may take


def cases(setting: Setting) -> dict[str, Measure]:
    """Time every kernel of ``CASES`` beside its peers."""

    def one(name: str, kernel: Kernel) -> list[Case]:
        return [measure(name, kernel, setting)]

    return {name: partial(one, name, kernel) for name, kernel in CASES.items()}


@torch.no_grad()
def measure(name: str, kernel: Kernel, setting: Setting) -> Case:
    """One case: each variant's error, peak memory, times, and share of what the roofline allows.

    On CUDA also the microseconds until a call returns to the host.
    """
    torch.cuda.empty_cache()  # what cases before left would count as taken
    draw = torch.Generator(setting.device).manual_seed(0)
    rotation = [kernel.inputs(setting, draw)]
    if bytes_of(*rotation[0]) <= LARGE_INPUTS:
        rotation += [kernel.inputs(setting, draw) for _ in range(ROTATION - 1)]
    functions, missing = variants(kernel, setting, rotation[0])
    outputs, failed = first_outputs(functions, rotation[0])
    missing |= failed
    truth = exact_output(kernel, rotation[0])
    error = {variant: largest_error(output, truth) for variant, output in outputs.items()}
    bound, least_ms = roofline(kernel, setting, rotation[0], outputs[OURS])
    calls = {variant: in_turn(functions[variant], rotation) for variant in outputs}
    del outputs, truth
    torch.cuda.empty_cache()  # the truth in float64 takes the most, and no variant could have it back in time
    peak = peak_megabytes(calls, setting.device)
    rounds, seconds = (15, 0.5) if setting.quick else (40, 4.0)
    samples, host_us = take_turns(calls, rounds, setting.device, warmup=0, seconds=seconds)
    share = {variant: least_ms / median(times) for variant, times in samples.items()}
    notes = {"error": error, f"share of {bound}": share} | ({"peak MB": peak} if peak else {})
    if host_us:
        notes["host µs"] = {variant: median(times) for variant, times in host_us.items()}
    shape = " ".join(str(list(tensor.shape)) for tensor in rotation[0])
    return case(name, shape, kernel.dtype, samples, missing=missing, notes=notes)


def exact_output(kernel: Kernel, inputs: Inputs) -> Any:
    """The value of the kernel's formula for the same inputs in float64."""
    return kernel.exact(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs))


def variants(kernel: Kernel, setting: Setting, inputs: Inputs) -> tuple[dict[str, Function], dict[str, str]]:
    """Ours and each peer that can run here, and why each other can not."""
    modes = compile_modes(kernel, setting, inputs) if kernel.compiled else {}
    formulas: dict[str, Any] = {**kernel.peers, **dict.fromkeys(modes, kernel.compiled)}
    reasons = {peer: obstacle(formula, setting.device, inputs) for peer, formula in formulas.items()}
    if setting.quick:
        reasons |= dict.fromkeys(modes, "left out of quick runs")
    elif setting.device.type == "cpu" and not shutil.which("g++"):
        reasons |= dict.fromkeys(modes, "no C++ compiler")
    functions: dict[str, Function] = {OURS: kernel.ours}
    for peer, formula in formulas.items():
        if not reasons[peer]:
            functions[peer] = compiled(formula, modes[peer]) if peer in modes else formula
    return functions, {peer: reason for peer, reason in reasons.items() if reason}


def compile_modes(kernel: Kernel, setting: Setting, inputs: Inputs) -> dict[str, str]:
    """Names of torch.compile as a peer, and its mode.

    Tuned on CUDA, but not where it would spend minutes on finding a matrix product as fast as cuBLAS's.
    """
    modes = {"torch.compile": "default"}
    if setting.device.type == "cuda" and not kernel.flop(*inputs):
        modes["torch.compile max-autotune"] = "max-autotune-no-cudagraphs"
    return modes


def compiled(formula: Any, mode: str) -> Function:
    """The formula under torch.compile; other cases' shapes are forgotten, or they count as recompilations."""
    torch.compiler.reset()
    return torch.compile(formula, dynamic=False, mode=mode)


def obstacle(formula: Any, device: torch.device, inputs: Inputs) -> str:
    """Why a peer is not run on such inputs; empty if it is."""
    formula = getattr(formula, "func", formula)  # of a partial
    if formula in peers.ON_CPU and device.type != "cpu":
        return "runs on a CPU alone"
    if formula in peers.WHOLE:
        needed = 4 * len(inputs[0]) * len(inputs[-1])
        most = MOST_ON_CPU if device.type == "cpu" else torch.cuda.mem_get_info(device)[0] / 3
        if needed > most:
            return f"needs {needed / 1e9:.0f} GB"
    return ""


def first_outputs(functions: Mapping[str, Function], inputs: Inputs) -> tuple[dict[str, Any], dict[str, str]]:
    """What each variant returns, and how a peer failed: one that lacks memory or a package ends no run."""
    outputs, failed = {}, {}
    for variant, function in functions.items():
        try:
            outputs[variant] = function(*inputs)
        except (RuntimeError, ImportError) as error:
            if variant == OURS:
                raise
            failed[variant] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:100]
    return outputs, failed


def roofline(kernel: Kernel, setting: Setting, inputs: Inputs, output: Any) -> tuple[str, float]:
    """What bounds the kernel, copy rate or product rate, and the milliseconds that it takes at that rate."""
    moved = kernel.read(*inputs) + sum(tensor.nbytes for tensor in tensors(output))
    rates = setting.matmul_gflop_s
    product = kernel.product if kernel.product in rates else "float32"
    copy_ms, product_ms = moved / setting.copy_gb_s / 1e6, kernel.flop(*inputs) / rates[product] / 1e6
    return max(("copy rate", copy_ms), (f"{product} product rate", product_ms), key=lambda bound: bound[1])


def in_turn(function: Function, rotation: list[Inputs]) -> Call:
    """A call that takes the next inputs each time."""
    upcoming = cycle(rotation)
    return lambda: function(*next(upcoming))


def largest_error(output: Any, truth: Any) -> float:
    """Largest error of floating point outputs against the truth, relative where that exceeds 1."""
    errors = [
        ((found.to(exact) - exact).abs() / exact.abs().clamp(min=1)).max()
        for found, exact in zip(tensors(output), tensors(truth), strict=True)
    ]
    return float(torch.stack(errors).max())


def tensors(output: Any) -> list[Tensor]:
    """The floating point tensors of what a kernel returned."""
    parts = output if isinstance(output, tuple) else (output,)
    every = [torch.as_tensor(part) for part in parts if part is not None]
    return [tensor for tensor in every if tensor.is_floating_point()]
