"""``bench/gpu.sh``: from a plain checkout, rung by rung, into one flat folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from rumfast.bench import kernels
from rumfast.bench.readme import evaluation_table
from rumfast.bench.rungs import FILES, RUNGS
from rumfast.score_files import read_scores
from rumfast.store import read_json, read_npz

ROOT = Path(kernels.__file__).resolve().parent.parent
# What a bare torch machine lacks; pydantic and tomli-w come there as wheels, mpmath and Pillow with others.
NOT_THERE = [
    "torchvision", "ffcv", "ray", "submitit", "hypothesis", "jsonschema", "pytest_timeout", "pytest_benchmark"
]  # fmt: skip
MEGABYTES = 16 << 20
SMOKE = """
import os, subprocess, time
from pathlib import Path

HERE = Path(os.environ["HERE"])

def waits():
    if (HERE / "quick").exists():
        return 4
    child = subprocess.Popen(["sleep", "300"])
    (HERE / "child").write_text(str(child.pid))
    time.sleep(300)

def dies():
    if not (HERE / "quick").exists():
        os.kill(os.getpid(), 11)

def fails():
    if not (HERE / "quick").exists():
        raise ValueError("first" + chr(10) + "second")

def cases(dry):
    calls = {"one": lambda: 1, "two": lambda: 2, "waits": waits, "dies": dies, "fails": fails}
    return {name: calls[name] for name in os.environ["CASES"].split()}
"""


def gpu(checkout, *arguments, **environment):
    """Run a checkout's bench/gpu.sh, not as on CI, where optional packages may not be missing."""
    return subprocess.run(
        [checkout / "bench" / "gpu.sh", *map(str, arguments)],
        env=bare(checkout, **environment),
        capture_output=True,
        text=True,
    )


def bare(checkout, **environment):
    inherited = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "CI")}
    own = {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": f"{checkout}.cache"}
    return inherited | own | {"HERE": str(checkout), "PYTHONPATH": ""} | environment


def copied(checkout):
    """What a checkout holds, without its history and its records."""
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for folder in ("rumfast", "kernels", "cli", "bench", "tests"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", checkout)
    return checkout


@pytest.fixture
def checkout(tmp_path):
    """A checkout with two rungs: smoke, of this file's cases, and tests, whose module fails."""
    checkout = copied(tmp_path / "checkout")
    (checkout / "bench" / "smoke.py").write_text(SMOKE)
    (checkout / "bench" / "gpu_tests.py").write_text("raise RuntimeError('no tests')\n")
    rungs = checkout / "bench" / "rungs.py"
    few = 'RUNGS = {name: RUNGS[name] for name in ("smoke", "tests")}\n\n\ndef main() -> int:'
    rungs.write_text(rungs.read_text().replace("def main() -> int:", few))
    return checkout


def ledger(out):
    return json.loads((out / "rungs.json").read_text())["rungs"]


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=120.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dry_run_climbs_every_rung_on_a_bare_machine(tmp_path):
    checkout, out, hidden = copied(tmp_path / "checkout"), tmp_path / "out", tmp_path / "hidden"
    backend = checkout / "kernels" / "backend.py"
    marked = "\nimport sys\nprint('not the installed package', file=sys.stderr)\n"
    backend.write_text(backend.read_text() + marked)
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({NOT_THERE}))\n"
    )
    call = ("next", "--dry-run", "--seconds", 600, "--out", out)
    done = gpu(checkout, *call, PYTHONPATH=str(hidden), COMMIT="abc123")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not the installed package" in done.stderr
    rungs = ledger(out)
    assert list(rungs) == list(RUNGS) and {rung["state"] for rung in rungs.values()} == {"complete"}
    (missing,) = rungs["accuracy"]["cases"].values()
    assert missing["status"] == "missing" and "gpu.sh: accuracy left out digits.toml, seed 0" in done.stdout
    assert {case["commit"] for rung in rungs.values() for case in rung["cases"].values()} == {"abc123"}
    files = {path.name: path.stat().st_size for path in out.iterdir()}
    assert set(files) == set(FILES) - {"accuracy.json"} and max(files.values()) < MEGABYTES
    record = json.loads((out / "bench.json").read_text())
    assert record["quick"] and record["commit"] == "abc123"
    assert set(record["suites"]) == {case["suite"] for case in record["cases"]} == {
        "kernels", "loader", "train", "sweep", "unlearn",
    }  # fmt: skip
    sweep = json.loads((out / "memorization.json").read_text())
    scores = read_scores(out / "scores.npz", read_npz(out / "scores.npz")["label"])
    assert sweep["members"] == 6 and set(scores.included_N + scores.excluded_N) == {6}
    plans = read_json(out / "plans.json")
    assert len(plans["plans"]) == 2 and "| `finetune` |" in evaluation_table(plans)
    assert plans["sweep"]["members"] == 6 and str(tmp_path) not in (out / "plans.json").read_text()
    assert not (checkout / "bench" / "results").exists()
    before = (out / "rungs.json").read_bytes()
    again = gpu(checkout, *call, PYTHONPATH=str(hidden))
    assert again.returncode == 0 and "every rung is complete" in again.stdout
    assert (out / "rungs.json").read_bytes() == before


