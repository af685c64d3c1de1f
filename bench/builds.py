"""Build every Triton kernel ahead of time, without a GPU: ``python -m rumfast.bench.builds [--save FILE]``.

A case calls a kernel's own launcher with a real caller's shapes, on tensors that take no memory. A stand-in
for Triton's driver names the GPU, so that Triton specialises the arguments (a multiple of 16, a one, a tensor
that is not given) and compiles as it would there; nothing runs. A build must not spill registers to memory.
Shared memory and spills are in bytes; instructions are those of the listing, each
counted once: a warp's, where there are no jumps.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from rumfast.bench import peers
from rumfast.kernels import augment, centroids, linear_margins, margins, moments, neighbours, pairwise
from rumfast.store import read_json, write_json

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
SCHEMA = "rumfast/builds/2"
PROXIES = ("confidence", "max_confidence", "entropy", "correct")  # what the proxy scores of training ask for
GAMMAS = [0.5 / width**2 for width in sorted(peers.BANDWIDTHS, reverse=True)]


class Driver:
    """A driver for launchers and Triton that answers for a GPU that is not there."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target]

    def get_current_device(self) -> int:
        return list(TARGETS).index(self.target)  # Triton keeps what it compiled by the device's number

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def ahead_of_time(target: str) -> Iterator[list[CompiledKernel]]:
    """Compile what is launched inside for ``target``, and run nothing; yields the compiled kernels."""
    launched: list[CompiledKernel] = []
    run = JITFunction.run

    def compile_only(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launched.append(run(kernel, *arguments, grid=grid, warmup=True, **options))

    triton.runtime.driver.set_active(Driver(target))
    try:
        with patch.object(JITFunction, "run", compile_only):
            yield launched
    finally:
        triton.runtime.driver.set_active(None)  # the default again, looked for when it is needed


def _floats(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Not filled and not stored; its address is aligned as CUDA's allocator aligns, a view's as there."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _ids(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.int64, device="meta")


def _margins(logits: Tensor, *outputs: str) -> Callable[[], object]:
    bits = margins.output_bits(outputs or margins.OUTPUTS)
    return lambda: margins._launch(logits, _ids(logits.shape[-2]), bits)


def _linear(points: int, width: int, classes: int, *outputs: str, **kind: Any) -> Callable[[], object]:
    bits = margins.output_bits(outputs or margins.OUTPUTS)
    x_ND, weight_CD, bias_C = (
        _floats(*shape, **kind) for shape in ((points, width), (classes, width), (classes,))
    )
    return lambda: linear_margins._launch(x_ND, weight_CD, bias_C, _ids(points), bits)


def _pair_sums(x: int, y: int | None, *, fast: bool = False, gammas: list[float] | None = None) -> Callable:
    x_ND, y_MD = _floats(x, 512), None if y is None else _floats(y, 512)
    return lambda: pairwise.launch(x_ND, y_MD, gammas or [], not gammas, fast)


def _nearest(x: int, y: int | None, k: int) -> Callable[[], object]:
    x_ND, y_MD = _floats(x, 512), None if y is None else _floats(y, 512)
    return lambda: neighbours.launch(x_ND, y_MD, k)


def _moments(points: int, width: int, groups: int | None = None, **kind: Any) -> Callable[[], object]:
    x_ND, group_N = _floats(points, width, **kind), None if groups is None else _ids(points)
    return lambda: moments._launch(x_ND, group_N, groups or 1)


def _distances(points: int, width: int, groups: int | None = None, **kind: Any) -> Callable[[], object]:
    x_ND, group_N = _floats(points, width, **kind), None if groups is None else _ids(points)
    mean_GD = _floats(groups or 1, width, dtype=torch.float64)
    return lambda: centroids._launch_distances(x_ND, mean_GD, group_N)


def _augment(batch: int | None, dtype: torch.dtype, padding: int = 4) -> Callable[[], object]:
    image_NHWC = torch.empty(50_000 if batch else 8192, 32, 32, 3, dtype=torch.uint8, device="meta")
    id_B, drawn = None if batch is None else _ids(batch), (0, 1, padding > 0, padding)
    return lambda: augment._launch(image_NHWC, id_B, id_B is not None, *drawn, peers.MEAN, peers.STD, dtype)


BF16 = torch.bfloat16
CASES: dict[str, Callable[[], object]] = {
    "margin of members": _margins(_floats(64, 50_000, 10), "margin"),
    "margins of members": _margins(_floats(64, 50_000, 10), "margin", "correct"),
    "margins C=10": _margins(_floats(50_000, 10)),
    "margins C=10, proxies": _margins(_floats(50_000, 10), *PROXIES),
    "margins C=10, gaps between rows": _margins(_floats(50_000, 16)[:, :10]),
    "margins C=10, bf16": _margins(_floats(50_000, 10, dtype=BF16)),
    "margins C=32": _margins(_floats(50_000, 32)),
    "margins C=33": _margins(_floats(50_000, 33)),
    "margin C=100": _margins(_floats(50_000, 100), "margin"),
    "margins C=100": _margins(_floats(50_000, 100)),
    "margins C=255": _margins(_floats(49_999, 255)),
    "margins C=1000": _margins(_floats(50_000, 1000)),
    "margins C=131072": _margins(_floats(8192, 131_072, dtype=torch.float16)),
    "linear_margins C=10": _linear(50_000, 512, 10, "margin"),
    "linear_margins C=100": _linear(50_000, 512, 100),
    "linear_margins fp32": _linear(8192, 512, 131_072, "margin"),
    "linear_margins fp32, ragged": _linear(49_999, 500, 1000),
    "linear_margins bf16": _linear(50_000, 512, 1000, dtype=BF16),
    "linear_margins bf16, ragged": _linear(49_999, 500, 1000, dtype=BF16),
    "linear_margins bf16 C=10": _linear(50_000, 64, 10, "margin", "correct", dtype=BF16),
    "pair_sums": _pair_sums(3000, 47_000),
    "pair_sums, odd counts": _pair_sums(3001, 46_999),
    "pair_sums, X = Y": _pair_sums(50_000, None),
    "pair_sums, fast": _pair_sums(3000, 47_000, fast=True),
    "pair_sums, fast, X = Y": _pair_sums(50_000, None, fast=True),
    "pair_sums, five bandwidths": _pair_sums(3000, 47_000, gammas=GAMMAS),
    "pair_sums, five bandwidths, X = Y": _pair_sums(50_000, None, gammas=GAMMAS),
    "nearest k=10": _nearest(3000, 47_000, 10),
    "nearest k=10, X = Y": _nearest(50_000, None, 10),
    "nearest k=10, odd counts": _nearest(3001, 46_999, 10),
    "nearest k=100, X = Y": _nearest(50_000, None, 100),
    "moments": _moments(45_000, 512),
    "moments bf16": _moments(45_000, 512, dtype=BF16),
    "moments, odd": _moments(44_999, 65),
    "moments of groups": _moments(45_000, 512, 10),
    "moments of groups, bf16": _moments(45_000, 512, 10, dtype=BF16),
    "centroid distances": _distances(50_000, 512),
    "centroid distances, groups": _distances(50_000, 512, 10, dtype=BF16),
    "augment": _augment(256, torch.float32),
    "augment to bf16": _augment(256, BF16),
    "augment to bf16, batch of 254": _augment(254, BF16),
    "normalise": _augment(None, torch.float32, padding=0),
}


def build(case: str, target: str) -> list[dict[str, Any]]:
    """Build the kernels that a case launches for one target: a row for each."""
    with ahead_of_time(target) as launched:
        CASES[case]()
    if not launched:
        raise RuntimeError(f"{case}: no kernel was compiled; unset TRITON_INTERPRET")
    kernels = list(dict.fromkeys(launched))
    return [_row(case if len(kernels) == 1 else f"{case}: {_name(one)}", target, one) for one in kernels]


def _name(kernel: CompiledKernel) -> str:
    return str(kernel.metadata.name).strip("_").removesuffix("_kernel")


def _row(name: str, target: str, kernel: CompiledKernel) -> dict[str, Any]:
    used = _amdgcn(kernel.asm["amdgcn"]) if "amdgcn" in kernel.asm else _cubin(kernel.asm["cubin"])
    options = {key: getattr(kernel.metadata, key, None) for key in OPTIONS}
    return {
        "kernel": name,
        "function": kernel.metadata.name,
        "target": target,
        **used,
        "shared": kernel.metadata.shared,
        "options": {key: value for key, value in options.items() if value is not None},
        "arguments": specialised(kernel),
    }


def specialised(kernel: CompiledKernel) -> str:
    """Each argument as Triton sees it: its constant, or its type and attributes.

    Attributes are 16 for a multiple of 16, and on AMD 32 for a tensor within 2 GB: ``label=*i64:16``.
    """
    source, words = kernel.src, []
    for index, (argument, type_) in enumerate(source.signature.items()):
        if type_ == "constexpr":
            words.append(f"{argument}={source.constants.get((index,))}")
        else:
            attributes = [str(value) for _, value in source.attrs.get((index,), [])]
            name = type_ if isinstance(type_, str) else f"({', '.join(type_)})"
            words.append(f"{argument}={':'.join([name, *attributes])}")
    return " ".join(words)


def _cubin(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.backends.__file__).parent / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run(
            [tool, "--dump-resource-usage", "--dump-sass", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}
    code = instructions(listing)
    return {
        "registers": found["REG"],
        "spills": found["STACK"] + found["LOCAL"],
        "instructions": len(code),
        "jumps": len([one for one in code if re.match(r"(@\S+ +)?(BRA|BRX|CALL|JMP|RET)\b", one)]),
    }


def instructions(listing: str) -> list[str]:
    """The instructions of a SASS listing, without what fills it up: NOPs, and a jump to itself at the end."""
    found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", listing, re.MULTILINE)
    return [text for address, text in found if text not in ("NOP", f"BRA 0x{int(address, 16):x}")]


def _amdgcn(assembly: str) -> dict[str, int]:
    # Scalars that do not fit are kept in lanes of vector registers: no memory, but worth knowing.
    found = {key: int(value) for key, value in re.findall(r"\.(\w+_(?:count|size)): +(\d+)", assembly)}
    return {
        "registers": found["vgpr_count"],
        "spills": 4 * found["vgpr_spill_count"] + found["private_segment_fixed_size"],
        "scalars in lanes": found["sgpr_spill_count"],
    }


ROW = "{kernel:40} {target:7} {registers:4} registers {shared:6} B shared {spills:4} B spilled"


def save(path: Path, built: list[dict[str, Any]]) -> None:
    """Write the record: this version of Triton's builds, beside those of others that ``path`` holds."""
    kept = read_json(path) if path.exists() else {}
    versions = kept["builds"] if kept.get("schema") == SCHEMA else {}
    write_json(path, {"schema": SCHEMA, "builds": versions | {triton.__version__: built}})


def main() -> int:
    """Print a row for each build; 1 if one spills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path, help="write the record as JSON, beside other versions of Triton")
    parser.add_argument("--kernel", choices=list(CASES), action="append", help="this one only; repeatable")
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="this one only; repeatable")
    arguments = parser.parse_args()
    built = []
    for case in arguments.kernel or CASES:
        for target in arguments.target or TARGETS:
            for row in build(case, target):
                built.append(row)
                print(ROW.format(**row), flush=True)
    if arguments.save:
        save(arguments.save, built)
    return int(any(row["spills"] for row in built))


if __name__ == "__main__":
    sys.exit(main())
