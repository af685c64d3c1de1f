"""Training: one epoch through ``Learner``, against plain PyTorch loops."""

from collections.abc import Iterator
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rumfast.bench.cases import OURS, case
from rumfast.bench.plain import on_device, plain_epoch, plain_loader
from rumfast.bench.setting import CLASSES, Setting, random_dataset
from rumfast.bench.timing import Call, interleave, peak_megabytes
from rumfast.config import TrainConfig
from rumfast.data import Dataset
from rumfast.models import build_model
from rumfast.training import Learner

PLAIN, HALF, COMPILED = "plain fp32 NCHW", "eager bf16 channels-last", "torch.compile bf16 channels-last"


def cases(setting: Setting) -> list[dict[str, Any]]:
    """Time one epoch of one architecture on random 32×32 images, with equal batches and steps for all."""
    batch = setting.size(64, 64, 512)
    data = random_dataset(batch * setting.size(8, 4, 100))
    arch: Literal["resnet8", "resnet18"] = "resnet8" if setting.quick else "resnet18"
    config = TrainConfig(arch=arch, batch_size=batch, lr=0.01, flip=True, crop_padding=4)
    learner = Learner(data, config, str(setting.device))
    variants: dict[str, Call] = {OURS: learner_epochs(learner), PLAIN: plain_epochs(data, config, setting)}
    missing = {}
    if setting.native_bf16:
        variants[HALF] = half_epochs(learner, _model(config, setting.device))
    else:
        missing[HALF] = "bf16 is emulated here"
    if setting.device.type == "cuda":
        variants[COMPILED] = half_epochs(learner, _model(config, setting.device), compiles=True)
    samples = interleave(variants, 3 if setting.quick else 5, setting.device)
    peak = peak_megabytes(variants, setting.device)
    shape = f"{config.arch}, {list(data.train.image_NHWC.shape)} uint8, batch {batch}"
    dtype = str(learner.dtype).removeprefix("torch.")
    gflop = len(data) * gflop_per_image(config.arch)
    rate = {name: 1000 * gflop / min(ms) for name, ms in samples.items()}
    notes = {"GFLOP/s at best": rate} | ({"peak MB": peak} if peak else {})
    return [
        case(
            "train epoch",
            shape,
            dtype,
            samples,
            missing=missing,
            throughput=("images/s", len(data)),
            notes=notes,
        )
    ]


def learner_epochs(learner: Learner) -> Call:
    """Ours: each call takes one epoch's steps."""
    config = learner.config
    optimizer = learner.optimizer(config.lr, config.momentum, config.weight_decay)
    ids = torch.arange(len(learner.loader), device=learner.device)
    seeds = count()
    return lambda: learner.descend(learner.batches(ids, 1, next(seeds)), optimizer, learner.cross_entropy)


def plain_epochs(data: Dataset, config: TrainConfig, setting: Setting) -> Call:
    """The loop of most research code: DataLoader and torchvision transforms, float32, contiguous layout."""
    workers = 8 if setting.device.type == "cuda" else 0  # on a CPU they would take cores from the model
    loader = plain_loader(
        data.train.image_NHWC,
        data.train.label_N,
        data.mean,
        data.std,
        batch_size=config.batch_size,
        crop_padding=config.crop_padding,
        workers=workers,
        device=setting.device,
    )
    model = _model(config, setting.device).to(memory_format=torch.contiguous_format)
    optimizer = plain_sgd(model, config)
    return lambda: plain_epoch(model, optimizer, on_device(loader, setting.device))


def half_epochs(learner: Learner, model: nn.Module, compiles: bool = False) -> Call:
    """bf16 and channels-last, from our loader's batches: what is left to gain besides loading and layout."""
    optimizer = plain_sgd(model, learner.config)
    if compiles:
        model.compile(dynamic=False)
    ids = torch.arange(len(learner.loader), device=learner.device)
    seeds = count()
    return lambda: plain_epoch(model, optimizer, pairs(learner, ids, next(seeds)), torch.bfloat16)


def pairs(learner: Learner, ids: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of the learner's own batches, as (image, label)."""
    return ((batch.image, batch.label) for batch in learner.batches(ids, 1, seed))


def plain_sgd(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD in its foreach form, torch's default on CUDA."""
    return torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        foreach=True,
    )


def gflop_per_image(arch: str, size: int = 32) -> float:
    """10⁹ floating point operations of one forward and backward pass, of convolutions and products alone."""
    model = build_model(arch, CLASSES).train()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, size, size)).sum().backward()
    return counter.get_total_flops() / 2e9


def _model(config: TrainConfig, device: torch.device) -> nn.Module:
    return build_model(config.arch, CLASSES).to(device)
