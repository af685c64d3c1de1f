"""The plain worker: train one member of a sweep in a process of its own, with eager PyTorch and a DataLoader.

``python -m rumfast.bench.member FOLDER INDEX DEVICE`` reads what ``sweep.prepare`` wrote, trains, predicts
every training and test example, writes their logits, and prints the test accuracy.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rumfast.bench.plain import normalised, on_device, plain_epoch
from rumfast.models import build_model


def train_member(folder: Path, index: int, device: torch.device) -> float:
    """Train member ``index`` by the recipe in ``folder``; returns its test accuracy in [0, 1]."""
    recipe = json.loads((folder / "recipe.json").read_text())
    with np.load(folder / "arrays.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    train_image, test_image = (
        normalised(arrays[f"{part}_image"], arrays["mean"], arrays["std"]) for part in ("train", "test")
    )
    ids = torch.from_numpy(arrays["ids"][index])
    torch.manual_seed(index)
    chosen = TensorDataset(train_image[ids], torch.from_numpy(arrays["train_label"])[ids])
    model = build_model(
        recipe["arch"],
        recipe["classes"],
        width=recipe["width"],
        stem_stride=recipe["stem_stride"],
        seed=index,
    )
    model = model.to(memory_format=torch.contiguous_format).to(device)  # type: ignore[call-overload]
    fit(model, DataLoader(chosen, recipe["batch_size"], shuffle=True), recipe, device)
    train_NC, test_NC = (logits(model, images, device) for images in (train_image, test_image))
    np.savez(folder / f"logits-{index}.npz", train=train_NC, test=test_NC)
    return float((test_NC.argmax(1) == arrays["test_label"]).mean())


def fit(model: nn.Module, loader: DataLoader, recipe: dict, device: torch.device) -> None:
    """Train by a recipe that holds the learning rate of each step, ``lr_of_step``, and of the one after."""
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=1.0,
        momentum=recipe["momentum"],
        weight_decay=recipe["weight_decay"],
        foreach=True,
    )
    lr_of_step = recipe["lr_of_step"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_of_step[step])
    for _ in range(recipe["epochs"]):
        plain_epoch(model, optimizer, on_device(loader, device), after_step=schedule.step)


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, device: torch.device) -> np.ndarray:
    """Logits [N, C] of normalised images [N, 3, H, W]."""
    model.eval()
    return torch.cat([model(part.to(device)).cpu() for part in images.split(1024)]).numpy()


if __name__ == "__main__":
    print(train_member(Path(sys.argv[1]), int(sys.argv[2]), torch.device(sys.argv[3])))
