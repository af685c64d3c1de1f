"""Member records: what one model of a sweep says of every example, in a few bits each."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rumfast.errors import DataError
from rumfast.store import read_npz, write_npz

SCHEMA = "rumfast/member/1"


@dataclass(frozen=True)
class MemberRecord:
    """One member: its training subset, and margins on all examples.

    ``margin_N`` is float16, so margins beyond ±65504 saturate; a diverged member has no predictions at all.
    """

    index: int
    include_N: np.ndarray  # [N] boolean
    correct_N: np.ndarray  # [N] boolean, training examples
    correct_test_N: np.ndarray
    margin_N: np.ndarray  # [N] float16
    margin_test_N: np.ndarray
    fingerprint: str
    diverged: bool = False


def save_record(path: Path, record: MemberRecord) -> None:
    """Commit a record; a second writer with the same content changes nothing."""
    meta = {
        "schema": SCHEMA,
        "index": record.index,
        "fingerprint": record.fingerprint,
        "examples": len(record.include_N),
        "test_examples": len(record.correct_test_N),
        "diverged": record.diverged,
    }
    write_npz(
        path,
        {
            "include": np.packbits(record.include_N),
            "correct": np.packbits(record.correct_N),
            "correct_test": np.packbits(record.correct_test_N),
            "margin": record.margin_N,
            "margin_test": record.margin_test_N,
            "meta": np.array(json.dumps(meta, sort_keys=True)),
        },
    )


def load_record(path: Path) -> MemberRecord:
    """Read a record back.

    Raises:
        DataError: missing, damaged, or not a member record; names the file.
    """
    arrays = read_npz(path)
    try:
        meta = json.loads(str(arrays["meta"]))
        if meta["schema"] != SCHEMA:
            raise ValueError(f"schema is {meta['schema']!r}, expected {SCHEMA!r}")
        n, tests = meta["examples"], meta["test_examples"]
        known = 0 if meta["diverged"] else 1
        record = MemberRecord(
            index=meta["index"],
            fingerprint=meta["fingerprint"],
            diverged=meta["diverged"],
            include_N=_unpack(arrays["include"], n),
            correct_N=_unpack(arrays["correct"], n * known),
            correct_test_N=_unpack(arrays["correct_test"], tests * known),
            margin_N=arrays["margin"],
            margin_test_N=arrays["margin_test"],
        )
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a member record: {error!r}") from None
    if len(record.margin_N) != n * known or len(record.margin_test_N) != tests * known:
        raise DataError(f"{path}: margins are not of the {n} + {tests} examples that the record names")
    return record


def _unpack(bits: np.ndarray, n: int) -> np.ndarray:
    if bits.shape != (-(-n // 8),):
        raise ValueError(f"found {bits.shape} bytes for {n} bits")
    return np.unpackbits(bits, count=n).astype(bool)
