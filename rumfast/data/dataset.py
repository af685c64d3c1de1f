"""A packed image classification dataset in memory: two splits, their statistics and one fingerprint."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rumfast.errors import DataError, UsageError


@dataclass(frozen=True, eq=False)
class Examples:
    """`image_NHWC` uint8 RGB and `label_N` int64 of one split."""

    image_NHWC: np.ndarray
    label_N: np.ndarray

    def __len__(self) -> int:
        return len(self.label_N)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train and test examples with their class names.

    `mean` and `std` (per channel, [0, 1] units) are those of the train images; `fingerprint` is the sha256
    of the decoded content; `flipped` holds the training ids whose label `--label-noise` changed, and
    `clean_label_N` all true labels then (else None); `ids` maps each training example to its row in the
    dataset it was taken from. `location` (a packed directory or a source) and `taken` (the arguments of
    `take`) say how another process can load the same examples; `location` is None where it cannot.
    """

    name: str
    train: Examples
    test: Examples
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    source: str
    flipped: np.ndarray
    clean_label_N: np.ndarray | None
    location: str | None
    ids: np.ndarray
    taken: tuple[int | None, int | None, int] = (None, None, 0)

    def __len__(self) -> int:
        """Number of training examples."""
        return len(self.train)

    @property
    def image_size(self) -> int:
        """Height and width of every image, in pixels."""
        return self.train.image_NHWC.shape[1]

    @classmethod
    def from_arrays(
        cls,
        train_images,
        train_labels,
        test_images,
        test_labels,
        classes: Sequence[str],
        name: str = "arrays",
    ) -> "Dataset":
        """Build a dataset from [N, H, W, 3] uint8 images and [N] integer labels.

        Raises DataError for anything that cannot be used as data.

        >>> images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1])
        >>> len(Dataset.from_arrays(images, labels, images, labels, ["cat", "dog"]))
        4
        """
        train = Examples(np.asarray(train_images), np.asarray(train_labels))
        test = Examples(np.asarray(test_images), np.asarray(test_labels))
        return build_dataset(train, test, classes, name=name, source="arrays")

    def take(
        self, train_examples: int | None = None, test_examples: int | None = None, seed: int = 0
    ) -> "Dataset":
        """A stratified random subset (None keeps a whole split) in the original order.

        Raises UsageError when a size is not within 1..N.
        """
        if train_examples is None and test_examples is None:
            return self
        train_ids = _subset(self.train.label_N, train_examples, seed, "train_examples")
        test_ids = _subset(self.test.label_N, test_examples, seed, "test_examples")
        subset = build_dataset(
            Examples(self.train.image_NHWC[train_ids], self.train.label_N[train_ids]),
            Examples(self.test.image_NHWC[test_ids], self.test.label_N[test_ids]),
            self.classes,
            name=self.name,
            source=self.source,
            flipped=np.flatnonzero(np.isin(train_ids, self.flipped)),
            clean_label_N=None if self.clean_label_N is None else self.clean_label_N[train_ids],
            ids=self.ids[train_ids],
        )
        location = self.location if self.taken == (None, None, 0) else None
        return replace(subset, location=location, taken=(train_examples, test_examples, seed))


