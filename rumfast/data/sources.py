"""Where images come from: a source spec such as `digits` or `folder:DIR` becomes two checked splits."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rumfast.data.dataset import (
    Dataset,
    Examples,
    build_dataset,
    check_classes,
    check_examples,
    stratified_ids,
)
from rumfast.data.layout import NPZ_ERRORS
from rumfast.errors import DataError, UsageError

Loaded = tuple[Examples, Examples, tuple[str, ...], str]

DIGITS_TEST = 397  # of 1797 examples; 1400 remain for training


def load_source(spec: str) -> Loaded:
    """(train, test, classes, name) of a source spec, validated.

    Specs are `digits`, `cifar10`, `cifar100`, `parquet:DIR`, `folder:DIR` and `npz:FILE`. Raises UsageError
    for an unknown spec and DataError, naming file and split, for content that cannot be used.
    """
    kind, _, where = spec.partition(":")
    if kind not in SOURCES or bool(where) != (kind in PATH_SOURCES):
        forms = ", ".join(f"{key}:PATH" if key in PATH_SOURCES else key for key in SOURCES)
        raise UsageError(f"source: found {spec!r}, expected one of {forms}")
    train, test, classes, name = SOURCES[kind](where)
    classes = check_classes(classes)
    return check_examples(train, classes, "train"), check_examples(test, classes, "test"), classes, name


def dataset_from_source(spec: str, label_noise: float = 0.0, seed: int = 0) -> Dataset:
    """A Dataset straight from a source, without packing; `label_noise` as in `flip_labels`."""
    train, test, classes, name = load_source(spec)
    if not label_noise:
        return build_dataset(train, test, classes, name=name, source=spec)
    noisy_N, flipped = flip_labels(train.label_N, len(classes), label_noise, seed)
    return build_dataset(
        Examples(train.image_NHWC, noisy_N),
        test,
        classes,
        name=name,
        source=spec,
        flipped=flipped,
        clean_label_N=train.label_N,
    )


def flip_labels(label_N: np.ndarray, classes: int, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Give exactly round(rate · N) examples a uniformly random wrong label: (labels, sorted flipped ids).

    >>> labels, flipped = flip_labels(np.zeros(10, np.int64), 3, 0.2, seed=0)
    >>> len(flipped), bool((labels[flipped] != 0).all())
    (2, True)
    """
    if not 0 <= rate <= 1:
        raise UsageError(f"label noise: found {rate}, expected a rate within 0..1")
    rng = np.random.default_rng([seed, len(label_N)])
    flipped = np.sort(rng.choice(len(label_N), round(rate * len(label_N)), replace=False))
    noisy_N = label_N.copy()
    noisy_N[flipped] = (label_N[flipped] + rng.integers(1, classes, len(flipped))) % classes
    return noisy_N, flipped


def _load_digits(_: str) -> Loaded:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey_NHW = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    image_NHWC = np.repeat(grey_NHW[..., None], 3, axis=3)
    label_N = bunch.target.astype(np.int64)
    test_ids = stratified_ids(label_N, DIGITS_TEST, seed=0)
    train_ids = np.setdiff1d(np.arange(len(label_N)), test_ids)
    train, test = (Examples(image_NHWC[ids], label_N[ids]) for ids in (train_ids, test_ids))
    return train, test, tuple(str(digit) for digit in range(10)), "digits"


def _load_torchvision(name: str) -> Loaded:
    from torchvision import datasets

    cache = Path(os.environ.get("RUMFAST_CACHE") or Path.home() / ".cache" / "rumfast")
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        train, test = (kind(str(cache), train=flag, download=True) for flag in (True, False))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name}: the download into {cache} failed ({_one_line(error)}); copy the archive there, set "
            f"RUMFAST_CACHE to where it is, or pack parquet:DIR or folder:DIR instead"
        ) from error
    splits = [Examples(split.data, np.asarray(split.targets, np.int64)) for split in (train, test)]
    return splits[0], splits[1], tuple(train.classes), name


def _load_parquet(where: str) -> Loaded:
    root = _existing(Path(where), "parquet")
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UsageError("parquet sources need pyarrow: pip install pyarrow") from error
    train_files = sorted(root.glob("train-*.parquet"))
    test_files = sorted(root.glob("test-*.parquet")) or sorted(root.glob("validation-*.parquet"))
    if not train_files or not test_files:
        raise DataError(f"{root}: expected train-*.parquet and test-*.parquet (or validation-*.parquet)")
    train, names = _read_parquet_split(train_files, parquet)
    test, _ = _read_parquet_split(test_files, parquet)
    return train, test, names or _numbered(train, test), root.resolve().name


