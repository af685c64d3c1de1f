"""NVIDIA's Multi-Process Service (MPS): kernels of several processes side by side on one GPU.

Without it a GPU gives each process its time in turn, and a small network's kernels fill part of the GPU only.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS, VISIBLE = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "CUDA_VISIBLE_DEVICES"
DEFAULT_PIPES = Path("/tmp/nvidia-mps")  # where CUDA looks for a daemon if PIPES is not set
ANSWER_S = 60.0  # that the daemon's commands get

# Waits until its stdin closes, which it does however this process ends; then ends the daemon.
GUARD = f'cat > /dev/null; echo "quit -t 10" | {CONTROL}; rm -rf "$0"'

# Makes a CUDA context, for which the daemon has to start its server.
CLIENT = """
import ctypes, sys
cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
code = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
code = code or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
sys.exit(f"CUDA error {code}" if code else 0)
"""


class MpsUnavailable(Exception):
    """The daemon did not start, or it serves no process."""


def can_start() -> bool:
    """True if MPS is installed and no daemon of the user's own is set or runs at CUDA's default place."""
    return shutil.which(CONTROL) is not None and PIPES not in os.environ and not _default_runs()


def _default_runs() -> bool:
    try:
        process = int((DEFAULT_PIPES / f"{CONTROL}.pid").read_text())
        os.kill(process, 0)
    except PermissionError:
        return True  # another user's, as root's
    except (OSError, ValueError):
        return False
    return True


class MpsDaemon:
    """A private daemon, which ends with :meth:`stop` or with this process.

    Args:
        gpus: that this process sees.

    Attributes:
        variables: what its clients need in their environment.

    Raises:
        MpsUnavailable: says why no process is served; nothing is left behind.
    """

    def __init__(self, gpus: int) -> None:
        root = Path(tempfile.mkdtemp(prefix="rumfast-mps-"))
        self.variables = {PIPES: str(root / "pipe"), LOGS: str(root / "log")}
        for folder in self.variables.values():
            os.mkdir(folder)
        self._environment = os.environ | self.variables
        if all(part.strip().isdigit() for part in os.environ.get(VISIBLE, "-").split(",")):
            # The daemon's clients count its GPUs, not the machine's.
            self.variables[VISIBLE] = ",".join(map(str, range(gpus)))
        # A session of its own: Ctrl-C must not end the daemon before its clients.
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=self._environment,
        )
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        _answer([CONTROL, "-d"], self._environment)
        _answer([sys.executable, "-S", "-c", CLIENT], os.environ | self.variables)
        servers = _answer([CONTROL], self._environment, "get_server_list\n")
        if not any(word.isdigit() for word in servers.split()):
            raise MpsUnavailable(f"it serves no process: {' '.join(servers.split())}")

    def stop(self) -> None:
        """End the daemon, after its clients if they take less than ten seconds."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # the guard goes on by itself
            self._guard.wait(ANSWER_S)


def _answer(command: list[str], environment: dict[str, str], text: str = "") -> str:
    """Run a command and return what it printed, into a file: a daemon would keep a pipe open."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as given:
        given.write(text)
        given.seek(0)
        try:
            done = subprocess.run(
                command, stdin=given, stdout=output, stderr=output, env=environment, timeout=ANSWER_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MpsUnavailable(str(error)) from None
        output.seek(0)
        printed = output.read()
    if done.returncode:
        raise MpsUnavailable(f"{' '.join(printed.split())} (exit status {done.returncode})")
    return printed
