"""What all suites of one run share: the device, sizes it can bear, its measured roofline, and random data."""

from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from rumfast.bench.timing import Call, interleave
from rumfast.config import DataConfig
from rumfast.data import Dataset
from rumfast.runtime import pick_device, pick_precision

CLASSES = 10
Size = TypeVar("Size")


@dataclass(frozen=True)
class Setting:
    """Where a run is measured.

    Attributes:
        copy_gb_s: measured memory traffic of a large copy, read and write, in 10⁹ bytes per second.
        matmul_gflop_s: measured rate of a large matrix product, by dtype.
    """

    device: torch.device
    quick: bool
    copy_gb_s: float
    matmul_gflop_s: dict[str, float]

    @classmethod
    def measure(cls, quick: bool) -> "Setting":
        """Take the best device and measure its roofline."""
        device = pick_device()
        copy, matmul = roofline(device, quick)
        return cls(device, quick, copy, matmul)

    def size(self, quick: Size, full: Size, cuda: Size) -> Size:
        """A size or shape by where it runs; a quick run on CUDA takes the CPU's full size."""
        if self.device.type == "cuda":
            return full if self.quick else cuda
        return quick if self.quick else full

    @property
    def native_bf16(self) -> bool:
        """Whether the device multiplies bf16 itself."""
        return pick_precision("auto", self.device) == torch.bfloat16


def roofline(device: torch.device, quick: bool) -> tuple[float, dict[str, float]]:
    """Copy rate in GB/s, and matrix product rates in GFLOP/s by dtype."""
    cuda, rounds = device.type == "cuda", 5 if quick else 15
    floats = (256 << 20) // 4 if cuda else (64 << 20) // 4
    source, target = torch.rand(floats, device=device), torch.empty(floats, device=device)
    width = 8192 if cuda else 1024
    dtypes = [torch.float32] + [torch.bfloat16] * (pick_precision("auto", device) == torch.bfloat16)
    factors = {
        str(dtype).removeprefix("torch."): torch.rand(width, width, device=device).to(dtype)
        for dtype in dtypes
    }
    variants: dict[str, Call] = {"copy": partial(target.copy_, source)}
    variants |= {name: partial(torch.mm, factor, factor) for name, factor in factors.items()}
    samples = interleave(variants, rounds, device, warmup=2)
    ms = {name: float(np.median(times)) for name, times in samples.items()}
    rates = {name: 2 * width**3 / ms[name] / 1e6 for name in factors}
    return 2 * source.nbytes / ms["copy"] / 1e6, rates


def limited(data: Dataset, config: DataConfig) -> Dataset:
    """As many examples as the recipe asks for, or all, if there are fewer."""
    train, test = config.train_examples, config.test_examples
    return data.take(
        None if train is None else min(train, len(data)),
        None if test is None else min(test, len(data.test)),
        config.seed,
    )


def random_dataset(examples: int, size: int = 32) -> Dataset:
    """Random images and labels: the cost of training on them is that of any images of their size."""
    draw = np.random.default_rng(0)
    image_NHWC = draw.integers(0, 256, (examples, size, size, 3), dtype=np.uint8)
    label_N = draw.permutation(np.arange(examples) % CLASSES)
    names = [str(label) for label in range(CLASSES)]
    return Dataset.from_arrays(image_NHWC, label_N, image_NHWC[:1], label_N[:1], names, name="random")
