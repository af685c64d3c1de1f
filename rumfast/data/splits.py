"""Forget sets: which training ids to forget, from ids, classes, chance, scores or label noise."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rumfast.data.layout import NPZ_ERRORS
from rumfast.errors import DataError, UsageError

LEVELS = ("low", "mid", "high", "mixed")
ENTANGLEMENT_LEVELS = ("low", "mid", "high")
REQUESTS = (
    "ids:FILE, class:K, random:SIZE, memorization:high|low|mid|mixed:SIZE, entanglement:low|mid|high:SIZE, "
    "mislabeled"
)
WindowOf = Callable[[str, int], np.ndarray]  # level and size → ids, see ``rumfast.scores.windows``


@dataclass(frozen=True, eq=False)
class Split:
    """A forget set and the retain set around it, as sorted int64 training ids."""

    forget: np.ndarray
    retain: np.ndarray

    @classmethod
    def from_ids(cls, forget, n: int, require_proper: bool = True) -> "Split":
        """Split 0..n-1 into `forget` and the rest.

        Raises DataError for ids that `check_ids` refuses, and, with `require_proper`, for an empty forget set
        or one that leaves nothing to retain. A whole class is allowed.

        >>> Split.from_ids([3, 1], n=5).retain
        array([0, 2, 4])
        """
        forget = np.sort(check_ids(forget, n, "forget set", allow_empty=True))
        if require_proper and len(forget) == 0:
            raise DataError("forget set: found no ids, expected at least one")
        if require_proper and len(forget) == n:
            raise DataError(f"forget set: found all {n} training ids, expected at least one to retain")
        return cls(forget, np.setdiff1d(np.arange(n), forget))

    @classmethod
    def from_scores(cls, score_N, size: int, level: str) -> "Split":
        """The forget set of `size` examples at a level of a score, ties broken by id.

        high = largest scores, low = smallest, mid = nearest 0.5, mixed = a third of each (low first, then
        high, then mid among the rest; the remainder goes to low, then mid). Examples whose score is NaN are
        never chosen. Section 4.2 of arXiv 2406.01257. Raises UsageError for a bad level or size.

        >>> Split.from_scores([0.0, 0.5, 0.9, 0.1], size=1, level="high").forget
        array([2])
        """
        score_N = np.asarray(score_N, dtype=np.float64)
        if score_N.ndim != 1:
            raise DataError(f"scores: found shape {score_N.shape}, expected one score per training example")
        if level not in LEVELS:
            raise UsageError(f"level: found {level!r}, expected one of {', '.join(LEVELS)}")
        eligible = np.flatnonzero(~np.isnan(score_N))
        _check_size(size, len(eligible), "examples with a score")
        if level != "mixed":
            return cls.from_ids(_at_level(score_N, eligible, size, level), len(score_N))
        low_size, mid_size, high_size = ((size + 2 - rank) // 3 for rank in range(3))
        low = _at_level(score_N, eligible, low_size, "low")
        eligible = np.setdiff1d(eligible, low)
        high = _at_level(score_N, eligible, high_size, "high")
        mid = _at_level(score_N, np.setdiff1d(eligible, high), mid_size, "mid")
        return cls.from_ids(np.concatenate([low, mid, high]), len(score_N))


def select_forget(
    request: str, labels, scores=None, flipped=None, seed: int = 0, window_of: WindowOf | None = None
) -> Split:
    """The Split that a request names, one of ``REQUESTS``.

    Args:
        labels: [N] training labels.
        scores: [N] memorization scores.
        flipped: ids whose label packing flipped.
        seed: of random requests.
        window_of: gives the ids of the window at an entanglement level and of a size.

    Raises:
        UsageError: the request cannot be read, or needs what was not given.
        DataError: the data cannot meet it.
    """
    label_N = np.asarray(labels)
    n = len(label_N)
    kind, *arguments = request.split(":", 1) if request.startswith("ids:") else request.split(":")
    if kind == "ids" and len(arguments) == 1 and arguments[0]:
        return Split.from_ids(read_ids(arguments[0]), n)
    if kind == "class" and len(arguments) == 1:
        chosen = np.flatnonzero(label_N == _number(request, arguments[0]))
        if len(chosen) == 0:
            raise DataError(f"forget set {request}: no training example has that label")
        return Split.from_ids(chosen, n)
    if kind == "random" and len(arguments) == 1:
        size = _check_size(_number(request, arguments[0]), n, "training examples")
        return Split.from_ids(np.random.default_rng([seed, n]).choice(n, size, replace=False), n)
    if kind == "memorization" and len(arguments) == 2:
        return _by_memorization(request, arguments[0], arguments[1], scores, n)
    if kind == "entanglement" and len(arguments) == 2:
        return _by_entanglement(request, arguments[0], arguments[1], window_of, n)
    if request == "mislabeled":
        if flipped is None or len(flipped) == 0:
            raise DataError("forget set mislabeled: no label was flipped; pack with --label-noise")
        return Split.from_ids(flipped, n)
    raise UsageError(f"forget set: found {request!r}, expected one of {REQUESTS}")


def _by_memorization(request: str, level: str, size: str, scores, n: int) -> Split:
    if scores is None:
        raise UsageError(f"forget set {request}: needs memorization scores; run `rumfast score` first")
    if len(scores) != n:
        raise DataError(f"scores: found {len(scores)}, expected {n}, one per training example")
    return Split.from_scores(scores, _number(request, size), level)


def _by_entanglement(request: str, level: str, size: str, window_of: WindowOf | None, n: int) -> Split:
    if level not in ENTANGLEMENT_LEVELS:
        raise UsageError(f"level: found {level!r}, expected one of {', '.join(ENTANGLEMENT_LEVELS)}")
    wanted = _check_size(_number(request, size), n - 1, "training examples but one")
    if window_of is None:
        raise UsageError(f"forget set {request}: needs embeddings; run `rumfast train` first")
    return Split.from_ids(window_of(level, wanted), n)


def ids_digest(ids) -> str:
    """SHA-256 of a set of ids, whatever their order.

    >>> ids_digest([3, 1]) == ids_digest(np.array([1, 3]))
    True
    """
    return hashlib.sha256(np.sort(np.asarray(ids)).astype("<i8").tobytes()).hexdigest()


def check_ids(ids, n: int, name: str = "ids", allow_empty: bool = False) -> np.ndarray:
    """Example ids as a 1-D int64 array in the order given.

    Raises DataError, naming `name`, for a mask, floats, an id outside 0..n-1, one given twice, or none.
    """
    id_B = np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids)
    if id_B.ndim != 1:
        raise DataError(f"{name}: found shape {id_B.shape}, expected a list of example ids")
    if len(id_B) == 0:
        if allow_empty:
            return np.zeros(0, np.int64)
        raise DataError(f"{name}: found no ids, expected at least one")
    if not np.issubdtype(id_B.dtype, np.integer):
        hint = "; numpy.flatnonzero(mask) turns a mask into ids" if id_B.dtype == bool else ""
        raise DataError(f"{name}: found dtype {id_B.dtype}, expected integer example ids{hint}")
    for worst in (id_B.min(), id_B.max()):
        if not 0 <= worst < n:
            raise DataError(f"{name}: found id {worst}, expected ids within 0..{n - 1}")
    id_B = id_B.astype(np.int64)
    seen_N = np.zeros(n, np.int64)
    np.add.at(seen_N, id_B, 1)
    if seen_N.max() > 1:
        raise DataError(f"{name}: found id {int(seen_N.argmax())} more than once, expected distinct ids")
    return id_B


def read_ids(path: str | Path) -> np.ndarray:
    """Ids from a text file (one per line), a .npy, or a .npz with the key `ids`; DataError if unreadable."""
    path = Path(path)
    try:
        if path.suffix in (".npy", ".npz"):
            # Opened here: numpy leaves the files of broken archives open.
            with open(path, "rb") as file:
                content = np.load(file, allow_pickle=False)
                return content if isinstance(content, np.ndarray) else content["ids"]
        lines = [line.strip() for line in path.read_text().splitlines()]
        return np.array([int(line) for line in lines if line], dtype=np.int64)
    except NPZ_ERRORS as error:
        expected = "one id per line, a .npy, or a .npz with the key ids"
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: expected {expected} ({reason})") from error


def _at_level(score_N: np.ndarray, eligible: np.ndarray, size: int, level: str) -> np.ndarray:
    score_E = score_N[eligible]
    key_E = {"low": score_E, "high": -score_E, "mid": np.abs(score_E - 0.5)}[level]
    return eligible[np.argsort(key_E, kind="stable")[:size]]


def _check_size(size: int, available: int, what: str) -> int:
    if not 1 <= size <= available:
        raise UsageError(f"forget set size: found {size}, expected 1..{available}, the number of {what}")
    return size


def _number(request: str, text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"forget set: found {text!r} in {request!r}, expected a number: {REQUESTS}")
    return int(text)
