"""Every kernel's launcher and every score obey CUDA's device rules; kernels are interpreted."""

import numpy as np
import pytest
import torch
from torch._library.custom_ops import OPDEFS

from rumfast.kernels.augment import augment, augment_images, normalise
from rumfast.kernels.centroids import centroid_distances
from rumfast.kernels.linear_margins import linear_margins
from rumfast.kernels.margins import margins
from rumfast.kernels.moments import merge, moments
from rumfast.kernels.neighbours import nearest
from rumfast.kernels.pairwise import mean_distance, mean_squared_distance, rbf_mean
from rumfast.scores import entanglement_score, loss_curvature, mmd2, neighbour_overlap
from rumfast.scores.windows import measure_windows

PIXELS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
DRAWN = PIXELS | {"seed": 3, "epoch": 1, "flip": True, "crop_padding": 1}


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def images(*shape):
    return torch.arange(torch.Size(shape).numel()).view(shape).to(torch.uint8)


KERNELS = {  # operator: calls of its public functions on points [13, 5], [9, 5], labels or groups [13]
    "augment": lambda x, y, label: [
        augment(images(5, 4, 4, 3).to(x.device), label[:4], dtype=x.dtype, **DRAWN),
        augment_images(images(3, 4, 4, 3).to(x.device), label[:3], dtype=x.dtype, **DRAWN),
        normalise(images(2, 4, 4, 3).to(x.device), **PIXELS),
    ],
    "margins": lambda x, y, label: [margins(torch.stack([x, 2 * x]), label)],
    "linear_margins": lambda x, y, label: [
        linear_margins(x, y, y[:, 0].contiguous(), label),
        linear_margins(x, y, None, label, ("margin",)),
    ],
    "moments": lambda x, y, label: [
        moments(x), moments(x, label, 5), merge(moments(x), moments(y)), mean_squared_distance(x, y),
    ],
    "centroid_distances": lambda x, y, label: [
        centroid_distances(x, moments(y).mean_GD), centroid_distances(x, y, label),
    ],
    "pair_sums": lambda x, y, label: [
        mean_distance(x, y), mean_distance(x), mean_distance(x, y, precision="fast"),
        rbf_mean(x, y, bandwidths=[2.0, 1.0, 0.9]),
    ],
    "nearest": lambda x, y, label: [nearest(x, y, 3), nearest(x, None, 2)],
}  # fmt: skip


def outputs(found):
    """The tensors of a nesting, on the CPU."""
    if isinstance(found, torch.Tensor):
        return [found.cpu()]
    return [tensor for part in found if part is not None for tensor in outputs(part)]


def test_every_operator_is_called():
    assert {f"rumfast::{name}" for name in KERNELS} == {name for name in OPDEFS if "rumfast::" in name}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KERNELS)
def test_a_launcher_on_the_device(cuda, name, dtype):
    cuda.interprets = True
    points = draw(13, 5, dtype=dtype), draw(9, 5, dtype=dtype).add(1), torch.arange(13) % 5
    here = outputs(KERNELS[name](*points))
    there = outputs(KERNELS[name](*(tensor.to("cuda") for tensor in points)))
    if (name, dtype) == ("linear_margins", torch.bfloat16):
        return  # the interpreter multiplies bfloat16's bits
    for first, second in zip(there, here, strict=True):
        assert first.dtype == second.dtype
        tolerance = 1e-2 if first.dtype == torch.bfloat16 else 1e-3
        torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


SCORES = {
    "entanglement": entanglement_score,
    "entanglement around the midpoint": lambda retain, forget: entanglement_score(retain, forget, "midpoint"),
    "mmd2": mmd2,
    "mmd2 of given bandwidths": lambda retain, forget: mmd2(retain, forget, [1.0], unbiased=False),
    "neighbour overlap": lambda retain, forget: neighbour_overlap(retain, forget, 3),
    "windows": lambda retain, forget: measure_windows(retain, np.arange(13)[::-1].copy(), 4).entanglement_W,
    "curvature": lambda retain, forget: loss_curvature(
        lambda x: x.square() @ forget.float().T, retain.float(), torch.arange(13, device=retain.device) % 9
    ).cpu(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SCORES)
def test_a_score_on_the_device(cuda, name, dtype):
    points = draw(13, 5, dtype=dtype), draw(9, 5, dtype=dtype).add(1)
    there = SCORES[name](*(tensor.to("cuda") for tensor in points))
    np.testing.assert_allclose(there, SCORES[name](*points), rtol=1e-5, atol=1e-6)
