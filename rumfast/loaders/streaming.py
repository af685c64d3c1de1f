"""Batches streamed from a beton by FFCV, for image sets that do not fit on the device."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import torch

from rumfast.data.beton import FFCV_INSTALL
from rumfast.data.layout import read_tables
from rumfast.errors import DataError, UsageError
from rumfast.kernels.augment import augment_images
from rumfast.loaders.base import Batch, Loader, batch_bounds, largest_batch
from rumfast.runtime import usable_cores

STALL_S = 300.0  # seconds without a batch after which the file system is taken for dead


class StreamingLoader(Loader):
    """The contract and the very batches of ResidentLoader, read from `beton_path` while training.

    FFCV only decodes, three batches ahead; order, cropping and flipping are rumfast's own, on the device. One
    decoding thread (`num_workers`) reads about a million small images per second. Needs the extra
    `rumfast[ffcv]`; raises UsageError without it, DataError for a corrupt file. See `Loader` for the options.
    """

    def __init__(
        self,
        beton_path: str | Path,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device | str,
        num_workers: int = 1,
        **options: Any,
    ):
        super().__init__(mean, std, device=device, **options)
        cores = usable_cores()
        if not 1 <= num_workers <= cores:
            raise UsageError(f"num_workers: found {num_workers}, expected 1..{cores}, the cores at hand")
        self.tables = read_tables(beton_path)
        self.label_N = torch.from_numpy(self.tables.label_N).to(self.device)
        most = min(largest_batch(self.batch_size), len(self))
        self._ffcv = _open_ffcv(self.tables.path, most, num_workers)

    def _batches(self, order: torch.Tensor, seed: int, epoch: int) -> Iterator[Batch]:
        bounds = batch_bounds(len(order), self.batch_size)
        order_there = self._moved(order)
        decoded = _decoded(self._ffcv, order.numpy(), bounds, self.tables.path)
        with closing(decoded), closing(_on_device(decoded, self.device)) as images:
            for (start, stop), image_BHWC in zip(bounds, images, strict=True):
                id_B = order_there[start:stop]
                image = augment_images(image_BHWC, id_B, seed=seed, epoch=epoch, **self._options)
                yield Batch(image, self.label_N[id_B], id_B)


class _Order:
    """An FFCV traversal order that comes in batches as ``batch_bounds`` cuts them.

    FFCV asks for ``order[: examples]``, and then for ``order[k * size : (k + 1) * size]`` as its batch k, as
    long as the order's length says that there are batches.
    """

    def __init__(self, order: np.ndarray, bounds: Sequence[tuple[int, int]], size: int):
        self.order = order
        self.bounds = bounds
        self.size = size

    def sample_order(self, epoch: int) -> "_Order":
        return self

    def __len__(self) -> int:
        return len(self.bounds) * self.size

    def __getitem__(self, part: slice) -> "_Order | np.ndarray":
        if part.start is None:
            return self
        start, stop = self.bounds[part.start // self.size]
        return self.order[start:stop]


def _open_ffcv(path: Path, batch_size: int, num_workers: int):
    with _torch_threads_kept():
        try:
            from ffcv.fields.rgb_image import SimpleRGBImageDecoder
            from ffcv.loader import Loader, OrderOption
        except ImportError as error:
            raise UsageError(f"streaming needs ffcv ({error}): {FFCV_INSTALL}") from error
        return Loader(
            str(path),
            batch_size=batch_size,
            num_workers=num_workers,
            os_cache=True,
            order=OrderOption.SEQUENTIAL,
            pipelines={"image": [SimpleRGBImageDecoder()], "label": None},
            drop_last=False,
        )


def _decoded(
    ffcv_loader, order: np.ndarray, bounds: Sequence[tuple[int, int]], path: Path
) -> Generator[np.ndarray]:
    """Batches [B, H, W, 3] uint8 in FFCV's ring of buffers, each valid until the next one is asked for.

    The buffers are pinned where there is CUDA, once in an epoch.
    """
    ffcv_loader.traversal_order = _Order(order, bounds, ffcv_loader.batch_size)
    threads = torch.get_num_threads()
    epoch = iter(ffcv_loader)
    try:
        while (item := _next_item(epoch, path)) is not None:
            # FFCV's thread sets torch's thread count once more before its first batch.
            torch.set_num_threads(threads)
            yield item[1][0]
    finally:
        torch.set_num_threads(threads)
        _join(epoch)


def _next_item(epoch, path: Path):
    """The next (slot, arrays) of FFCV's thread, or None; its own `next` waits for ever if the thread dies."""
    waited = 0.0
    while waited < STALL_S:
        alive = epoch.is_alive()
        try:
            return epoch.output_queue.get(timeout=0.5)
        except Empty:
            waited += 0.5
        if not alive:
            break
    raise DataError(f"{path}: decoding stopped; `rumfast data verify {path.parent}` checks the file")


def _join(epoch) -> None:
    epoch.close()
    epoch.iter_ixes = iter(())
    # The thread may be waiting for room in its queue, at the last to say that it ended.
    while epoch.is_alive():
        while not epoch.output_queue.empty():
            epoch.output_queue.get_nowait()
        epoch.join(0.01)


def _on_device(decoded: Iterable[np.ndarray], device: torch.device) -> Generator[torch.Tensor]:
    """The batches on ``device``; on CUDA, each is copied by a stream of its own while the one before is used.

    On a CPU they are views, valid until the next one is asked for.
    """
    if device.type != "cuda":
        yield from map(torch.from_numpy, decoded)
        return
    stream, copied = torch.cuda.Stream(device), torch.cuda.Event()
    ready: torch.Tensor | None = None
    try:
        for batch in chain(decoded, [None]):  # None: nothing is left to copy, but one is ready
            copying = None
            if batch is not None:
                with torch.cuda.stream(stream):
                    copying = torch.from_numpy(batch).to(device, non_blocking=True)
                    copied.record(stream)
            if ready is not None:
                # Its memory goes back to the copying stream, but not before this one has used it.
                ready.record_stream(torch.cuda.current_stream(device))
                yield ready
            copied.synchronize()  # FFCV may fill the buffer again once the next batch is asked for
            ready = copying
    finally:
        copied.synchronize()


@contextmanager
def _torch_threads_kept():
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