def _read_parquet_split(files: list[Path], parquet) -> tuple[Examples, tuple[str, ...]]:
    images, labels = [], []
    names: tuple[str, ...] = ()
    for file in files:
        try:
            table = parquet.read_table(file)
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise DataError(f"{file}: not a readable parquet file ({_one_line(error)})") from error
        columns = table.column_names
        image = next((name for name in ("img", "image") if name in columns), None)
        label = next((name for name in ("label", "fine_label") if name in columns), None)
        if image is None or label is None:
            expected = "img or image, and label or fine_label"
            raise DataError(f"{file}: found columns {columns}, expected {expected}")
        names = names or _class_names(table.schema.metadata, label)
        for row, cell in enumerate(table.column(image).to_pylist()):
            content = cell.get("bytes") if isinstance(cell, dict) else None
            images.append(_decode(content, f"{file} row {row}"))
        labels.append(table.column(label).to_numpy())
    return Examples(_stack(images, str(files[0])), np.concatenate(labels)), names


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _load_folder(where: str) -> Loaded:
    from torchvision.datasets import ImageFolder

    root = _existing(Path(where), "folder")
    splits, classes = [], {}
    for split in ("train", "test"):
        try:
            folder = ImageFolder(str(root / split))
        except OSError as error:
            found = _one_line(error)
            raise DataError(f"{root / split}: expected CLASS/*.png or *.jpg inside ({found})") from error
        classes[split] = tuple(folder.classes)
        images = [_decode(Path(file).read_bytes(), file) for file, _ in folder.samples]
        splits.append(Examples(_stack(images, str(root / split)), np.asarray(folder.targets, np.int64)))
    if classes["train"] != classes["test"]:
        differing = sorted(set(classes["train"]) ^ set(classes["test"]))
        raise DataError(f"{root}: train and test differ in the class folders {differing}")
    return splits[0], splits[1], classes["train"], root.resolve().name


def _load_npz(where: str) -> Loaded:
    file = _existing(Path(where), "npz")
    keys = ("train_images", "train_labels", "test_images", "test_labels")
    try:
        # Opened here: numpy leaves the files of broken archives open.
        with open(file, "rb") as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as content:
            missing = [key for key in keys if key not in content]
            if missing:
                raise DataError(f"{file}: found {sorted(content)}, missing {missing}")
            arrays = [content[key] for key in keys]
            names = content["classes"] if "classes" in content else None
    except DataError:
        raise
    except NPZ_ERRORS as error:
        raise DataError(f"{file}: not a readable npz without pickles ({_one_line(error)})") from error
    train, test = Examples(arrays[0], arrays[1]), Examples(arrays[2], arrays[3])
    classes = _numbered(train, test) if names is None else tuple(str(name) for name in np.atleast_1d(names))
    return train, test, classes, file.stem


def _numbered(train: Examples, test: Examples) -> tuple[str, ...]:
    """Class names 0, 1, … up to the largest label, which `check_examples` refuses if it is absurd."""
    integers = [split.label_N for split in (train, test) if np.issubdtype(split.label_N.dtype, np.integer)]
    top = max((int(label_N.max(initial=1)) for label_N in integers), default=1)
    return tuple(str(k) for k in range(min(top + 1, max(2, len(train.label_N)))))


def _decode(content: bytes | None, where: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content or b"")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three on damaged files
        raise DataError(f"{where}: not a readable image ({_one_line(error)})") from error


def _stack(images: list[np.ndarray], where: str) -> np.ndarray:
    if not images:
        raise DataError(f"{where}: found no images")
    for row, image in enumerate(images):
        if image.shape != images[0].shape:
            raise DataError(
                f"{where}: image {row} is {image.shape[1]}x{image.shape[0]}, "
                f"expected {images[0].shape[1]}x{images[0].shape[0]} as image 0"
            )
    return np.stack(images)


def _existing(path: Path, kind: str) -> Path:
    if not path.exists():
        raise DataError(f"{path}: not found; {kind}: needs a path that exists")
    return path


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


SOURCES: dict[str, Callable[[str], Loaded]] = {
    "digits": _load_digits,
    "cifar10": lambda _: _load_torchvision("cifar10"),
    "cifar100": lambda _: _load_torchvision("cifar100"),
    "parquet": _load_parquet,
    "folder": _load_folder,
    "npz": _load_npz,
}
PATH_SOURCES = ("parquet", "folder", "npz")
