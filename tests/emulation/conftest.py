"""An emulated CUDA device, and the little that is trained on it."""

from importlib.util import find_spec

import pytest
import torch

from rumfast import TrainConfig, load_dataset

if torch.cuda.is_available() or find_spec("triton") is None:
    collect_ignore_glob = ["*.py"]  # the device itself is there, or no interpreter of its kernels


@pytest.fixture
def cuda():
    """The emulated device, while a test runs."""
    from emulated_torch import emulated

    with emulated() as emulation:
        yield emulation


@pytest.fixture(scope="session")
def few():
    """48 training and 16 test digits."""
    return load_dataset("digits").take(48, 16)


@pytest.fixture(scope="session")
def recipe():
    """Three epochs of three batches: from the fourth step of a shape on, steps are replayed.

    Width 8: at 4 oneDNN overruns memory in a strided 1×1 convolution, which models avoid on the CPU alone.
    """
    return TrainConfig(arch="resnet8", width=8, epochs=3, batch_size=16, precision="fp32", compile="off")


@pytest.fixture(params=["fp32", "bf16"])
def trained(request, recipe):
    """The recipe in both precisions: bf16 with augmentation, which takes other paths through teachers."""
    augments = {"flip": True, "crop_padding": 1} if request.param == "bf16" else {}
    return recipe.model_copy(update={"precision": request.param} | augments)
