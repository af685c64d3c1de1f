"""Batches from a uint8 image set that lies on the device as a whole."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rumfast.data.dataset import Examples
from rumfast.kernels.augment import augment
from rumfast.loaders.base import Batch, Loader, batch_bounds

# Batches, and values in them, that one call augments on a GPU: for a small batch the call takes the host
# longer than the work takes the device.
AT_ONCE, AT_ONCE_VALUES = 16, 1 << 24


class ResidentLoader(Loader):
    """Puts one split on the device once and serves any subset of it, for any number of members.

    See `Loader` for the options.
    """

    def __init__(
        self,
        examples: Examples,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device | str,
        **options: Any,
    ):
        super().__init__(mean, std, device=device, **options)
        self.image_NHWC = torch.from_numpy(examples.image_NHWC).to(self.device)
        self.label_N = torch.from_numpy(examples.label_N).to(self.device)
        batch_values = self.batch_size * max(1, examples.image_NHWC[:1].size)
        on_gpu = self.device.type == "cuda"
        self._at_once = max(1, min(AT_ONCE, AT_ONCE_VALUES // batch_values)) if on_gpu else 1

    def _batches(self, order: torch.Tensor, seed: int, epoch: int) -> Iterator[Batch]:
        bounds = batch_bounds(len(order), self.batch_size)
        order = self._moved(order)
        for first in range(0, len(bounds), self._at_once):
            some = bounds[first : first + self._at_once]
            start, stop = some[0][0], some[-1][1]
            id_K = order[start:stop]
            image_K = augment(self.image_NHWC, id_K, seed=seed, epoch=epoch, **self._options)
            label_K = self.label_N[id_K]
            for low, high in some:
                part = slice(low - start, high - start)
                yield Batch(image_K[part], label_K[part], id_K[part])
