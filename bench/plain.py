"""The peers' way to train: plain eager PyTorch, as most research code has it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from rumfast.data import Dataset as Data

Pairs = Iterable[tuple[Tensor, Tensor]]  # images [B, 3, H, W] and labels [B]


class PlainImages(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's data sets give them: through PIL, one by one."""

    def __init__(self, image_NHWC: np.ndarray, label_N: np.ndarray, transform: Callable[..., Tensor]) -> None:
        self.image_NHWC = image_NHWC
        self.label_N = label_N
        self.transform = transform

    def __len__(self) -> int:
        return len(self.label_N)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.image_NHWC[index])), int(self.label_N[index])


def plain_loader(
    data: Data,
    *,
    batch_size: int,
    flip: bool = True,
    crop_padding: int,
    workers: int,
    device: torch.device,
) -> DataLoader:
    """A shuffling DataLoader of the training images over torchvision transforms: crop, flip, normalise.

    Its order, crops and flips are drawn from torch's global generator.
    """
    from torchvision import transforms

    random: list[Callable[..., Any]] = []
    if crop_padding:
        random.append(transforms.RandomCrop(data.image_size, padding=crop_padding))
    if flip:
        random.append(transforms.RandomHorizontalFlip())
    transform = transforms.Compose(
        [*random, transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    )
    images = PlainImages(data.train.image_NHWC, data.train.label_N, transform)
    return DataLoader(
        images,
        batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )


def plain_workers(device: torch.device) -> int:
    """Processes that load while a model trains: on a CPU none, since they would take cores from the model."""
    return 8 if device.type == "cuda" else 0


def on_device(batches: Pairs, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches on ``device``."""
    for image, label in batches:
        yield image.to(device, non_blocking=True), label.to(device, non_blocking=True)


def plain_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Pairs,
    dtype: torch.dtype = torch.float32,
    after_step: Callable[[], None] = lambda: None,
) -> float:
    """One SGD step per batch on the mean cross-entropy; returns the last loss.

    Args:
        dtype: computed in under autocast; float32 goes without.
    """
    model.train()
    loss = torch.zeros(())
    for pair in batches:
        loss = plain_loss(model, pair, dtype)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after_step()
    return loss.item()


def plain_loss(model: nn.Module, pair: tuple[Tensor, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """Mean cross-entropy of a batch (image, label), computed in ``dtype`` under autocast."""
    image, label = pair
    with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
        return cross_entropy(model(image).float(), label)


def normalised(image_NHWC: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Tensor:
    """Images [N, 3, H, W] in float32, each channel shifted by its mean and divided by its deviation."""
    scaled_NHWC = (image_NHWC / 255 - mean) / std
    return torch.from_numpy(scaled_NHWC.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
