"""Where and how numbers are computed: device, precision, cores, seeds, and a record of all of it."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rumfast.errors import UsageError


def pick_device(name: str = "auto") -> torch.device:
    """Return the torch device called ``name``; ``auto`` takes a CUDA device where there is one.

    Raises:
        UsageError: the device is unknown or not present.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device: got {name!r}, expected auto, cpu, cuda or cuda:INDEX") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device: got {name!r}, but torch sees no CUDA device; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device: got {name!r}, expected auto, cpu, cuda or cuda:INDEX")
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the autocast dtype for ``name`` (auto, fp32, bf16) on ``device``.

    ``auto`` is bf16 where the hardware multiplies it natively (CUDA from Ampere on, CPUs with AMX or
    AVX512-BF16) and fp32 elsewhere, because emulated bf16 is slower than fp32.
    """
    if name == "fp32":
        return torch.float32
    if name == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return torch.bfloat16 if native else torch.float32


def device_lost() -> bool:
    """True if this process uses CUDA and gets nothing but errors from it, as after an illegal access."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False


def resolve_precision(name: str, device: str = "auto") -> str:
    """Name of the dtype that ``name`` means; the device is looked at only where that decides.

    A machine that submits to a cluster need not have the devices that train there.
    """
    where = pick_device(device) if name == "auto" else torch.device("cpu")
    return str(pick_precision(name, where))


def usable_cores() -> int:
    """Return the number of CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Multiply float32 in float32 on CUDA within the block.

    Elsewhere torch lets cuDNN round the operands of float32 convolutions to TF32, which keeps 10 of 23 bits:
    a relative error of 5e-4 a product, in which small differences of gradients are lost.
    """
    with ExitStack() as stack:
        backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
        for backend in backends:
            stack.callback(setattr, backend, "allow_tf32", backend.allow_tf32)
            backend.allow_tf32 = False
        yield


def derive_seed(*keys: str | int) -> int:
    """Hash ``keys`` to a seed in [0, 2⁶³), so that seeds never collide as sums like ``seed + epoch`` do.

    >>> derive_seed("member", 0, 1) == derive_seed("member", 1, 0)
    False
    """
    digest = hashlib.sha256(json.dumps(keys).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*keys: str | int) -> torch.Generator:
    """Return a CPU generator seeded by ``keys`` (see :func:`derive_seed`)."""
    return torch.Generator().manual_seed(derive_seed(*keys))


@cache
def environment() -> dict[str, str | int | None]:
    """Describe versions and hardware: what has to be known to read a measured number."""
    cuda = torch.cuda.is_available()
    capabilities = torch.cpu.get_capabilities()
    return {
        "rumfast": _version("rumfast"),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "ffcv": _version("ffcv"),
        "cpu": f"{cpu_name(capabilities)}, {usable_cores()} cores",
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "bf16": "native" if pick_precision("auto", pick_device()) == torch.bfloat16 else "emulated",
    }


def cpu_name(capabilities: Mapping[str, Any]) -> str:
    """The processor's name, with its vector instructions where they are not AVX-512.

    One name covers processors of several generations, and ratios of speed differ between these.

    >>> cpu_name({"cpu_name": "AMD EPYC", "avx512_f": True}), cpu_name({"cpu_name": "AMD EPYC", "avx2": True})
    ('AMD EPYC', 'AMD EPYC AVX2')
    """
    name = str(capabilities.get("cpu_name", platform.processor()))
    able = [key for key, has in capabilities.items() if has is True]
    if any(key.startswith("amx") for key in able):
        return f"{name} AMX"
    return name if any(key.startswith("avx512") for key in able) or "avx2" not in able else f"{name} AVX2"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of a source checkout; None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
