"""How files come to be: complete, or not at all.

A file is written under a temporary name in its own directory, synced, then linked to its name. Linking fails
where the name exists, so of several writers the first wins and the others compare their content with its. A
writer holds a lock on its temporary file, so that what a killed one left can be told from work in progress.
"""

import errno
import fcntl
import hashlib
import io
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from rumfast.errors import MismatchError, StorageError
from rumfast.store.reads import SEAL_DIGITS, content_digest, seal

TEMPORARY = ".partial-"
HOST = socket.gethostname()
ABANDONED_S = 3600.0  # age of another host's leftovers: its locks may not be seen here


def write_bytes(path: Path, write: Callable[[Path], None], *, replace: bool = False) -> bool:
    """Commit the file that ``write(temporary path)`` writes under ``path``.

    Returns False where the file existed already, with the same content.

    Args:
        replace: replace an existing file (derived files); otherwise an existing file stays, and must agree.

    Raises:
        MismatchError: the file exists with other content.
        StorageError: the disk is full, read-only or fails; nothing is visible under ``path``.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY}{HOST}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        _lock(handle)
        write(temporary)
        temporary.chmod(0o644)  # temporary files are private to their owner
        sync(temporary)
        if replace:
            os.replace(temporary, path)
        committed = replace or _link(temporary, path)
        sync(path.parent)
        return committed
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        with suppress(OSError):
            os.close(handle)


def _link(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        if content_digest(temporary) != content_digest(path):
            raise MismatchError(
                f"{path}: exists with other content; it was kept. Use another --out"
            ) from None
        return False


def _lock(handle: int) -> bool:
    """Lock a temporary file or folder until its handle closes or the process dies; False if another has."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str, *, replace: bool = True) -> bool:
    """Commit a UTF-8 text file; False where it existed already, with the same content."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return write_bytes(path, write, replace=replace)


def write_json(path: Path, content: Mapping[str, Any], *, replace: bool = True) -> bool:
    """Commit ``content`` as JSON, with its digest as the last entry: any other digit would be valid too.

    Returns False where the file existed already, with the same content.
    """
    return write_text(path, seal(content), replace=replace)


def write_npz(path: Path, arrays: Mapping[str, Any], *, replace: bool = False, compress: bool = True) -> bool:
    """Commit named arrays as an npz; returns as :func:`write_bytes`.

    CRCs catch damage to the arrays, and a digest in the zip comment damage to all that is between them.
    """
    save = np.savez_compressed if compress else np.savez

    def write(temporary: Path) -> None:
        buffer = io.BytesIO()
        save(buffer, **arrays)  # type: ignore[arg-type]
        content = bytearray(buffer.getbuffer())
        content[-2:] = SEAL_DIGITS.to_bytes(2, "little")  # the comment's length
        temporary.write_bytes(content + hashlib.sha256(content).hexdigest().encode())

    return write_bytes(path, write, replace=replace)


def commit_folder(path: Path, fill: Callable[[Path], None]) -> bool:
    """Commit the folder that ``fill(temporary folder)`` fills under ``path``, by one rename.

    Returns False where the folder exists already: the first writer wins.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{HOST}-", dir=path.parent))
        handle = os.open(temporary, os.O_RDONLY)
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error
    try:
        _lock(handle)
        fill(temporary)
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        os.rename(temporary, path)
        sync(path.parent)
        return True
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and path.exists():
            return False
        raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def require_writable(folder: Path) -> None:
    """Find out now, and not after the first member was trained, that nothing can be stored in ``folder``.

    Raises:
        StorageError: no file can be made there.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=folder)
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        raise StorageError(f"{folder}: cannot write: {error.strerror or error}") from error


def remove_partial(root: Path) -> None:
    """Delete what killed writers left below ``root``; files of writers at work stay.

    Those of this host hold a lock; those of other hosts, whose locks a file system may hide, are younger than
    an hour.
    """
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            if name.startswith(TEMPORARY):
                _remove_abandoned(Path(folder, name))
        folders[:] = [name for name in folders if not name.startswith(TEMPORARY)]


def _remove_abandoned(leftover: Path) -> None:
    with suppress(OSError):  # it may just have been committed
        host = leftover.name.removeprefix(TEMPORARY).rpartition("-")[0]
        if host not in ("", HOST) and time.time() - leftover.stat().st_mtime < ABANDONED_S:
            return
        # Network file systems lock only what is open for writing.
        handle = os.open(leftover, os.O_RDONLY if leftover.is_dir() else os.O_RDWR)
        try:
            if not _lock(handle):
                return
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
        finally:
            os.close(handle)
