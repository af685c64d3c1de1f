"""Ctrl-C, SIGTERM and Slurm's SIGUSR2 leave a store that resumes; a second one ends at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rumfast.store import content_digest

RECIPE = """
plans = [{ name = "none", steps = "none" }]
[data]
path = "digits"
train_examples = 200
test_examples = 50
[train]
arch = "resnet8"
width = 4
epochs = 40
precision = "fp32"
[forget]
request = "memorization:high:10"
refine = "random"
[sweep]
members = 8
"""
MAIN = "from rumfast.cli import main; main()"
# Stopping the workers takes a minute, as where a disk hangs.
SLOW_TO_STOP = """
import time
from rumfast.sweeps.engines.local import LocalEngine
def hang(engine, missing, slots, threads):
    open("stopping", "w").close()
    time.sleep(60)
LocalEngine._abort = hang
"""


def hear_interrupts():
    """A shell without job control starts its background jobs deaf to Ctrl-C, and they pass that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def spawned():
    """Ids of processes to kill should the test fail."""
    pids = []
    yield pids
    for pid in filter(alive, pids):
        os.kill(pid, signal.SIGKILL)


def start(folder, code=MAIN, recipe=RECIPE):
    (folder / "recipe.toml").write_text(recipe)
    arguments = ["sweep", "run", "recipe.toml", "--out", "run", "--workers", "1", "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )


def wait_until(happened, process):
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)


def done(folder):
    return sorted((folder / "run/sweep").glob("members/[0-9]*.npz"))


def children(process):
    found = []
    for thread in os.listdir(f"/proc/{process.pid}/task"):
        with open(f"/proc/{process.pid}/task/{thread}/children") as file:
            found += map(int, file.read().split())
    return found


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.faults
@pytest.mark.slow
def test_each_signal_ends_a_sweep_with_130_and_the_next_run_goes_on(tmp_path, rumfast, monkeypatch, spawned):
    kept = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        process = start(tmp_path)
        spawned.append(process.pid)
        wait_until(lambda: len(done(tmp_path)) > len(kept), process)
        workers = children(process)
        spawned += workers
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 130, f"{number!r}: {stderr}"
        assert "interrupted" in stderr and "resumes" in stderr and "Traceback" not in stderr
        assert workers and not any(alive(pid) for pid in workers)
        assert not list((tmp_path / "run").rglob(".partial*"))
        now = {path.name: content_digest(path) for path in done(tmp_path)}
        assert len(kept) < len(now) < 8 and now.items() >= kept.items()
        kept.update(now)
    monkeypatch.chdir(tmp_path)
    assert rumfast("sweep", "run", "--out", "run", "--workers", 1, "--device", "cpu").code == 0
    assert len(done(tmp_path)) == 8
    assert {path.name: content_digest(path) for path in done(tmp_path)}.items() >= kept.items()


@pytest.mark.faults
@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_though_the_first_is_still_being_dealt_with(tmp_path, spawned):
    minutes = RECIPE.replace("epochs = 40", "epochs = 40000")  # of each member
    process = start(tmp_path, SLOW_TO_STOP + MAIN, minutes)
    spawned.append(process.pid)
    wait_until(lambda: list((tmp_path / "run/sweep").glob("journal/*")), process)
    workers = children(process)
    spawned += workers
    process.send_signal(signal.SIGINT)
    wait_until((tmp_path / "stopping").exists, process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(timeout=10)
    assert process.returncode == 130 and time.monotonic() - began < 2
    while any(alive(pid) for pid in workers):
        assert time.monotonic() - began < 10, "a worker trains on, seen by nobody"
        time.sleep(0.01)
    process.communicate()
    assert workers and not done(tmp_path)
