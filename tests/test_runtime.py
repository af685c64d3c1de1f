import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch

from rumfast.errors import UsageError
from rumfast.runtime import derive_seed, environment, generator, pick_device, pick_precision, usable_cores

CPU = torch.device("cpu")


def test_device_auto_and_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda" and pick_device("cuda:1").index == 1
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "mps"])
def test_a_device_that_does_not_exist_is_refused(name):
    with pytest.raises(UsageError, match=f"device: got '{name}', expected auto, cpu, cuda or cuda:INDEX"):
        pick_device(name)


def test_cuda_without_a_gpu_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device; use --device cpu"):
        pick_device("cuda")


@pytest.mark.parametrize(
    "capabilities, expected",
    [
        ({}, torch.float32),
        ({"avx2": True}, torch.float32),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": False}, torch.float32),
    ],
)
def test_auto_precision_is_bf16_only_where_it_is_native(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert pick_precision("auto", CPU) == expected
    assert pick_precision("fp32", CPU) == torch.float32 and pick_precision("bf16", CPU) == torch.bfloat16


def test_auto_precision_on_cuda_asks_for_native_support(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: asked.append(how) or False)
    assert pick_precision("auto", torch.device("cuda")) == torch.float32
    assert asked == [{"including_emulation": False}]


def test_seeds_are_a_fixed_hash_and_never_collide_as_sums():
    digest = hashlib.sha256(json.dumps(["member", 0, 1]).encode()).digest()
    assert derive_seed("member", 0, 1) == int.from_bytes(digest[:8], "little") // 2
    keys = [(kind, a, b) for kind in ("weights", "order") for a in range(40) for b in range(40)]
    seeds = {derive_seed(*key) for key in keys}
    assert len(seeds) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("a", "b") != derive_seed("ab") and derive_seed(1) != derive_seed("1")


def test_generators_repeat_and_leave_the_global_one_alone():
    before = torch.get_rng_state()
    first, again, other = (torch.rand(4, generator=generator("x", seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_usable_cores_are_those_of_the_affinity_mask():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from rumfast.runtime import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert usable_cores() == len(os.sched_getaffinity(0))


def test_environment_names_versions_and_hardware():
    found = environment()
    assert found["torch"] == torch.__version__ and f"{usable_cores()} cores" in str(found["cpu"])
    assert (found["gpu"] is None) == (not torch.cuda.is_available())
    assert found["bf16"] in ("native", "emulated")
    json.dumps(found, allow_nan=False)


def test_cpu_threads_are_set_for_the_block_alone():
    from rumfast.runtime import cpu_threads

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), cpu_threads(1):
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