@pytest.mark.slow
def test_sigterm_in_the_middle_loses_one_case(checkout):
    out = checkout / "out"
    call = [checkout / "bench" / "gpu.sh", "next", "--dry-run", "--out", out]
    environment = bare(checkout, CASES="one two waits")
    with subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL) as climb:
        wait_for((checkout / "child").exists)
        climb.send_signal(signal.SIGTERM)
        assert climb.wait(30) == 128 + signal.SIGTERM
    assert not alive(int((checkout / "child").read_text()))
    found = ledger(out)["smoke"]
    assert found["state"] == "partial" and list(found["cases"]) == ["one", "two"]
    (checkout / "quick").touch()
    done = gpu(checkout, "next", "--dry-run", "--out", out, CASES="one two waits")
    after = ledger(out)["smoke"]
    assert after["state"] == "complete" and after["cases"]["waits"]["result"] == 4
    assert {name: after["cases"][name] for name in found["cases"]} == found["cases"]
    assert "smoke: two" not in done.stdout


@pytest.mark.slow
def test_what_fails_or_dies_stops_nothing_else_and_is_tried_again(checkout):
    out = checkout / "out"
    cases = {"CASES": "dies fails one"}
    done = gpu(checkout, "next", "--dry-run", "--out", out, **cases)
    assert done.returncode == 1
    assert "smoke failed: dies: the process ended with exit status -11" in done.stderr
    assert "smoke failed: fails: ValueError: first; second" in done.stderr
    assert "tests failed: setup: RuntimeError: no tests" in done.stderr
    found = ledger(out)
    assert found["smoke"]["cases"]["one"]["status"] == "ok" and found["smoke"]["state"] == "failed"
    (checkout / "quick").touch()
    gpu(checkout, "next", "--dry-run", "--out", out, **cases)
    after = ledger(out)["smoke"]
    assert after["state"] == "complete" and after["cases"]["one"] == found["smoke"]["cases"]["one"]


@pytest.mark.slow
def test_a_rung_ends_with_the_climb(checkout):
    out, began = checkout / "out", time.monotonic()
    done = gpu(checkout, "smoke", "--dry-run", "--out", out, "--seconds", 40, CASES="one waits two")
    assert time.monotonic() - began < 60 and done.returncode == 0
    assert not alive(int((checkout / "child").read_text()))
    assert list(ledger(out)["smoke"]["cases"]) == ["one"] and ledger(out)["smoke"]["state"] == "partial"


@pytest.mark.slow
def test_wheels_are_found_without_being_installed(checkout):
    wheels = checkout / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "value = 5\n")
        info = "carried-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    smoke = checkout / "bench" / "smoke.py"
    smoke.write_text("import carried\n\ndef cases(dry):\n    return {'one': lambda: carried.value}\n")
    out = checkout / "out"
    done = gpu(checkout, "smoke", "--dry-run", "--out", out, WHEELS=str(wheels))
    assert done.returncode == 0, done.stderr
    assert ledger(out)["smoke"]["cases"]["one"]["result"] == 5
    other = checkout / "other"
    assert gpu(checkout, "smoke", "--dry-run", "--out", other).returncode == 0
    assert ledger(other)["smoke"]["cases"]["setup"]["status"] == "missing"


@pytest.mark.slow
def test_without_a_gpu_or_with_an_unknown_rung_nothing_runs(checkout):
    done = gpu(checkout, "speed")
    assert done.returncode == 2 and "invalid choice: 'speed'" in done.stderr
    assert done.stderr.startswith("usage: gpu.sh")
    assert gpu(checkout).returncode == 2 and gpu(checkout, "next", "smoke").returncode == 2
    done = gpu(checkout, "next", "--out", checkout / "out")
    assert done.returncode == 1 and "--dry-run" in done.stderr
    assert not (checkout / "out").exists() and not (checkout / "bench" / "results").exists()
