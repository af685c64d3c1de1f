"""``bench/gpu.sh``: from a plain checkout, part by part, into the folder of the GPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rumfast.bench import kernels

# What a machine with a GPU may lack; jinja2 comes with torch, rich with typer, scipy with scikit-learn.
NOT_THERE = ["torchvision", "PIL", "ffcv", "numba", "matplotlib", "tomli_w", "pyarrow", "ray", "submitit"]
ROOT = Path(kernels.__file__).resolve().parent.parent
STUB = """#!/bin/bash
echo "$PYTHONPATH: $*" >> "$LOG"
case "$*" in
  *get_device_name*) echo "NVIDIA H100 80GB HBM3" ;;
  *bench.builds*) exit 3 ;;
  *-m\\ pytest*) echo "7 passed" ;;
  *bench\\ train*) sleep "${TRAIN_SECONDS:-0}" ;;
  *rumfast.cli*) echo "| a table |" ;;
esac
"""


def gpu(checkout, *arguments, **environment):
    """Run a checkout's bench/gpu.sh, not as on CI, where optional packages may not be missing."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "CI")}
    return subprocess.run(
        [checkout / "bench" / "gpu.sh", *arguments],
        env=inherited | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_dry_run_tries_everything_on_a_cpu(tmp_path):
    checkout, out = tmp_path / "checkout", tmp_path / "out"
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for folder in ("rumfast", "kernels", "cli", "bench", "tests"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", checkout)
    backend = checkout / "kernels" / "backend.py"
    marked = "\nimport sys\nprint('not the installed package', file=sys.stderr)\n"
    backend.write_text(backend.read_text() + marked)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({NOT_THERE}))\n")
    parts = ("builds", "tests", "kernels", "loader", "train", "accuracy", "memorization")
    done = gpu(checkout, "--dry-run", "--out", out, *parts, PYTHONPATH=str(bare))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not the installed package" in done.stderr and "accuracy is not compared" in done.stderr
    suites = {f"{part}.{end}" for part in ("kernels", "loader", "train") for end in ("json", "md")}
    files = {"builds.json", "tests.txt", "memorization.json", "sweep"} | suites
    assert {path.name for path in out.iterdir()} == files
    assert json.loads((out / "memorization.json").read_text())["members"] == 4
    (first, *_) = json.loads((out / "loader.json").read_text())["cases"]
    assert first["peers"]["DataLoader, 0 workers"] == {"missing": "torchvision is not installed"}
    assert json.loads((out / "kernels.json").read_text())["quick"]
    assert " passed" in (out / "tests.txt").read_text()
    assert not (checkout / "bench" / "results").exists()


@pytest.fixture
def stubbed(tmp_path):
    """A checkout of the script alone, and an interpreter that pretends to have a GPU."""
    (tmp_path / "bench").mkdir()
    shutil.copy(ROOT / "bench" / "gpu.sh", tmp_path / "bench")
    python = tmp_path / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    return tmp_path, {"PYTHON": str(python), "LOG": str(tmp_path / "log"), "PYTHONPATH": "/else"}


def test_a_part_that_fails_stops_no_other(stubbed):
    checkout, environment = stubbed
    done = gpu(checkout, **environment)
    assert done.returncode == 1 and "failed: builds (exit status 3)" in done.stderr
    results = checkout / "bench" / "results" / "nvidia-h100-80gb-hbm3"
    assert (results / "tests.txt").read_text() == "7 passed\n"
    assert (results / "kernels.md").read_text() == "| a table |\n"
    calls = Path(environment["LOG"]).read_text()
    assert f"-m rumfast.cli bench kernels --save {results}/kernels.json" in calls
    assert "-m gpu tests/kernels tests/loaders tests/test_stepping.py" in calls
    assert "--quick" not in calls
    site = calls.split(":")[0]
    assert calls.startswith(f"{site}:/else: ") and not Path(site).exists()


def test_a_part_ends_at_its_limit(stubbed):
    checkout, environment = stubbed
    results = checkout / "bench" / "results" / "nvidia-h100-80gb-hbm3"
    results.mkdir(parents=True)
    (results / "train.md").write_text("an earlier table")
    done = gpu(checkout, "train", "unlearn", LIMIT="1", TRAIN_SECONDS="60", **environment)
    assert done.returncode == 1 and "failed: train (exit status 124)" in done.stderr
    assert "unlearn took" in done.stdout and "failed: unlearn" not in done.stderr
    assert {path.name: path.read_text() for path in results.iterdir()} == {
        "train.md": "an earlier table",
        "unlearn.md": "| a table |\n",
    }


def test_without_a_gpu_or_with_an_unknown_part_nothing_runs(stubbed):
    checkout, environment = stubbed
    done = gpu(checkout, "speed", **environment)
    assert done.returncode == 2 and "gpu.sh: got speed" in done.stderr
    assert not (checkout / "bench" / "results").exists()
    done = gpu(checkout, "builds")
    assert done.returncode == 1 and "--dry-run" in done.stderr
    assert not (checkout / "bench" / "results").exists()
