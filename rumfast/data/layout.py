"""What lies on disk: the .beton format (FFCV, version 2) as numpy dtypes, and dataset.json, both checked.

FFCV's own reader is not used here: importing it costs three seconds in each worker, it sets torch's
thread count, and it trusts the header of a corrupt file.
"""

import hashlib
import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rumfast.errors import DataError

SCHEMA = "rumfast.dataset/1"

HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("table_ptr", "<u8")]
)
FIELD = np.dtype([("type_id", "u1"), ("name", "S16"), ("arguments", "V1024")])
# One RGBImageField and one IntField, aligned as FFCV aligns them.
SAMPLE = np.dtype(
    {
        "names": ["mode", "width", "height", "data_ptr", "label"],
        "formats": ["u1", "<u2", "<u2", "<u8", "<i8"],
        "offsets": [0, 1, 3, 5, 16],
        "itemsize": 24,
    }
)
BLOCK = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

# What numpy raises on damaged or hostile .npy and .npz files.
NPZ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    AttributeError,
    SyntaxError,
    MemoryError,
    OverflowError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)

VERSION = 2
RAW_MODE = 1
FIELDS = [(2, b"image"), (1, b"label")]


@dataclass(frozen=True, eq=False)
class BetonTables:
    """Where each raw image lies in a beton: `height`, `width` in pixels, `offset_N` in bytes, `label_N`."""

    path: Path
    height: int
    width: int
    offset_N: np.ndarray
    label_N: np.ndarray

    @property
    def image_bytes(self) -> int:
        return self.height * self.width * 3


def read_tables(path: str | Path) -> BetonTables:
    """Read and check header, samples and allocation table of a beton; pixels are not touched.

    Raises DataError, naming the file, where anything points outside the file or disagrees.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _parse_tables(path, file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); pack again") from error


def read_images(tables: BetonTables) -> np.ndarray:
    """Read all pixels into one [N, H, W, 3] uint8 array."""
    row = tables.image_bytes
    image_NK = np.empty((len(tables.label_N), row), dtype=np.uint8)
    order_N = np.argsort(tables.offset_N, kind="stable")
    in_file_order = bool(np.array_equal(order_N, np.arange(len(order_N))))
    target_NK = image_NK if in_file_order else np.empty_like(image_NK)
    offset_N = tables.offset_N[order_N]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(offset_N) != row) + 1, [len(offset_N)]])
    try:
        with open(tables.path, "rb") as file:
            for first, stop in zip(starts[:-1], starts[1:], strict=True):
                file.seek(int(offset_N[first]))
                if file.readinto(target_NK[first:stop].data.cast("B")) != (stop - first) * row:
                    raise _corrupt(tables.path, "the file ends inside the images")
    except OSError as error:
        raise DataError(f"{tables.path}: cannot be read ({error.strerror or error})") from error
    if not in_file_order:
        image_NK[order_N] = target_NK
    return image_NK.reshape(-1, tables.height, tables.width, 3)


def read_record(path: Path) -> dict[str, Any]:
    """dataset.json of a packed directory, refused unless it is exactly what packing wrote."""
    file = path / "dataset.json"
    try:
        text = file.read_bytes()
        record = json.loads(text)
        valid = dump_record({k: v for k, v in record.items() if k != "checksum"}) == text
    except FileNotFoundError:
        raise DataError(f"{file}: not found; `rumfast data pack SOURCE --out {path}` writes it") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (ValueError, AttributeError, RecursionError):
        valid = False
    if not valid or record.get("schema") != SCHEMA:
        raise DataError(f"{file}: truncated, altered or not of schema {SCHEMA}; delete {path} and pack again")
    return record


def dump_record(record: dict[str, Any]) -> bytes:
    """The one byte representation of a record, with a checksum over the rest."""
    body = json.dumps(record, sort_keys=True)
    checked = {**record, "checksum": hashlib.sha256(body.encode()).hexdigest()}
    return (json.dumps(checked, indent=1, sort_keys=True) + "\n").encode()


def file_digest(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse_tables(path: Path, file, size: int) -> BetonTables:
    if size < HEADER.itemsize:
        raise _corrupt(path, f"{size} bytes are too few for a header")
    header = np.frombuffer(file.read(HEADER.itemsize), HEADER)[0]
    if header["version"] != VERSION or header["fields"] != len(FIELDS):
        raise _corrupt(path, "not a version 2 beton with the fields image and label")
    samples, table_ptr = int(header["samples"]), int(header["table_ptr"])
    data_start = HEADER.itemsize + len(FIELDS) * FIELD.itemsize + samples * SAMPLE.itemsize
    if samples < 1 or not data_start <= table_ptr <= size or size - table_ptr != samples * BLOCK.itemsize:
        raise _corrupt(path, f"{size} bytes do not fit a header that claims {samples} examples")
    fields = np.frombuffer(file.read(len(FIELDS) * FIELD.itemsize), FIELD)
    if [(int(field["type_id"]), bytes(field["name"])) for field in fields] != FIELDS:
        raise _corrupt(path, "its fields are not one RGB image named image and one integer named label")
    sample_N = np.frombuffer(file.read(samples * SAMPLE.itemsize), SAMPLE)
    file.seek(table_ptr)
    block_N = np.frombuffer(file.read(samples * BLOCK.itemsize), BLOCK)
    _check_tables(path, sample_N, block_N, data_start, table_ptr)
    return BetonTables(
        path,
        int(sample_N["height"][0]),
        int(sample_N["width"][0]),
        sample_N["data_ptr"].astype(np.int64),
        sample_N["label"].astype(np.int64),
    )


def _check_tables(path: Path, sample_N: np.ndarray, block_N: np.ndarray, start: int, stop: int) -> None:
    if (sample_N["mode"] != RAW_MODE).any():
        raise _corrupt(path, "some images are not stored raw")
    height, width = int(sample_N["height"][0]), int(sample_N["width"][0])
    if (sample_N["height"] != height).any() or (sample_N["width"] != width).any():
        raise _corrupt(path, "the images differ in size")
    row = height * width * 3
    # The comparisons stay within uint64: a sum with a corrupt pointer could wrap.
    pointer_N = np.sort(sample_N["data_ptr"])
    inside = row > 0 and stop - row >= start and pointer_N[0] >= start and pointer_N[-1] <= stop - row
    if not inside or (np.diff(pointer_N) < row).any():
        raise _corrupt(path, "image pointers leave the file or overlap")
    order_N = np.argsort(block_N["sample_id"], kind="stable")
    agree = (
        np.array_equal(block_N["sample_id"][order_N], np.arange(len(order_N), dtype=np.uint64))
        and np.array_equal(block_N["ptr"][order_N], sample_N["data_ptr"])
        and (block_N["size"] == row).all()
    )
    if not agree:
        raise _corrupt(path, "the allocation table disagrees with the examples")


def _corrupt(path: Path, found: str) -> DataError:
    return DataError(f"{path}: truncated or corrupt ({found}); delete it and pack the dataset again")
