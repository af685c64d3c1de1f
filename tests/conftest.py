"""What many tests share: a small digits data set, packed and not, and a recipe that trains in a second."""

import os
from importlib.util import find_spec

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined, hence before they are imported

from rumfast import TrainConfig, load_dataset
from rumfast.data import pack


def pytest_configure():
    """Tests of optional packages skip where those are missing; not so on CI."""
    missing = [name for name in ("ffcv", "pyarrow", "mpmath", "triton") if find_spec(name) is None]
    if missing and os.environ.get("CI"):
        pytest.exit(f"CI would skip tests: {', '.join(missing)} not installed", returncode=1)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Workers train on one thread, and so must what is compared with them."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    """300 training and 100 test digits of 8×8 pixels; workers can load them too."""
    return load_dataset("digits").take(300, 100)


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """The folder of all digits, packed with 10 % of the training labels flipped."""
    pytest.importorskip("ffcv")
    folder = tmp_path_factory.mktemp("packed") / "digits"
    pack("digits", folder, label_noise=0.1, seed=1)
    return folder


@pytest.fixture
def tiny_config():
    """Two epochs of a four-channel ResNet-8 in float32."""
    return TrainConfig(arch="resnet8", width=4, epochs=2, batch_size=64, precision="fp32")
