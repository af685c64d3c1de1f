"""What both loaders share: the contract, sizes of batches, and the order of examples."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch

from rumfast.data.splits import check_ids
from rumfast.errors import UsageError
from rumfast.runtime import generator

NEAR = 20  # a batch size may differ by one part in 20 from what is asked for, if all are then of one size


class Batch(NamedTuple):
    """`image` [B, 3, H, W] channels-last, `label` and `id` int64 [B], all on the loader's device."""

    image: torch.Tensor
    label: torch.Tensor
    id: torch.Tensor


class Loader:
    """One split, served in shuffled batches as `batch_bounds` cuts them.

    The same seed, epoch and ids give the same batches on every device.

    Args:
        mean, std: per channel, in [0, 1] units.
        crop_padding: pixels.
    """

    label_N: torch.Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device | str,
        batch_size: int,
        seed: int = 0,
        flip: bool = False,
        crop_padding: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        _check_options(batch_size, crop_padding)
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.seed = seed
        self._options: dict[str, Any] = dict(
            flip=flip, crop_padding=crop_padding, mean=tuple(mean), std=tuple(std), dtype=dtype
        )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.label_N)

    def epoch(
        self, ids=None, epoch: int = 0, shuffle: bool = True, seed: int | None = None
    ) -> Iterator[Batch]:
        """The batches of one epoch over `ids` (None: all examples), each example once.

        Raises DataError for ids that `check_ids` refuses, before the first batch.
        """
        chosen = _checked(ids, len(self))
        return self._epoch(chosen, epoch, self.seed if seed is None else seed, shuffle)

    def epochs(self, ids=None, seed: int | None = None) -> Iterator[Iterator[Batch]]:
        """`epoch` 0, 1, … of `ids`, without end; the ids are checked, and fetched from their device, once."""
        chosen = _checked(ids, len(self))
        seed = self.seed if seed is None else seed
        return (self._epoch(chosen, epoch, seed, True) for epoch in count())

    def _epoch(self, ids: torch.Tensor, epoch: int, seed: int, shuffle: bool) -> Iterator[Batch]:
        order = ids
        if shuffle:
            order = ids[torch.randperm(len(ids), generator=generator("order", seed, epoch))]
        return self._batches(order, seed, epoch)

    def _batches(self, order: torch.Tensor, seed: int, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch in `order`, int64 ids on the CPU."""
        raise AssertionError("each loader defines its own")

    def _moved(self, order: torch.Tensor) -> torch.Tensor:
        """`order` on the loader's device; from pinned memory the host need not wait for the copy."""
        if self.device.type == "cuda":
            order = order.pin_memory()
        return order.to(self.device, non_blocking=True)


def batch_bounds(n: int, batch_size: int) -> list[tuple[int, int]]:
    """(start, stop) of the batches of n examples: of one size if a size near ``batch_size`` divides n.

    ⌈n / batch_size⌉ batches if n is a multiple of their number; else batches of the size nearest to
    ``batch_size`` that divides n, at most 5 % away; else ⌈n / batch_size⌉ whose sizes differ by one. One size
    lets a GPU compile, tune and record a step once.

    >>> batch_bounds(9, 4), batch_bounds(50, 24), batch_bounds(7, 4)
    ([(0, 3), (3, 6), (6, 9)], [(0, 25), (25, 50)], [(0, 3), (3, 7)])
    """
    count = batch_count(n, batch_size)
    return [(n * k // count, n * (k + 1) // count) for k in range(count)]


def batch_count(n: int, batch_size: int) -> int:
    """How many batches ``batch_bounds`` makes of n examples.

    >>> batch_count(31_500, 256)  # of 252
    125
    """
    fewest = -(-n // batch_size)
    if not n or n % fewest == 0:
        return fewest
    nearby = range(batch_size - batch_size // NEAR, largest_batch(batch_size) + 1)
    sizes = [size for size in nearby if n % size == 0]
    return n // min(sizes, key=lambda size: (abs(size - batch_size), size)) if sizes else fewest


def largest_batch(batch_size: int) -> int:
    """Most examples in a batch where ``batch_size`` are asked for."""
    return batch_size + batch_size // NEAR


def _checked(ids, n: int) -> torch.Tensor:
    """`ids` (None: all n) as an int64 CPU tensor."""
    return torch.arange(n) if ids is None else torch.from_numpy(check_ids(ids, n, "ids").copy())


def _check_options(batch_size: int, crop_padding: int) -> None:
    """UsageError unless the batch size is at least one and the padding not negative."""
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise UsageError(f"batch_size: found {batch_size!r}, expected an integer of at least 1")
    if not isinstance(crop_padding, int | np.integer) or crop_padding < 0:
        raise UsageError(f"crop_padding: found {crop_padding!r}, expected pixels, 0 or more")
