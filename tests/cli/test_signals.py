"""Ctrl-C, SIGTERM and a closed terminal leave a store that resumes."""

import signal
import subprocess
import sys
import time

import pytest

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
request = "random:10"
refine = "random"
[sweep]
members = 4
[evaluate]
seeds = 6
oracles = 3
"""


def hear_interrupts():
    """A shell without job control starts its background jobs deaf to Ctrl-C, and they pass that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_exits_130_without_leftovers_and_resumes(number, tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    command = [sys.executable, "-m", "rumfast.cli", "train", "recipe.toml", "--out", "run", "--workers", "1"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/original/000").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and "resumes" in stderr and "Traceback" not in stderr
    kept = sorted(path.name for path in (tmp_path / "run/original").glob("[0-9]*"))
    assert 1 <= len(kept) < 6
    assert not list((tmp_path / "run").rglob(".partial*"))
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert len(list((tmp_path / "run/original").glob("[0-9]*"))) == 6
