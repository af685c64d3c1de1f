"""Forget sets by entanglement: windows of the examples in order of distance, and how entangled each is."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rumfast.errors import DataError
from rumfast.kernels.moments import Moments, merge, moments
from rumfast.scores.entanglement import entanglement_of

COUNT = 15  # windows, as many as the paper's code has


class Windows(NamedTuple):
    """Windows of ``size`` neighbours in a list of examples, and the entanglement score of each."""

    size: int
    start_W: np.ndarray  # rank of the first example, ascending
    entanglement_W: np.ndarray  # with all examples outside the window

    def at(self, level: str) -> int:
        """The window that measured lowest, highest, or nearest to the geometric mean of these two.

        Equal scores go by rank; mid is another window than the other two where there are three.

        Args:
            level: low, mid or high.

        >>> windows = Windows(2, np.array([0, 3, 6, 9]), np.array([8.0, 100.0, 9.0, 1.0]))
        >>> [windows.at(level) for level in ("low", "mid", "high")]
        [3, 2, 1]
        """
        order_W = np.argsort(self.entanglement_W, kind="stable")
        if level != "mid":
            return int(order_W[0 if level == "low" else -1])
        with np.errstate(divide="ignore"):
            log_W = np.log(self.entanglement_W)
        known = log_W[np.isfinite(log_W)]
        middle = (known.min() + known.max()) / 2 if len(known) else 0.0
        inner = order_W[1:-1] if len(order_W) > 2 else order_W
        return int(inner[np.abs(log_W[inner] - middle).argmin()])


def measure_windows(embedding_PD: Tensor, order_P: np.ndarray, size: int, count: int = COUNT) -> Windows:
    """Measure the entanglement of evenly spaced windows of a sorted list with all that is outside them.

    Of all embeddings the moments are taken once, of the pieces into which the windows' ends cut the list; a
    window and its rest are unions of pieces (Zhao et al. 2024, arXiv 2406.01257, section 4.1, sorts by the
    distance to the mean of all).

    Args:
        embedding_PD: embeddings [P, D].
        order_P: the list: [P] int64 rows of ``embedding_PD``, each once.
        size: examples in a window, from 1 to P − 1.
        count: most windows; they overlap where ``count · size`` > P.

    Raises:
        DataError: ``size`` or ``count`` is out of range, or ``order_P`` is not an order of the rows.

    >>> line_PD = torch.tensor([[0.0], [1.0], [2.0], [9.0], [10.0], [11.0]])
    >>> measure_windows(line_PD, np.arange(6), 3, count=2).entanglement_W.round(4).tolist()
    [0.0658, 0.0658]
    """
    examples = len(embedding_PD)
    if not np.array_equal(np.sort(order_P), np.arange(examples)):
        raise DataError(
            f"windows: got {len(order_P)} ranks for {examples} embeddings, expected each row once"
        )
    if not 1 <= size < examples or count < 1:
        raise DataError(f"windows: got {count} of {size} examples, expected 1..{examples - 1} in each")
    last = examples - size
    start_W = np.unique(np.linspace(0, last, min(count, last + 1)).round().astype(np.int64))
    ends = np.unique(np.concatenate([[0, examples], start_W, start_W + size]))
    piece_P = np.empty(examples, np.int64)
    piece_P[order_P] = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    found = moments(embedding_PD, torch.as_tensor(piece_P, device=embedding_PD.device), groups=len(ends) - 1)
    together = Moments(*(tensor.cpu() for tensor in found))  # merging takes thousands of tiny operations
    pieces = [Moments(*(tensor[k : k + 1] for tensor in together)) for k in range(len(ends) - 1)]

    def entanglement(start: int) -> float:
        first, after = np.searchsorted(ends, [start, start + size])
        return entanglement_of(merge(*pieces[:first], *pieces[after:]), merge(*pieces[first:after]))

    return Windows(size, start_W, np.array([entanglement(start) for start in start_W]))
