"""Batches from a uint8 image set that lies on the device as a whole."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from rumfast.data.dataset import Examples
from rumfast.data.splits import check_ids
from rumfast.errors import UsageError
from rumfast.kernels.augment import augment
from rumfast.runtime import generator


class Batch(NamedTuple):
    """`image` [B, 3, H, W] channels-last, `label` and `id` int64 [B], all on the loader's device."""

    image: torch.Tensor
    label: torch.Tensor
    id: torch.Tensor


class ResidentLoader:
    """Puts one split on the device once and serves any subset of it, for any number of members.

    `mean` and `std` are per channel in [0, 1] units; `crop_padding` is in pixels. Batches come as
    `batch_bounds` cuts them. The same seed, epoch and ids give the same batches on every device.
    """

    def __init__(
        self,
        examples: Examples,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device | str,
        batch_size: int,
        seed: int = 0,
        flip: bool = False,
        crop_padding: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        check_options(batch_size, crop_padding)
        self.device = torch.device(device)
        self.image_NHWC = torch.from_numpy(examples.image_NHWC).to(self.device)
        self.label_N = torch.from_numpy(examples.label_N).to(self.device)
        self.batch_size = batch_size
        self.seed = seed
        self._options: dict[str, Any] = dict(
            flip=flip, crop_padding=crop_padding, mean=tuple(mean), std=tuple(std), dtype=dtype
        )

    def __len__(self) -> int:
        """Number of examples that lie on the device."""
        return len(self.label_N)

    def epoch(
        self, ids=None, epoch: int = 0, shuffle: bool = True, seed: int | None = None
    ) -> Iterator[Batch]:
        """The batches of one epoch over `ids` (None: all examples), each example once.

        Raises DataError for ids that `check_ids` refuses, before the first batch.
        """
        seed = self.seed if seed is None else seed
        order = epoch_order(ids, len(self), seed=seed, epoch=epoch, shuffle=shuffle)
        return self._batches(order.to(self.device), seed, epoch)

    def _batches(self, order: torch.Tensor, seed: int, epoch: int) -> Iterator[Batch]:
        for start, stop in batch_bounds(len(order), self.batch_size):
            id_B = order[start:stop]
            image = augment(self.image_NHWC, id_B, seed=seed, epoch=epoch, **self._options)
            yield Batch(image, self.label_N[id_B], id_B)


def batch_bounds(n: int, batch_size: int) -> list[tuple[int, int]]:
    """(start, stop) of ceil(n / batch_size) batches whose sizes differ by at most one.

    >>> batch_bounds(9, 4)
    [(0, 3), (3, 6), (6, 9)]
    """
    count = -(-n // batch_size)
    return [(n * k // count, n * (k + 1) // count) for k in range(count)]


def epoch_order(ids, n: int, *, seed: int, epoch: int, shuffle: bool) -> torch.Tensor:
    """Checked ids as an int64 CPU tensor in the order of one epoch."""
    order = torch.arange(n) if ids is None else torch.from_numpy(check_ids(ids, n, "ids").copy())
    if not shuffle:
        return order
    return order[torch.randperm(len(order), generator=generator("order", seed, epoch))]


def check_options(batch_size: int, crop_padding: int) -> None:
    """UsageError unless the batch size is at least one and the padding not negative."""
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise UsageError(f"batch_size: found {batch_size!r}, expected an integer of at least 1")
    if not isinstance(crop_padding, int | np.integer) or crop_padding < 0:
        raise UsageError(f"crop_padding: found {crop_padding!r}, expected pixels, 0 or more")
