"""Several workers on one GPU, with stand-ins for the GPU, the MPS daemon's program and Python."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_engines import FAKE

from rumfast.sweeps import LocalEngine, Population
from rumfast.sweeps.engines import local, mps

REAL_PYTHON = sys.executable

# Each call writes a line: who, its arguments or its stdin, then the variables that matter.
SAY = (
    'say() { echo "$* | ${CUDA_MPS_PIPE_DIRECTORY-} ${CUDA_MPS_LOG_DIRECTORY-} | ${CUDA_VISIBLE_DEVICES-}'
    ' | ${OMP_NUM_THREADS-}" >> "$MPS_TEST/log"; }\n'
)
CONTROL = f"""#!/bin/sh
{SAY}
if [ "$1" = -d ]; then
    say start; cat "$MPS_TEST/refusal" 2> /dev/null && exit 1
    sleep 60 & echo $! > "$CUDA_MPS_PIPE_DIRECTORY/daemon"; exit 0
fi
read -r text; say "$text"
case "$text" in
    get_server_list) cat "$MPS_TEST/servers" ;;
    quit*) kill "$(cat "$CUDA_MPS_PIPE_DIRECTORY/daemon")" ;;
esac
"""
PYTHON = f"""#!/bin/sh
{SAY}
if [ "$1" = -S ]; then say client; cat "$MPS_TEST/client" 2> /dev/null && exit 1; exit 0; fi
say "worker $4"
exec {REAL_PYTHON} -S "$MPS_TEST/worker.py"
"""
OWNER = """
from rumfast.sweeps.engines.mps import MpsDaemon
daemon = MpsDaemon(2)
print("started", flush=True)
input()
"""


class Stage:
    """The folder that the stand-ins write to and read their behaviour from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def calls(self) -> list[list[str]]:
        log = self.folder / "log"
        return [line.split(" | ") for line in log.read_text().splitlines()] if log.exists() else []

    def names(self) -> list[str]:
        return [call[0] for call in self.calls()]


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Two GPUs and sixteen cores, an MPS that starts, and no daemon of the user's."""
    stage = Stage(tmp_path / "stage")
    stage.folder.mkdir()
    stage.write("nvidia-cuda-mps-control", CONTROL, 0o755)
    stage.write("worker.py", FAKE)
    stage.write("servers", "4711\n")
    monkeypatch.setattr(sys, "executable", str(stage.write("python", PYTHON, 0o755)))
    monkeypatch.setenv("PATH", f"{stage.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("MPS_TEST", str(stage.folder))
    for name in (mps.PIPES, mps.LOGS, mps.VISIBLE, "OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mps, "DEFAULT_PIPES", tmp_path / "nvidia-mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(local, "usable_cores", lambda: 16)
    return stage


@pytest.fixture
def population(tmp_path, spec):
    return Population.create(tmp_path / "sweep", spec)


def test_workers_that_share_a_gpu_run_under_one_private_daemon(stage, population):
    with LocalEngine(4, "cuda") as engine:
        assert engine.workers == 4 and engine.devices == 2
        assert stage.names() == []  # nothing to train yet
        engine.run(population, range(4))
        engine.run(population, range(8))
        folders = stage.calls()[0][1]
        assert all(Path(folder).is_dir() for folder in folders.split())
    names = stage.names()
    assert names[:3] == ["start", "client", "get_server_list"] and names[-1] == "quit -t 10"
    assert sorted(names[3:-1]) == [f"worker cuda:{gpu}" for gpu in (0, 0, 1, 1)]
    assert {call[1] for call in stage.calls()} == {folders}
    assert len(set(folders.split())) == 2 and not Path(folders.split()[0]).parent.exists()
    assert population.done(range(9)) == list(range(8))


def test_the_daemon_ends_after_an_error_too(stage, population):
    with pytest.raises(RuntimeError, match="elsewhere"), LocalEngine(3, "cuda:1") as engine:
        assert engine.devices == 1
        engine.run(population, range(3))
        raise RuntimeError("elsewhere")
    assert stage.names()[-1] == "quit -t 10"
    assert not Path(stage.calls()[0][1].split()[0]).exists()


def test_the_daemon_ends_with_a_process_that_is_killed(stage):
    code = f"import sys; sys.executable = {sys.executable!r}\n" + OWNER
    owner = [REAL_PYTHON, "-c", code]
    with subprocess.Popen(owner, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGKILL)
    root, deadline = Path(stage.calls()[0][1].split()[0]).parent, time.monotonic() + 20
    while root.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert stage.names()[-1] == "quit -t 10" and not root.exists()


@pytest.mark.parametrize(
    "workers, device, wanted", [(2, "cuda", True), (1, "cuda:0", True), (4, "cuda", False), (2, "cpu", True)]
)
def test_no_daemon_starts_without_sharing_or_where_it_is_off(stage, population, workers, device, wanted):
    with LocalEngine(workers, device, mps=wanted) as engine:
        engine.run(population, range(4))
    assert {name.split()[0] for name in stage.names()} == {"worker"} and len(stage.names()) == workers
    assert all(call[1].strip() == "" for call in stage.calls())


def test_a_daemon_of_the_users_is_used_instead(stage, population, monkeypatch):
    monkeypatch.setenv(mps.PIPES, "/their/pipe")
    with LocalEngine(4, "cuda") as engine:
        engine.run(population, range(4))
    assert sorted(stage.names()) == [f"worker cuda:{gpu}" for gpu in (0, 0, 1, 1)]
    assert {call[1].strip() for call in stage.calls()} == {"/their/pipe"}


@pytest.mark.parametrize("alive", [True, False])
def test_a_daemon_at_the_default_place_counts_while_it_lives(stage, population, alive):
    mps.DEFAULT_PIPES.mkdir()
    with subprocess.Popen(["true"]) as gone:
        pass
    pid = os.getpid() if alive else gone.pid
    (mps.DEFAULT_PIPES / "nvidia-cuda-mps-control.pid").write_text(f"{pid}\n")
    with LocalEngine(4, "cuda") as engine:
        engine.run(population, range(4))
    assert ("start" in stage.names()) == (not alive)


@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("refusal", "Permission\ndenied", "Permission denied .exit status 1."),
        ("client", "CUDA error 806", "CUDA error 806"),
        ("servers", "", "it serves no process"),
    ],
)
def test_without_a_daemon_that_serves_the_engine_goes_on_and_says_so_once(
    stage, population, capfd, name, text, reason
):
    stage.write(name, text)
    with LocalEngine(4, "cuda") as engine:
        engine.run(population, range(4))
        assert "quit -t 10" in stage.names()  # at once
        engine.run(population, range(8))
    assert population.done(range(9)) == list(range(8))
    assert stage.names().count("start") == 1
    assert all(call[1].strip() == "" for call in stage.calls() if call[0].startswith("worker"))
    (line,) = capfd.readouterr().err.splitlines()
    assert re.fullmatch(f"rumfast: workers take turns.*MPS did not start: {reason}.*", line)