def build_dataset(
    train: Examples,
    test: Examples,
    classes: Sequence[str],
    *,
    name: str,
    source: str,
    flipped: np.ndarray | None = None,
    clean_label_N: np.ndarray | None = None,
    ids: np.ndarray | None = None,
) -> Dataset:
    """Validate both splits and complete them to a Dataset; raises DataError."""
    classes = check_classes(classes)
    train = check_examples(train, classes, "train")
    test = check_examples(test, classes, "test")
    if train.image_NHWC.shape[1:] != test.image_NHWC.shape[1:]:
        found, expected = test.image_NHWC.shape[1:], train.image_NHWC.shape[1:]
        raise DataError(f"test images: found shape {found}, expected {expected} as in the train images")
    mean, std = channel_stats(train.image_NHWC)
    return Dataset(
        name=name,
        train=train,
        test=test,
        classes=classes,
        mean=mean,
        std=std,
        fingerprint=fingerprint(train, test, classes),
        source=source,
        flipped=np.zeros(0, np.int64) if flipped is None else np.asarray(flipped, np.int64),
        clean_label_N=clean_label_N,
        location=None,
        ids=np.arange(len(train)) if ids is None else ids,
    )


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names as a tuple; DataError unless they are at least two distinct strings."""
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"classes: found {classes!r}, expected a sequence of strings")
    if len(classes) < 2 or len(set(classes)) != len(classes):
        found = f"{len(set(classes))} distinct of {len(classes)}"
        raise DataError(f"classes: found {found}, expected two or more, all distinct")
    return tuple(str(name) for name in classes)


def check_examples(examples: Examples, classes: Sequence[str], name: str) -> Examples:
    """The same examples, contiguous and with int64 labels; DataError naming split `name` if unusable."""
    image_NHWC, label_N = examples.image_NHWC, examples.label_N
    if image_NHWC.dtype != np.uint8:
        raise DataError(f"{name} images: found dtype {image_NHWC.dtype}, expected uint8 in 0..255")
    if image_NHWC.ndim != 4 or image_NHWC.shape[3] != 3:
        raise DataError(f"{name} images: found shape {image_NHWC.shape}, expected [N, H, W, 3]")
    if len(image_NHWC) == 0:
        raise DataError(f"{name} images: found none, expected at least one")
    if image_NHWC.shape[1] != image_NHWC.shape[2] or image_NHWC.shape[1] == 0:
        found = f"{image_NHWC.shape[1]}x{image_NHWC.shape[2]}"
        raise DataError(f"{name} images: found {found} pixels, expected square images")
    if label_N.shape != (len(image_NHWC),):
        found = f"{name} labels: found shape {label_N.shape}"
        raise DataError(f"{found}, expected one for each of {len(image_NHWC)} images")
    if not np.issubdtype(label_N.dtype, np.integer):
        nan = " with NaN" if np.issubdtype(label_N.dtype, np.floating) and np.isnan(label_N).any() else ""
        raise DataError(f"{name} labels: found dtype {label_N.dtype}{nan}, expected integers")
    for worst in (label_N.min(), label_N.max()):
        if not 0 <= worst < len(classes):
            row = int(np.argmax(label_N == worst))
            raise DataError(f"{name} labels: found {worst} in row {row}, expected 0..{len(classes) - 1}")
    return Examples(np.ascontiguousarray(image_NHWC), np.ascontiguousarray(label_N, dtype=np.int64))


def channel_stats(image_NHWC: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel in [0, 1] units, from exact integer sums."""
    pixel_NK = image_NHWC.reshape(len(image_NHWC), -1)
    first_K = np.zeros(pixel_NK.shape[1], np.int64)
    second_K = np.zeros_like(first_K)
    for start in range(0, len(pixel_NK), 4096):
        chunk = pixel_NK[start : start + 4096].astype(np.int32)
        first_K += chunk.sum(0)
        second_K += (chunk * chunk).sum(0)
    count = image_NHWC.size // 3
    mean_3 = first_K.reshape(-1, 3).sum(0) / count
    variance_3 = second_K.reshape(-1, 3).sum(0) / count - mean_3**2
    # A constant channel would divide by zero: one grey level is the least spread pixels can show.
    std_3 = np.sqrt(np.maximum(variance_3, 1.0))
    mean, std = (mean_3 / 255).tolist(), (std_3 / 255).tolist()
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def fingerprint(train: Examples, test: Examples, classes: Sequence[str]) -> str:
    """Hex sha256 over shapes, dtypes, pixels and labels of both splits and the class names."""
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for array in (train.image_NHWC, train.label_N, test.image_NHWC, test.label_N):
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data.cast("B"))
    return digest.hexdigest()


def stratified_ids(label_N: np.ndarray, size: int, seed: int) -> np.ndarray:
    """`size` sorted ids, each class in its share (largest remainders first, ties by class)."""
    classes, count_C = np.unique(label_N, return_counts=True)
    share_C = count_C * size / len(label_N)
    take_C = np.floor(share_C).astype(np.int64)
    short = size - int(take_C.sum())
    take_C[np.argsort(take_C - share_C, kind="stable")[:short]] += 1
    rng = np.random.default_rng([seed, size])
    chosen = [
        rng.choice(np.flatnonzero(label_N == label), take, replace=False)
        for label, take in zip(classes, take_C, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _subset(label_N: np.ndarray, size: int | None, seed: int, name: str) -> np.ndarray:
    if size is None:
        return np.arange(len(label_N))
    if not 1 <= size <= len(label_N):
        raise UsageError(f"{name}: found {size}, expected 1..{len(label_N)}")
    return stratified_ids(label_N, size, seed)
