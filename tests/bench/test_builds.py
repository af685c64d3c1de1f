"""Every Triton kernel builds ahead of time for every target, and keeps to its registers."""

import importlib
import os
import pkgutil
import subprocess
import sys

import pytest

import rumfast.kernels
from rumfast.bench import builds
from rumfast.bench.builds import BUILDS, TARGETS
from rumfast.store import read_json


@pytest.mark.slow
def test_all_kernels_build_for_all_targets_without_a_spill(tmp_path):
    names, environment = list(BUILDS), {**os.environ, "TRITON_INTERPRET": "0"}
    jobs = []
    for index, part in enumerate((names[::2], names[1::2])):
        chosen = [word for name in part for word in ("--kernel", name)]
        command = [
            sys.executable,
            "-m",
            "rumfast.bench.builds",
            *chosen,
            "--save",
            str(tmp_path / f"{index}.json"),
        ]
        jobs.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    for job in jobs:
        output, _ = job.communicate()
        assert job.returncode == 0, output.decode()
    rows = [row for index in range(2) for row in read_json(tmp_path / f"{index}.json")["builds"]]
    assert {(row["kernel"], row["target"]) for row in rows} == {(n, t) for n in names for t in TARGETS}
    assert all(row["spills"] == 0 and 0 < row["registers"] <= 255 for row in rows)


def test_no_kernel_is_left_out():
    defined = set()
    for module in pkgutil.iter_modules(rumfast.kernels.__path__):
        contents = vars(importlib.import_module(f"rumfast.kernels.{module.name}"))
        defined |= {value.__name__ for name, value in contents.items() if name.endswith("_kernel")}
    assert len(defined) >= 8 and defined == {build.kernel.__name__ for build in BUILDS.values()}


def test_a_spill_is_a_failure(monkeypatch, capsys):
    row = {"kernel": "x", "target": "sm_90", "registers": 255, "shared": 0, "spills": 4, "options": {}}
    monkeypatch.setattr(builds, "build", lambda name, target: row)
    monkeypatch.setattr(sys, "argv", ["builds", "--kernel", "margins C=10"])
    assert builds.main() == 1
    row["spills"] = 0
    assert builds.main() == 0 and "255 registers" in capsys.readouterr().out


def test_spills_are_read_from_amd_assembly():
    listing = """
    .private_segment_fixed_size: 16
    .sgpr_spill_count: 3
    .vgpr_count:     120
    .vgpr_spill_count: 2
    """
    assert builds._amdgcn(listing) == {"registers": 120, "spills": 24, "scalars in lanes": 3}
