"""Timings of the hot paths with pytest-benchmark: ``pytest tests/bench --benchmark-only``.

Only results are asserted here; ratios to peers are measured by ``rumfast bench``.
"""

import pytest
import torch

from rumfast.kernels.augment import augment
from rumfast.kernels.margins import margins
from rumfast.kernels.moments import moments


@pytest.mark.parametrize("classes", [10, 100])
def test_margins(benchmark, classes):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, classes, generator=draw)
    label = torch.randint(classes, (20_000,), generator=draw)
    result = benchmark(margins, logits, label)
    torch.testing.assert_close(
        result.loss, torch.nn.functional.cross_entropy(logits, label, reduction="none")
    )


def test_moments(benchmark):
    points = torch.randn(5_000, 128, generator=torch.Generator().manual_seed(0))
    result = benchmark(moments, points, torch.arange(5_000) % 2, 2)
    torch.testing.assert_close(result.mean_GD[0], points[::2].double().mean(0))


def test_augment(benchmark):
    draw = torch.Generator().manual_seed(0)
    image_NHWC = torch.randint(256, (512, 32, 32, 3), dtype=torch.uint8, generator=draw)
    options = {"flip": True, "crop_padding": 4, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    out = benchmark(augment, image_NHWC, torch.arange(512), seed=0, epoch=0, **options)
    assert out.shape == (512, 3, 32, 32) and out.abs().max() <= 2
