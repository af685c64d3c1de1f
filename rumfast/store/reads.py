"""JSON and npz files, read back only as they were written: each ends in a digest of the rest."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rumfast.data.layout import NPZ_ERRORS
from rumfast.errors import DataError

END_RECORD = 22  # bytes of a zip file's last record, before the comment
SEAL = "sha256"  # key of a JSON file's last entry, the digest of the others
SEAL_DIGITS = 64  # of an npz file's comment, the digest of all before it


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


def seal(content: Mapping[str, Any]) -> str:
    """``content`` as JSON, with its digest as the last entry."""
    body = json.dumps(content, indent=1, allow_nan=False)
    sealed = {**content, SEAL: hashlib.sha256(body.encode()).hexdigest()}
    return json.dumps(sealed, indent=1, allow_nan=False) + "\n"


def _is_sealed(content: dict[str, Any], text: str) -> bool:
    try:
        return seal(content) == text
    except (ValueError, RecursionError):  # NaN, say, which json reads and we never write
        return False


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
