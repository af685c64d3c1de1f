"""One split as a .beton file: written by FFCV in a watched child process, read back, verified, renamed."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from rumfast.data.dataset import Examples
from rumfast.data.layout import read_images, read_tables
from rumfast.errors import DataError, StorageError, UsageError

FFCV_INSTALL = "apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev && pip install ffcv"
WRITER = (sys.executable, "-m", "rumfast.data.writer")


def read_beton(path: str | Path) -> Examples:
    """All examples of a beton in id order; DataError, naming the file, if it is truncated or corrupt."""
    tables = read_tables(path)
    return Examples(read_images(tables), tables.label_N)


def write_beton(path: str | Path, examples: Examples, timeout_s: float | None = None) -> None:
    """Write raw RGB images and integer labels; `path` appears complete and verified, or not at all.

    FFCV hangs for ever when a sample cannot be written, so it runs in a child process under a deadline
    (`timeout_s`; None: one minute, and one more per 30 000 examples). Raises UsageError without ffcv,
    StorageError when the writer failed, hung or the disk is full, DataError when the file does not read back
    equal.
    """
    path = Path(path)
    require_ffcv()
    timeout_s = 60 + len(examples) / 500 if timeout_s is None else timeout_s

    def write(temporary: Path) -> None:
        _check_space(path, 2 * examples.image_NHWC.nbytes + 8 * 2**20)
        arrays = temporary.with_suffix(".npz")
        np.savez(arrays, image_NHWC=examples.image_NHWC, label_N=examples.label_N)
        _run_writer(path, [*WRITER, str(arrays), str(temporary)], timeout_s)
        written = read_beton(temporary)
        same_images = np.array_equal(written.image_NHWC, examples.image_NHWC)
        if not same_images or not np.array_equal(written.label_N, examples.label_N):
            raise DataError(f"{path}: what FFCV wrote does not read back equal; nothing was kept")

    commit_file(path, write)


def commit_file(path: Path, write) -> None:
    """Let `write` fill a file in a hidden directory beside `path`, flush it and rename it into place."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory:
            temporary = Path(directory) / path.name
            write(temporary)
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
    except (DataError, StorageError):
        raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror or error})") from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise StorageError(f"{path}: {free >> 20} MiB are free, writing it needs {(needed >> 20) + 1} MiB")


def require_ffcv() -> None:
    """UsageError with the install line where ffcv is missing; ffcv itself is not imported."""
    if importlib.util.find_spec("ffcv") is None:
        raise UsageError(f"packing needs ffcv: {FFCV_INSTALL}")


def _run_writer(path: Path, command: list[str], timeout_s: float) -> None:
    with tempfile.TemporaryFile() as log:
        # A session of its own: FFCV's worker must die with the writer, and Ctrl-C is ours to handle.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            status: int | None = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _kill_session(child)
        if status == 0:
            return
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines() or ["no message"]
    if status is None:
        raise StorageError(f"{path}: the FFCV writer did not finish in {timeout_s:g} s; nothing was kept")
    raise StorageError(f"{path}: the FFCV writer ended with status {status}: {lines[-1].strip()[:200]}")


def _kill_session(child: subprocess.Popen) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()
