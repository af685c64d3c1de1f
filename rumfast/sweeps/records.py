"""Member records: what one model of a sweep says of every example, in a few bits each."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rumfast.errors import DataError
from rumfast.store import read_array, read_npz, write_npz

SCHEMA = "rumfast/member/1"


@dataclass(frozen=True)
class MemberRecord:
    """One member: its training subset, and margins on all examples; a diverged one has no predictions at all.

    Attributes:
        include_N: [N] boolean, was it trained on the example?
        correct_N, correct_test_N: boolean, is the example classified as labelled?
        margin_N, margin_test_N: float16 or float32; float16 margins beyond ±65504 saturate.
        learned_EN: [E, N] boolean, was the example classified as labelled in the training forward pass of
            epoch e? None where events were not asked for; False where it was not trained on.
        proxies_KN: [4, N] float32 in the order of ``ProxyScores``, NaN where it was not trained on; or None.
    """

    index: int
    include_N: np.ndarray
    correct_N: np.ndarray
    correct_test_N: np.ndarray
    margin_N: np.ndarray
    margin_test_N: np.ndarray
    fingerprint: str
    diverged: bool = False
    learned_EN: np.ndarray | None = None
    proxies_KN: np.ndarray | None = None


def save_record(path: Path, record: MemberRecord) -> bool:
    """Commit a record; False where another writer has committed the same content before."""
    meta = {
        "schema": SCHEMA,
        "index": record.index,
        "fingerprint": record.fingerprint,
        "examples": len(record.include_N),
        "test_examples": len(record.correct_test_N),
        "diverged": record.diverged,
    }
    arrays: dict[str, Any] = {
        "include": np.packbits(record.include_N),
        "correct": np.packbits(record.correct_N),
        "correct_test": np.packbits(record.correct_test_N),
        "margin": record.margin_N,
        "margin_test": record.margin_test_N,
        "meta": np.array(json.dumps(meta, sort_keys=True)),
    }
    if record.learned_EN is not None:
        arrays["learned"] = np.packbits(record.learned_EN, axis=1)
        arrays["proxies"] = record.proxies_KN
    # Compressing margins saves a seventh of the bytes and takes seven times as long.
    return write_npz(path, arrays, compress=False)


def load_record(path: Path) -> MemberRecord:
    """Read a record back.

    Raises:
        DataError: missing, damaged, or not a member record; names the file.
    """
    arrays = read_npz(path)
    try:
        meta = _meta(arrays["meta"])
        n, tests = meta["examples"], meta["test_examples"]
        known = 0 if meta["diverged"] else 1
        learned = arrays.get("learned")
        record = MemberRecord(
            index=meta["index"],
            fingerprint=meta["fingerprint"],
            diverged=meta["diverged"],
            include_N=_unpack(arrays["include"], n),
            correct_N=_unpack(arrays["correct"], n * known),
            correct_test_N=_unpack(arrays["correct_test"], tests * known),
            margin_N=arrays["margin"],
            margin_test_N=arrays["margin_test"],
            learned_EN=None if learned is None else np.stack([_unpack(bits, n) for bits in learned]),
            proxies_KN=None if learned is None else arrays["proxies"],
        )
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a member record: {error!r}") from None
    if len(record.margin_N) != n * known or len(record.margin_test_N) != tests * known:
        raise DataError(f"{path}: margins are not of the {n} + {tests} examples that the record names")
    return record


def is_diverged(path: Path) -> bool:
    """Did this member diverge? Reads a few hundred bytes of the record.

    Raises:
        DataError: missing, damaged, or not a member record; names the file.
    """
    meta = read_array(path, "meta")
    try:
        return bool(_meta(meta)["diverged"])
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a member record: {error!r}") from None


def _meta(stored: np.ndarray) -> dict[str, Any]:
    meta = json.loads(str(stored))
    if meta["schema"] != SCHEMA:
        raise ValueError(f"schema is {meta['schema']!r}, expected {SCHEMA!r}")
    return meta


def _unpack(bits: np.ndarray, n: int) -> np.ndarray:
    if bits.shape != (-(-n // 8),):
        raise ValueError(f"found {bits.shape} bytes for {n} bits")
    return np.unpackbits(bits, count=n).astype(bool)
