"""Packed directories: train.beton, test.beton and dataset.json, written once, checked at every load."""

import platform
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rumfast.data.beton import commit_file, read_beton, require_ffcv, write_beton
from rumfast.data.dataset import Dataset, check_examples, fingerprint
from rumfast.data.layout import SCHEMA, dump_record, file_digest, read_record
from rumfast.data.sources import SOURCES, dataset_from_source
from rumfast.errors import DataError, MismatchError, StorageError


def pack(source: str, out: str | Path, label_noise: float = 0.0, seed: int = 0) -> Dataset:
    """Load a source (see `load_source`), and write train.beton, test.beton and dataset.json into `out`.

    dataset.json comes last: where it exists, the pack is complete. A pack of the same content is kept and
    returned. `label_noise` flips exactly round(rate · N) training labels. Raises MismatchError where `out`
    holds other content, UsageError without ffcv, DataError for bad content, StorageError for failed writes.
    """
    out = Path(out)
    record_file = out / "dataset.json"
    if not record_file.exists():
        require_ffcv()
    dataset = dataset_from_source(source, label_noise, seed)
    if record_file.exists():
        packed = _read_pack(out, verify=True)
        if packed.fingerprint != dataset.fingerprint:
            raise MismatchError(
                f"{out}: holds {packed.source} with fingerprint {packed.fingerprint[:12]}, but {source} with "
                f"label noise {label_noise} has {dataset.fingerprint[:12]}; choose another --out or delete it"
            )
        return packed
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{out}: cannot be made a directory ({error.strerror})") from error
    for split in ("train", "test"):
        write_beton(out / f"{split}.beton", getattr(dataset, split))
    record = dump_record(_record(dataset, out, label_noise, seed))
    commit_file(record_file, lambda temporary: temporary.write_bytes(record))
    return _read_pack(out, verify=True)


def load_dataset(path: str | Path, verify: bool = True) -> Dataset:
    """Read a directory that `rumfast data pack` wrote, or load a source such as `digits` without packing.

    The decoded content is always compared with dataset.json; `verify` also compares the bytes of both files,
    padding included. Raises DataError, naming the file, when something is missing, truncated or altered.

    >>> load_dataset("digits").image_size
    8
    """
    kind, _, where = str(path).partition(":")
    if kind not in SOURCES or (Path(path) / "dataset.json").exists():
        return _read_pack(Path(path), verify)
    location = f"{kind}:{Path(where).resolve()}" if where else kind
    return replace(dataset_from_source(str(path)), location=location)


def dataset_info(path: str | Path) -> dict[str, Any]:
    """What dataset.json says, and the sizes of both betons in bytes; the images are not read."""
    path = Path(path)
    record = read_record(path)
    betons = [path / f"{split}.beton" for split in ("train", "test")]
    missing = [str(file) for file in betons if not file.exists()]
    if missing:
        raise DataError(f"{missing[0]}: not found; delete {path} and pack again")
    hidden = ("flipped_clean_labels", "checksum")
    shown = {key: value for key, value in record.items() if key not in hidden}
    return {**shown, "flipped": len(record["flipped"]), "bytes": {f.stem: f.stat().st_size for f in betons}}


def verify_dataset(path: str | Path) -> dict[str, Any]:
    """Read and compare everything; returns what was checked, or raises DataError naming the wrong file."""
    start = time.perf_counter()
    dataset = _read_pack(Path(path), verify=True)
    return {
        "schema": "rumfast.dataset-verify/1",
        "path": str(path),
        "fingerprint": dataset.fingerprint,
        "train": len(dataset.train),
        "test": len(dataset.test),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _read_pack(path: Path, verify: bool) -> Dataset:
    record = read_record(path)
    splits = {}
    for split in ("train", "test"):
        file = path / f"{split}.beton"
        splits[split] = check_examples(read_beton(file), record["classes"], str(file))
        if verify and file_digest(file) != record["files"][split]:
            raise DataError(f"{file}: its bytes differ from what was packed; delete {path} and pack again")
    train, test, classes = splits["train"], splits["test"], tuple(record["classes"])
    if fingerprint(train, test, classes) != record["fingerprint"]:
        raise DataError(f"{path}/train.beton or test.beton: content differs from dataset.json; pack again")
    flipped = np.asarray(record["flipped"], np.int64)
    clean_label_N = None
    if record["label_noise"]:
        clean_label_N = train.label_N.copy()
        clean_label_N[flipped] = record["flipped_clean_labels"]
    return Dataset(
        name=record["name"],
        train=train,
        test=test,
        classes=classes,
        mean=tuple(record["mean"]),
        std=tuple(record["std"]),
        fingerprint=record["fingerprint"],
        source=record["source"],
        flipped=flipped,
        clean_label_N=clean_label_N,
        location=str(path.resolve()),
        ids=np.arange(len(train)),
    )


def _record(dataset: Dataset, out: Path, label_noise: float, seed: int) -> dict[str, Any]:
    clean_N = dataset.train.label_N if dataset.clean_label_N is None else dataset.clean_label_N
    return {
        "schema": SCHEMA,
        "name": dataset.name,
        "source": dataset.source,
        "classes": list(dataset.classes),
        "shape": list(dataset.train.image_NHWC.shape[1:]),
        "counts": {"train": len(dataset.train), "test": len(dataset.test)},
        "mean": dataset.mean,
        "std": dataset.std,
        "fingerprint": dataset.fingerprint,
        "files": {split: file_digest(out / f"{split}.beton") for split in ("train", "test")},
        "label_noise": label_noise,
        "seed": seed,
        "flipped": dataset.flipped.tolist(),
        "flipped_clean_labels": clean_N[dataset.flipped].tolist(),
        "versions": {"ffcv": version("ffcv"), "numpy": np.__version__, "python": platform.python_version()},
    }
