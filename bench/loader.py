"""Loaders: crop, flip and normalise a whole epoch, against torchvision's and FFCV's own pipelines."""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rumfast.bench.cases import OURS, Case, Measure, Samples, case
from rumfast.bench.plain import Pairs, on_device, plain_loader
from rumfast.bench.setting import Setting, random_dataset
from rumfast.bench.timing import interleave
from rumfast.data import Dataset, write_beton
from rumfast.loaders import ResidentLoader, StreamingLoader
from rumfast.runtime import usable_cores

BATCH = 512  # examples
CROP_PADDING = 4  # pixels
RESIDENT, STREAMING = "rumfast ResidentLoader", "rumfast StreamingLoader"
FFCV = "ffcv, augmenting on the CPU"
PLAIN = {0: "DataLoader, 0 workers", 2: "DataLoader, 2 workers"}
SECONDS = 60.0  # for the timed rounds of one size

Epochs = Callable[[], Pairs]  # each call starts another epoch of images and labels


class Images(NamedTuple):
    """A size of images, with how many of them and in what batches: quick, full, and on CUDA.

    On a CPU, all batches hold about as many pixels, and all images lie below 80 MB.
    """

    side: int  # pixels
    examples: tuple[int, int, int]
    batch: tuple[int, int, int]

    @property
    def label(self) -> str:
        """What is added to a case's name; nothing for CIFAR's."""
        return "" if self.side == 32 else f", {self.side}×{self.side}"


SIZES = (  # of CIFAR, Tiny-ImageNet and ImageNet
    Images(32, (4096, 20_000, 50_000), (128, 128, BATCH)),
    Images(64, (1024, 5_000, 20_000), (128, 128, BATCH)),
    Images(224, (96, 500, 4_000), (16, 16, 256)),
)


def cases(setting: Setting) -> dict[str, Measure]:
    """Time an epoch of every loader on every size; each of ours is one case, with all others as its peers."""
    return {f"loaders{images.label}": partial(_cases, images, setting) for images in SIZES}


def _cases(images: Images, setting: Setting) -> list[Case]:
    data = random_dataset(setting.size(*images.examples), images.side)
    batch, device = setting.size(*images.batch), setting.device
    with tempfile.TemporaryDirectory() as folder:
        missing: dict[str, str] = {}
        loaders = {RESIDENT: resident_epochs(data, device, batch)}
        if importlib.util.find_spec("torchvision") is None:
            missing |= dict.fromkeys(PLAIN.values(), "torchvision is not installed")
        else:
            loaders |= plain_epochs(data, device, batch)
        if importlib.util.find_spec("ffcv") is None:
            missing[FFCV] = "not installed"
        else:
            beton = Path(folder) / "train.beton"
            write_beton(beton, data.train)
            loaders[STREAMING] = streaming_epochs(beton, data, device, batch)
            loaders[FFCV] = ffcv_epochs(beton, data, device, batch)
        variants = {name: partial(drain, epochs) for name, epochs in loaders.items()}
        samples = interleave(variants, 3 if setting.quick else 7, device, seconds=SECONDS)
    shape = f"{list(data.train.image_NHWC.shape)} uint8, batch {batch}, crop {CROP_PADDING}, flip"
    rate = ("images/s", len(data))
    return [
        case(
            f"{name}{images.label}", shape, "float32", renamed(samples, own), missing=missing, throughput=rate
        )
        for name, own in (("loader resident", RESIDENT), ("loader streaming", STREAMING))
        if own in samples
    ]


def renamed(samples: Samples, own: str) -> Samples:
    """The samples with ``own`` as the one that is ours."""
    return {OURS if name == own else name: times for name, times in samples.items()}


def drain(epochs: Epochs) -> int:
    """Take every batch of one epoch; returns the number of images."""
    return sum(len(image) for image, _ in epochs())


def resident_epochs(data: Dataset, device: torch.device, batch_size: int = BATCH) -> Epochs:
    """Ours, with the whole set on the device."""
    loader = ResidentLoader(
        data.train,
        data.mean,
        data.std,
        device=device,
        batch_size=batch_size,
        flip=True,
        crop_padding=CROP_PADDING,
    )
    return _numbered(loader)


def streaming_epochs(beton: Path, data: Dataset, device: torch.device, batch_size: int = BATCH) -> Epochs:
    """Ours, decoding while it augments."""
    loader = StreamingLoader(
        beton,
        data.mean,
        data.std,
        device=device,
        batch_size=batch_size,
        flip=True,
        crop_padding=CROP_PADDING,
    )
    return _numbered(loader)


def _numbered(loader: ResidentLoader | StreamingLoader) -> Epochs:
    number = count()
    return lambda: ((batch.image, batch.label) for batch in loader.epoch(epoch=next(number)))


def plain_epochs(data: Dataset, device: torch.device, batch_size: int = BATCH) -> dict[str, Epochs]:
    """torch's DataLoader over torchvision's transforms, in this process and with two workers that stay."""
    loaders = {
        name: plain_loader(
            data,
            batch_size=batch_size,
            crop_padding=CROP_PADDING,
            workers=workers,
            device=device,
        )
        for workers, name in PLAIN.items()
    }
    return {name: partial(on_device, loader, device) for name, loader in loaders.items()}


def ffcv_epochs(beton: Path, data: Dataset, device: torch.device, batch_size: int = BATCH) -> Epochs:
    """FFCV's Loader with its own compiled flip, translation and normalisation on all cores."""
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import (
        NormalizeImage,
        RandomHorizontalFlip,
        RandomTranslate,
        Squeeze,
        ToDevice,
        ToTensor,
        ToTorchImage,
    )

    # FFCV sets torch's thread count for the whole process, when made and when read.
    threads = torch.get_num_threads()
    mean, std = 255 * np.array(data.mean), 255 * np.array(data.std)
    move = [ToDevice(device)] if device.type == "cuda" else []
    loader = Loader(
        str(beton),
        batch_size=batch_size,
        num_workers=usable_cores(),
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=False,
        pipelines={
            "image": [
                SimpleRGBImageDecoder(),
                RandomHorizontalFlip(),
                RandomTranslate(padding=CROP_PADDING),
                NormalizeImage(mean, std, np.float32),
                ToTensor(),
                *move,
                ToTorchImage(),
            ],
            "label": [IntDecoder(), ToTensor(), *move, Squeeze(1)],
        },
    )
    torch.set_num_threads(threads)
    return partial(_keeping_threads, loader, threads)


def _keeping_threads(loader: Pairs, threads: int) -> Iterator[tuple[Tensor, Tensor]]:
    try:
        yield from loader
    finally:
        torch.set_num_threads(threads)