@pytest.mark.parametrize("visible, of_clients", [("2,3", "0,1"), ("GPU-1a,GPU-2b", "GPU-1a,GPU-2b")])
def test_clients_count_the_daemons_gpus(stage, population, monkeypatch, visible, of_clients):
    """NVIDIA, MPS, appendix on environment variables: the daemon's indices are remapped for its clients."""
    monkeypatch.setenv(mps.VISIBLE, visible)
    with LocalEngine(4, "cuda") as engine:
        engine.run(population, range(4))
    for call in stage.calls():
        assert call[2] == (of_clients if call[0].startswith(("worker", "client")) else visible)


def test_workers_share_the_cores_unless_the_user_says_how(stage, population, monkeypatch):
    def threads(workers, device):
        variables = [slot.variables for slot in LocalEngine(workers, device).slots]
        assert all(each == variables[0] for each in variables) and len(variables) == workers
        return {name: variables[0].get(name) for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")}

    def both(count):
        return {"OMP_NUM_THREADS": count, "TORCHINDUCTOR_COMPILE_THREADS": count}

    assert threads(6, "cuda") == both("2") and threads(40, "cuda") == both("1")
    assert threads(1, "cuda") == both(None)  # all cores
    assert threads(3, "cpu") == {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": None}
    with LocalEngine(4, "cuda", mps=False) as engine:
        engine.run(population, [0])
    assert [call[3] for call in stage.calls()] == ["4"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads(4, "cuda")["OMP_NUM_THREADS"] is None  # hence the user's
