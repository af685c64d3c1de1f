"""Training: one epoch through ``Learner``, against plain PyTorch loops."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rumfast.bench.breakdown import Loop, shares
from rumfast.bench.cases import OURS, Measure, case
from rumfast.bench.loader import ffcv_epochs
from rumfast.bench.plain import Pairs, on_device, plain_epoch, plain_loader, plain_loss, plain_workers
from rumfast.bench.report import SHARE_OF_EPOCH
from rumfast.bench.setting import CLASSES, Setting, random_dataset
from rumfast.bench.timing import interleave, peak_megabytes
from rumfast.config import TrainConfig, load_recipe
from rumfast.data import Dataset, write_beton
from rumfast.models import build_model
from rumfast.training import Learner

PLAIN, HALF = "plain fp32 NCHW", "eager bf16 channels-last"
COMPILED = "torch.compile dynamic=False, bf16 channels-last"
REDUCED = "torch.compile reduce-overhead, dynamic=False, bf16 channels-last"
FFCV = "ffcv augmenting on the CPU, eager bf16 channels-last"
RECIPE = "cifar10-small"  # shipped for two CPU cores
LR = 0.01  # random labels must not diverge


def cases(setting: Setting, steps: int | None = None) -> dict[str, Measure]:
    """Time epochs on random 32×32 images, with equal batches and steps for all.

    ResNet-18, on CUDA ResNet-9 too, and a recipe; a quick run has ResNet-8 alone. Without ``quick``,
    compiling a peer takes about 100 s once on a CPU.

    Args:
        steps: of the first case's epoch; None: as many as the setting can bear.
    """
    steps = steps or setting.size(8, 4, 40)
    found: dict[str, Measure] = {}

    def add(name: str, config: TrainConfig, steps: int) -> None:
        found[name] = lambda: [epoch_case(name, setting, config, steps)]

    add("train epoch", augmented("resnet8" if setting.quick else "resnet18", setting), steps)
    if setting.quick:
        return found
    if setting.device.type == "cuda":
        add("train epoch, resnet9", augmented("resnet9", setting), steps)
    small = load_recipe(f"{RECIPE}.toml").train.model_copy(update={"lr": LR})
    add(f"train epoch, {RECIPE}", small, setting.size(8, 40, 40))
    return found


def augmented(arch: Literal["resnet8", "resnet9", "resnet18"], setting: Setting) -> TrainConfig:
    """An architecture's recipe with flips and crops."""
    batch = setting.size(64, 64, 512)
    return TrainConfig(arch=arch, batch_size=batch, lr=LR, flip=True, crop_padding=4)


def epoch_case(name: str, setting: Setting, config: TrainConfig, steps: int) -> dict[str, Any]:
    """Time an epoch in every way that can run here; ours and the plain one also phase by phase.

    All ways let CUDA choose convolutions by timing them. The first call of each, which chooses, compiles and
    records, is not timed.
    """
    data = random_dataset(steps * config.batch_size)
    learner = Learner(data, config, str(setting.device))
    with tempfile.TemporaryDirectory() as folder, tuned_convolutions():
        loops, missing = ways(setting, learner, data, Path(folder))
        calls = {way: loop.epoch for way, loop in loops.items()}
        samples = interleave(calls, 3 if setting.quick else 5, setting.device)
        peak = peak_megabytes(calls, setting.device)
        rounds = 1 if setting.quick else 3
        parts = {way: shares(loops[way], setting.device, rounds) for way in (OURS, PLAIN) if way in loops}
    gflop = len(data) * gflop_per_image(config.arch, width=config.width, stem_stride=config.stem_stride)
    rate = {way: 1000 * gflop / min(times) for way, times in samples.items()}
    limit = {way: setting.matmul_gflop_s[_name(loop.dtype)] for way, loop in loops.items()}
    notes = {"GFLOP/s at best": rate, "share of roofline": {way: rate[way] / limit[way] for way in rate}}
    return case(
        name,
        f"{config.arch}, {list(data.train.image_NHWC.shape)} uint8, batch {config.batch_size}",
        _name(learner.dtype),
        samples,
        missing=missing,
        throughput=("images/s", len(data)),
        notes=notes | ({"peak MB": peak} if peak else {}) | _by_part(parts),
    )


