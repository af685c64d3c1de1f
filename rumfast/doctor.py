"""What this machine can do, and what to install for the rest."""

import importlib.util
import shutil
from typing import NamedTuple

import torch

from rumfast.data.beton import FFCV_INSTALL
from rumfast.runtime import environment, pick_device, pick_precision, usable_cores


class Check(NamedTuple):
    """One line of the doctor's report."""

    what: str
    found: str
    ok: bool
    advice: str = ""


def examine() -> list[Check]:
    """Look at versions, device, precision and optional parts."""
    found, device = environment(), pick_device()
    precision = str(pick_precision("auto", device)).removeprefix("torch.")
    where = str(found["gpu"]) if device.type == "cuda" else str(found["cpu"])
    workers = torch.cuda.device_count() if device.type == "cuda" else usable_cores()
    free = shutil.disk_usage(".").free / 2**30
    return [
        Check("rumfast", str(found["rumfast"]), True),
        Check("python, torch, triton", f"{found['python']}, {found['torch']}, {found['triton']}", True),
        Check("device", where, True, "" if device.type == "cuda" else "full-size recipes want a CUDA GPU"),
        Check("precision", f"{precision}, chosen by --device {device.type} where a recipe says auto", True),
        Check("training step", _training_step(device), True),
        Check("sweep workers", f"{workers} processes", True),
        _optional(
            "ffcv",
            "needed by 'rumfast data pack' and the streaming loader",
            FFCV_INSTALL,
        ),
        _optional("numba", "augments many times as fast on a CPU", "pip install numba"),
        _optional("pyarrow", "needed by parquet: sources", "pip install pyarrow"),
        Check("free disk here", f"{free:.0f} GiB", free > 1, "" if free > 1 else "free at least 1 GiB"),
    ]


def _training_step(device: torch.device) -> str:
    """The path that a recipe's ``auto`` settings take here."""
    if device.type == "cuda":
        return "channels-last, compiled, recorded as CUDA graphs"
    capabilities = torch.cpu.get_capabilities()
    instructions = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
    found = [name for key, name in instructions.items() if capabilities.get(key)]
    by = f" by {found[0]}" if found else ": bf16 would be emulated"
    precision = str(pick_precision("auto", device)).removeprefix("torch.")
    threads = torch.get_num_threads()
    return f"channels-last {precision}{by}, eager, {threads} threads (1 for small steps and in sweep workers)"


def _optional(package: str, purpose: str, install: str) -> Check:
    present = importlib.util.find_spec(package) is not None
    return Check(
        package, "installed" if present else f"missing: {purpose}", present, "" if present else install
    )
