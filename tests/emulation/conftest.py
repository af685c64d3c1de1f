"""An emulated CUDA device, and the little that is trained on it."""

import pytest
import torch

from rumfast import TrainConfig

if torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]  # the device itself is there


@pytest.fixture
def cuda():
    """The emulated device, while a test runs."""
    from emulated_torch import emulated

    with emulated() as emulation:
        yield emulation


@pytest.fixture(scope="session")
def few(digits):
    """48 training and 16 test digits."""
    return digits.take(48, 16)


@pytest.fixture(scope="session")
def recipe():
    """Six steps an epoch of a small ResNet-8: with three, half of the steps are replayed.

    Width 8, because oneDNN's AVX2 kernel of a strided 1×1 convolution writes past the end at width 4.
    """
    return TrainConfig(arch="resnet8", width=8, epochs=3, batch_size=16, precision="fp32", compile="off")


@pytest.fixture(params=["fp32", "bf16"])
def trained(request, recipe):
    """The recipe in both precisions: bf16 with augmentation, which takes other paths through teachers."""
    augments = {"flip": True, "crop_padding": 1} if request.param == "bf16" else {}
    return recipe.model_copy(update={"precision": request.param} | augments)