@contextmanager
def tuned_convolutions() -> Iterator[None]:
    """Let cuDNN choose each convolution by timing its algorithms."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _by_part(parts: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {f"{SHARE_OF_EPOCH}{part}": {way: parts[way][part] for way in parts} for part in parts[OURS]}


def ways(
    setting: Setting, learner: Learner, data: Dataset, folder: Path
) -> tuple[dict[str, Loop], dict[str, str]]:
    """Ours and each peer that can run here, and why each other cannot.

    Args:
        folder: where FFCV's file is written and read.
    """
    makers: dict[str, Callable[[], Loop]] = {
        OURS: lambda: learner_loop(learner),
        PLAIN: lambda: plain_loop(data, learner.config, setting.device),
        HALF: lambda: half_loop(learner),
        COMPILED: lambda: half_loop(learner, "default"),
        REDUCED: lambda: half_loop(learner, "reduce-overhead"),
        FFCV: lambda: ffcv_loop(folder / "train.beton", data, learner.config, setting.device),
    }
    missing = {peer: reason for peer, reason in obstacles(setting, learner.config).items() if reason}
    return {way: make() for way, make in makers.items() if way not in missing}, missing


def obstacles(setting: Setting, config: TrainConfig) -> dict[str, str]:
    """Why each peer cannot run here; empty if it can."""
    cuda = setting.device.type == "cuda"
    emulated = "" if setting.native_bf16 else "bf16 is emulated here"
    quick = "left out of quick runs" if setting.quick else ""
    compiler = "" if shutil.which("g++") else "no C++ compiler"
    unread = "" if find_spec("ffcv") else "ffcv is not installed"
    plain_images = "" if config.flip and config.crop_padding else "the recipe does not augment"
    return {
        PLAIN: "" if find_spec("torchvision") else "torchvision is not installed",
        HALF: emulated,
        COMPILED: emulated or ("" if cuda else quick or compiler),
        REDUCED: emulated or ("" if cuda else "for CUDA alone"),
        FFCV: emulated or quick or unread or plain_images,
    }


def learner_loop(learner: Learner) -> Loop:
    """Ours: the same recorded steps from epoch to epoch, as from model to model of a sweep."""
    config = learner.config
    optimizer = learner.optimizer(config.lr, config.momentum, config.weight_decay)
    stepper = learner.stepper(optimizer, learner.cross_entropy)
    ids = torch.arange(len(learner.loader), device=learner.device)
    seeds = count()
    return Loop(
        lambda: learner.take(learner.batches(ids, 1, next(seeds)), stepper),
        lambda: learner.batches(ids, 1, next(seeds)),
        lambda batch: learner.cross_entropy(batch)[0],
        optimizer,
        learner.model,
        learner.dtype,
        learner.threads,
    )


def plain_loop(data: Dataset, config: TrainConfig, device: torch.device) -> Loop:
    """The loop of most research code: DataLoader and torchvision transforms, float32, contiguous layout."""
    loader = plain_loader(
        data,
        batch_size=config.batch_size,
        flip=config.flip,
        crop_padding=config.crop_padding,
        workers=plain_workers(device),
        device=device,
    )
    model = _model(config, device).to(memory_format=torch.contiguous_format)
    return _peer(model, config, lambda: on_device(loader, device), torch.float32)


def half_loop(learner: Learner, mode: str | None = None) -> Loop:
    """bf16 and channels-last, from our loader's batches: what is left to gain besides loading and layout.

    Args:
        mode: of torch.compile, with ``dynamic=False``; None runs eagerly.
    """
    model = _model(learner.config, learner.device)
    if mode is not None:
        model.compile(dynamic=False, mode=mode)
    ids = torch.arange(len(learner.loader), device=learner.device)
    seeds = count()
    return _peer(model, learner.config, lambda: pairs(learner, ids, next(seeds)), torch.bfloat16)


def ffcv_loop(beton: Path, data: Dataset, config: TrainConfig, device: torch.device) -> Loop:
    """FFCV's own way: its loader crops and flips on the CPU, and feeds an eager bf16 channels-last model."""
    write_beton(beton, data.train)
    batches = ffcv_epochs(beton, data, device, config.batch_size)
    return _peer(_model(config, device), config, batches, torch.bfloat16)


def _peer(
    model: nn.Module, config: TrainConfig, batches: Callable[[], Pairs], dtype: torch.dtype
) -> Loop:
    optimizer = plain_sgd(model, config)
    loss_of = partial(plain_loss, model, dtype=dtype)
    return Loop(
        lambda: plain_epoch(model, optimizer, batches(), dtype),
        batches,
        loss_of,
        optimizer,
        model,
        dtype,
        torch.get_num_threads(),
    )


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


def gflop_per_image(arch: str, size: int = 32, width: int | None = None, stem_stride: int = 1) -> float:
    """10⁹ floating point operations of one forward and backward pass, of convolutions and products alone."""
    model = build_model(arch, CLASSES, width=width, stem_stride=stem_stride).train()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, size, size)).sum().backward()
    return counter.get_total_flops() / 2e9


def _model(config: TrainConfig, device: torch.device) -> nn.Module:
    return build_model(config.arch, CLASSES, width=config.width, stem_stride=config.stem_stride).to(device)
