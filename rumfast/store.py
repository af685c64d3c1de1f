"""Where everything of a run lies, and how files come to be: complete, or not at all.

A file is written under a temporary name in its own directory, synced, then linked to its name. Linking fails
where the name exists, so of several writers the first wins and the others compare their content with its. A
writer holds a lock on its temporary file, so that what a killed one left can be told from work in progress.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import socket
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from rumfast.data.layout import NPZ_ERRORS
from rumfast.errors import DataError, MismatchError, StorageError

TEMPORARY = ".partial-"
HOST = socket.gethostname()
ABANDONED_S = 3600.0  # age of another host's leftovers: its locks may not be seen here
END_RECORD = 22  # bytes of a zip file's last record, before the comment
SEAL = "sha256"  # key of a JSON file's last entry, the digest of the others
SEAL_DIGITS = 64  # of an npz file's comment, the digest of all before it


class RunDir:
    """Every path of one run.

    Args:
        base: a run of the same data and recipe, whose data, originals, sweep and scores this one shares.
    """

    def __init__(self, root: str | Path, base: str | Path | None = None) -> None:
        self.root = Path(root)
        shared = self.root if base is None else Path(base)
        self.recipe = self.root / "config.toml"
        self.manifest = self.root / "manifest.json"
        self.data = shared / "data"
        self.original = shared / "original"
        self.sweep = shared / "sweep"
        self.proxies = shared / "proxies"
        self.oracles = self.root / "oracles"
        self.memorization = shared / "scores" / "memorization.npz"
        self.sweep_summary = shared / "scores" / "sweep.json"
        self.distance = shared / "scores" / "distance.npz"
        self.proxy_scores = shared / "scores" / "proxies.npz"
        self.agreement = shared / "scores" / "agreement.json"
        self.windows = self.root / "scores" / "windows.json"
        self.geometry = self.root / "scores" / "geometry.json"
        self.forget = self.root / "forget" / "split.npz"
        self.groups = self.root / "forget" / "groups.npz"
        self.neighbours = self.root / "forget" / "neighbours.npz"
        self.evaluation = self.root / "evaluation" / "summary.json"
        self.timing = self.root / "evaluation" / "timing.json"
        self.report = self.root / "report" / "index.html"
        self.search = self.root / "search"

    def plan(self, name: str) -> Path:
        """Folder of the models that plan ``name`` unlearned."""
        return self.root / "unlearned" / name


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


def write_json(path: Path, content: Mapping[str, Any], *, replace: bool = True) -> bool:
    """Commit ``content`` as JSON, with its digest as the last entry: any other digit would be valid too.

    Returns False where the file existed already, with the same content.
    """
    return write_text(path, _seal(content), replace=replace)


def _seal(content: Mapping[str, Any]) -> str:
    body = json.dumps(content, indent=1, allow_nan=False)
    sealed = {**content, SEAL: hashlib.sha256(body.encode()).hexdigest()}
    return json.dumps(sealed, indent=1, allow_nan=False) + "\n"


def write_text(path: Path, text: str, *, replace: bool = True) -> bool:
    """Commit a UTF-8 text file; False where it existed already, with the same content."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return write_bytes(path, write, replace=replace)


def read_json(path: Path, *, sealed: bool = True) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        sealed: accept only what :func:`write_json` wrote, byte for byte.

    Raises:
        DataError: missing, not a JSON object, or altered.
    """
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(content).__name__}")
    content.pop(SEAL, None)
    if sealed and not _is_sealed(content, text):
        raise DataError(
            f"{path}: damaged, altered, or written by rumfast before 0.3; restore it, or use another --out"
        )
    return content


def _is_sealed(content: dict[str, Any], text: str) -> bool:
    try:
        return _seal(content) == text
    except (ValueError, RecursionError):  # NaN, say, which json reads and we never write
        return False


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


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an npz, checking every CRC before numpy sees a byte, and without unpickling.

    Raises:
        DataError: missing, damaged, or holding Python objects; names the file.
    """
    try:
        content = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_end(content, archive)
            contents = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
        return {name: np.load(io.BytesIO(array), allow_pickle=False) for name, array in contents.items()}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except NPZ_ERRORS as error:
        raise DataError(f"{path}: damaged or not an npz file: {error}") from None


def _check_end(content: bytes, archive: zipfile.ZipFile) -> None:
    """Is the directory whole, and the digest right where there is one? Files made by others have none."""
    end = content[len(content) - END_RECORD - len(archive.comment) :]
    if not end.startswith(b"PK\5\6") or len(archive.namelist()) != int.from_bytes(end[10:12], "little"):
        raise zipfile.BadZipFile("its directory has lost an array")
    sealed = content[:-SEAL_DIGITS]
    if archive.comment and archive.comment != hashlib.sha256(sealed).hexdigest().encode():
        raise zipfile.BadZipFile("it is not what was written")


def read_array(path: Path, name: str) -> np.ndarray:
    """Read one small array of an npz, without reading the others.

    Raises:
        DataError: as :func:`read_npz`, as far as one array can tell.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return np.load(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (*NPZ_ERRORS, KeyError) as error:
        raise DataError(f"{path}: damaged or not an npz file: {error}") from None


def content_digest(path: Path) -> str:
    """SHA-256 of an npz file's arrays, or of any other file's bytes."""
    digest = hashlib.sha256()
    if path.suffix != ".npz":
        digest.update(path.read_bytes())
        return digest.hexdigest()
    for name, array in sorted(read_npz(path).items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


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


def require_same(path: Path, ours: BaseModel, theirs: BaseModel) -> None:
    """Refuse a store made with another configuration.

    Raises:
        MismatchError: lists each field that differs, with both values.
    """
    differences = list(_differences(theirs.model_dump(mode="json"), ours.model_dump(mode="json")))
    if differences:
        raise MismatchError(
            f"{path}: made with another configuration: {'; '.join(differences)}. "
            "Use another --out, or the old recipe"
        )


def _differences(theirs: Any, ours: Any, field: str = "") -> Any:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            yield from _differences(theirs.get(key), ours.get(key), f"{field}.{key}" if field else key)
    elif theirs != ours:
        yield f"{field}: there {str(theirs)[:80]}, here {str(ours)[:80]}"
