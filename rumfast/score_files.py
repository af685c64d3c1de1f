"""Score files to exchange: published memorization scores in, ours out as npz, Parquet or CSV."""

import csv
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rumfast.errors import DataError, MismatchError, UsageError
from rumfast.scores import Memorization
from rumfast.store import read_npz, write_bytes, write_npz

SCORE_KEYS = ("memorization", "tr_mem")  # of RUM's files and ours, and of Feldman & Zhang's
LABEL_KEYS = ("label", "labels", "tr_labels")


def read_scores(path: str | Path, label_N: np.ndarray) -> Memorization:
    """Read published memorization scores of the training set whose labels are ``label_N``.

    Knows ``tr_mem`` and ``tr_labels`` (Feldman & Zhang 2020), ``memorization`` (RUM's code) and what
    :func:`write_scores` writes. Standard errors are NaN and counts 0 where the file has none.

    Raises:
        DataError: missing, damaged, or without scores [N].
        MismatchError: its labels differ from ours, or it has another number of examples.
    """
    path = Path(path)
    arrays = read_npz(path)
    score_N = next((arrays[key] for key in SCORE_KEYS if key in arrays), None)
    if score_N is None:
        raise DataError(f"{path}: found {', '.join(sorted(arrays))}, expected one of {', '.join(SCORE_KEYS)}")
    if score_N.ndim != 1 or score_N.dtype.kind not in "fiu":
        raise DataError(f"{path}: found scores {score_N.dtype} {score_N.shape}, expected numbers [N]")
    if len(score_N) != len(label_N):
        raise MismatchError(f"{path}: scores {len(score_N)} examples, the training set has {len(label_N)}")
    labels = next((arrays[key] for key in LABEL_KEYS if key in arrays), None)
    if labels is not None:
        _require_same_labels(path, labels, label_N)
    if np.isinf(score_N).any() or not np.isfinite(score_N).any():
        raise DataError(f"{path}: scores are infinite, or none is a number")
    unknown = {"standard_error": np.full(len(label_N), np.nan)} | {
        key: np.zeros(len(label_N), np.int64) for key in ("included", "excluded")
    }
    columns = {key: arrays.get(key, none_N) for key, none_N in unknown.items()}
    for key, column_N in columns.items():
        if column_N.shape != label_N.shape or column_N.dtype.kind not in "fiu":
            raise DataError(
                f"{path}: found {key} {column_N.dtype} {column_N.shape}, expected {label_N.shape}"
            )
    return Memorization(score_N.astype(np.float64), *columns.values())


def _require_same_labels(path: Path, labels: np.ndarray, label_N: np.ndarray) -> None:
    if labels.shape != label_N.shape:
        raise MismatchError(f"{path}: found labels {labels.shape}, expected {label_N.shape}")
    differ = np.flatnonzero(labels != label_N)
    if len(differ):
        row = differ[0]
        raise MismatchError(
            f"{path}: {len(differ)} labels differ from the training set's, first at id {row}: there "
            f"{labels[row]}, here {label_N[row]}; it scores other data, or in another order"
        )


def write_scores(path: str | Path, column_N: Mapping[str, np.ndarray]) -> None:
    """Write columns of one value per training example as ``.npz``, ``.parquet`` or ``.csv``, by the name.

    An npz with memorization gets ``tr_mem`` and ``tr_labels`` besides, for programs that read Feldman &
    Zhang's files.

    Raises:
        UsageError: another ending, or Parquet without pyarrow.
    """
    path = check_ending(path)
    if path.suffix == ".npz":
        known = "memorization" in column_N
        published = {"tr_mem": column_N["memorization"], "tr_labels": column_N["label"]} if known else {}
        write_npz(path, {**column_N, **published}, replace=True)
    elif path.suffix == ".csv":
        write_bytes(path, lambda temporary: _write_csv(temporary, column_N), replace=True)
    else:
        write_bytes(path, lambda temporary: _write_parquet(temporary, column_N), replace=True)


def check_ending(path: str | Path) -> Path:
    """The path, if scores can be written as its name ends.

    Raises:
        UsageError: they cannot.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".parquet", ".csv"):
        raise UsageError(f"{path}: expected a name that ends in .npz, .parquet or .csv")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise UsageError(f"{path}: Parquet needs pyarrow: pip install 'rumfast[parquet]'")
    return path


def _write_csv(path: Path, column_N: Mapping[str, np.ndarray]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(column_N)
        writer.writerows(zip(*(column.tolist() for column in column_N.values()), strict=True))


def _write_parquet(path: Path, column_N: Mapping[str, np.ndarray]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(dict(column_N)), path)
