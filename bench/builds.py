"""Build every Triton kernel ahead of time, without a GPU: ``python -m rumfast.bench.builds [--save FILE]``.

Each is built for four targets as its launcher would on such a device, and must not spill registers to
memory. Shared memory and spills are in bytes.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rumfast.kernels import augment, centroids, linear_margins, margins, moments, neighbours, pairwise
from rumfast.kernels.backend import power_of_2
from rumfast.store import write_json

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
SCHEMA = "rumfast/builds/1"


class Build(NamedTuple):
    """A kernel at one specialisation.

    Attributes:
        types: each argument as Triton specialises it: its type, ":16" if a multiple of 16 (as contiguous
            tensors give), "1" for a one, None for a tensor that is not given.
        meta: block sizes, flags and launch options as the launcher picks them for a target.
    """

    kernel: Any
    types: tuple[str | None, ...]
    meta: Callable[[str], Mapping[str, Any]]


def _outputs(given: str) -> tuple[str | None, ...]:
    types = ("*fp32:16",) * 6 + ("*i1:16",)
    return tuple(type_ if flag == "1" else None for flag, type_ in zip(given, types, strict=True))


def _margins(classes: int, dtype: str, given: str = "1111111") -> Build:
    strides = ("i64:16", "i64" if classes % 16 else "i64:16", "1")
    types = (f"*{dtype}:16", "*i64:16", *strides, "i32", "i32", "i32", *_outputs(given))
    return Build(margins._margins_kernel, types, lambda target: margins.meta(classes))


def _linear(classes: int, width: int, dtype: torch.dtype, given: str = "1111111") -> Build:
    name = {torch.float32: "*fp32:16", torch.bfloat16: "*bf16:16"}[dtype]
    stride = "i64" if width % 16 else "i64:16"
    strides = (stride, stride, "1", stride, stride, "1", "i64", "1")
    types = (
        name,
        name,
        name,
        "*i64:16",
        *strides,
        "i32",
        "i32",
        stride.replace("64", "32"),
        *_outputs(given),
    )
    return Build(
        linear_margins._linear_margins_kernel,
        types,
        lambda target: (
            linear_margins.meta(classes, width, dtype) | {"PRECISION": "ieee" if _amd(target) else "tf32x3"}
        ),
    )


def _pair_sums(fast: bool, symmetric: bool, bands: int = 0) -> Build:
    types = (*("*fp16:16",) * 2, *("*fp32:16",) * 3, "*fp64:16", "i32", "i32", *("i32:16",) * 3, "i32", "i32")
    flags = {
        "SYMMETRIC": symmetric,
        "DISTANCE": not bands,
        "BANDS": bands,
        "SQUARINGS": sum(1 << 2 * band for band in range(1, bands)),
        "SPLIT": not fast,
        "OUTPUTS": power_of_2(max(1, bands)),
        "GROUP": 16,
    }
    return Build(
        pairwise.pair_sums_kernel,
        types,
        lambda target: pairwise.meta(fast, target == "sm_90" and not bands, _amd(target)) | flags,
    )


def _nearest(slots: int, symmetric: bool) -> Build:
    types = (*("*fp16:16",) * 2, *("*fp32:16",) * 2, "*i32:16", "*fp32:16", *("i32:16",) * 3, "i32")
    flags = {"SYMMETRIC": symmetric, "SLOTS": slots, "SPLIT": True}
    return Build(
        neighbours.nearest_kernel, types, lambda target: neighbours.meta(slots, _amd(target)) | flags
    )


def _tiles(dtype: str, width: int, sorted_first: bool) -> Build:
    exact, order = torch.float32, "*i64:16" if sorted_first else None
    types = (f"*{dtype}:16", "i64:16", "1", order, *("*i64:16",) * 3, *("*fp32:16",) * 2, "i32", "i32:16")
    return Build(
        moments._tiles_kernel, types, lambda target: moments.meta(width, exact) | {"EXACT": tl.float32}
    )


def _merge(width: int, sorted_first: bool) -> Build:
    exact, order = torch.float32, "*i64:16" if sorted_first else None
    types = (
        "*fp32:16",
        "i64:16",
        "1",
        order,
        *("*i64:16",) * 2,
        *("*fp32:16",) * 2,
        *("*fp64:16",) * 2,
        "i32:16",
    )
    flags = {"BLOCK_T": 64, "BLOCK_D": 32, "EXACT": tl.float32, "num_warps": 8}
    return Build(moments._merge_kernel, types, lambda target: moments.meta(width, exact) | flags)


def _distances(width: int, grouped: bool) -> Build:
    group = "*i64:16" if grouped else None
    types = ("*fp32:16", "i64:16", "1", "*fp32:16", group, "*fp32:16", "i32", "i32", "i32:16")
    return Build(
        centroids._distances_kernel,
        types,
        lambda target: centroids.meta(width, torch.float32) | {"EXACT": tl.float32},
    )


def _augment(out: str, flip: bool, padding: int) -> Build:
    strides = ("i64:16", "i64:16", "i64", "1")
    types = ("*u8:16", *strides, "i32", "*i64:16", "i64", "i64", *("*fp32:16",) * 2, f"*{out}:16")
    flags = {"HEIGHT": 32, "WIDTH": 32, "PADDING": padding, "FLIP": flip, "GATHER": True}
    return Build(
        augment._augment_kernel,
        types,
        lambda target: augment.meta(32, 32) | flags | {"enable_fp_fusion": False},
    )


def _amd(target: str) -> bool:
    return target.startswith("gfx")


BUILDS: dict[str, Build] = {
    "margins C=10": _margins(10, "fp32"),
    "margins C=100, two outputs": _margins(100, "bf16", "1000001"),
    "margins C=1000": _margins(1000, "fp32"),
    "margins C=131072": _margins(131072, "fp16"),
    "linear_margins fp32": _linear(1000, 512, torch.float32),
    "linear_margins fp32, ragged": _linear(1000, 500, torch.float32),
    "linear_margins bf16": _linear(1000, 512, torch.bfloat16),
    "linear_margins bf16, ragged": _linear(1000, 500, torch.bfloat16),
    "linear_margins bf16 C=10": _linear(10, 64, torch.bfloat16, "1000000"),
    "pair_sums, distances": _pair_sums(fast=False, symmetric=False),
    "pair_sums, distances, fast": _pair_sums(fast=True, symmetric=False),
    "pair_sums, distances, X = Y": _pair_sums(fast=True, symmetric=True),
    "pair_sums, five bandwidths": _pair_sums(fast=False, symmetric=True, bands=5),
    "nearest k=10": _nearest(16, symmetric=False),
    "nearest k=10, X = Y": _nearest(16, symmetric=True),
    "nearest k=100, X = Y": _nearest(128, symmetric=True),
    "moments, tiles": _tiles("bf16", 512, sorted_first=True),
    "moments, tiles of one group": _tiles("fp32", 512, sorted_first=False),
    "moments, merge": _merge(512, sorted_first=True),
    "moments, merge of one group": _merge(512, sorted_first=False),
    "centroid distances": _distances(512, grouped=True),
    "augment, crop and flip": _augment("bf16", flip=True, padding=4),
    "augment, normalise": _augment("fp32", flip=False, padding=0),
}


def build(name: str, target: str) -> dict[str, Any]:
    """Build one kernel for one target: registers per thread, shared memory and spills, both in bytes."""
    kernel, types, meta = BUILDS[name]
    chosen = dict(meta(target))
    options = {key: chosen.pop(key) for key in OPTIONS if key in chosen}
    names = [argument for argument in kernel.arg_names if argument not in chosen]
    signature, attributes = dict.fromkeys(chosen, "constexpr"), {}
    for argument, type_ in zip(names, types, strict=True):
        type_name, _, hint = (type_ or "").partition(":")
        signature[argument] = "constexpr" if type_ in (None, "1") else type_name
        if type_ in (None, "1"):
            chosen[argument] = 1 if type_ else None
        if hint:
            attributes[(kernel.arg_names.index(argument),)] = [["tt.divisibility", 16]]
    ordered = {argument: signature[argument] for argument in kernel.arg_names}
    source = ASTSource(kernel, ordered, constexprs=chosen, attrs=attributes)
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    used = _amdgcn(compiled.asm["amdgcn"]) if "amdgcn" in compiled.asm else _cubin(compiled.asm["cubin"])
    return {"kernel": name, "target": target, **used, "shared": compiled.metadata.shared, "options": options}


def _cubin(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.backends.__file__).parent / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}
    return {"registers": found["REG"], "spills": found["STACK"] + found["LOCAL"]}


def _amdgcn(assembly: str) -> dict[str, int]:
    # Scalars that do not fit are kept in lanes of vector registers: no memory, but worth knowing.
    found = {key: int(value) for key, value in re.findall(r"\.(\w+_(?:count|size)): +(\d+)", assembly)}
    return {
        "registers": found["vgpr_count"],
        "spills": 4 * found["vgpr_spill_count"] + found["private_segment_fixed_size"],
        "scalars in lanes": found["sgpr_spill_count"],
    }


ROW = "{kernel:28} {target:7} {registers:4} registers {shared:6} B shared {spills:4} B spilled"


def main() -> int:
    """Print a row for each build; 1 if one spills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path, help="write the record as JSON")
    parser.add_argument("--kernel", choices=list(BUILDS), action="append", help="this one only; repeatable")
    arguments = parser.parse_args()
    built = []
    for name in arguments.kernel or BUILDS:
        for target in TARGETS:
            built.append(build(name, target))
            print(ROW.format(**built[-1]), flush=True)
    if arguments.save:
        write_json(arguments.save, {"schema": SCHEMA, "triton": triton.__version__, "builds": built})
    return int(any(row["spills"] for row in built))


if __name__ == "__main__":
    sys.exit(main())
