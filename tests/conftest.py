"""What many tests share: a small digits data set, packed and not, and a recipe that trains in a second."""

import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from shutil import which
from typing import NamedTuple

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined, hence before they are imported

from rumfast import TrainConfig, load_dataset
from rumfast.cli import main
from rumfast.cli.entry import INTERRUPTS
from rumfast.data import pack


def pytest_configure():
    """Tests of optional packages skip where those are missing; not so on CI."""
    packages = ("ffcv", "pyarrow", "mpmath", "triton", "ray", "submitit")
    missing = [name for name in packages if find_spec(name) is None]
    path = f"{os.environ.get('PATH')}:/usr/sbin"
    missing += [name for name in ("slurmctld", "slurmd", "munged") if which(name, path=path) is None]
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


class Outcome(NamedTuple):
    """What a user sees of a command."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def rumfast(monkeypatch, capfd) -> Callable[..., Outcome]:
    """Call ``rumfast ARGUMENTS``: the real entry point, in this process."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["rumfast", *map(str, arguments)])
        before = {number: signal.getsignal(number) for number in INTERRUPTS}
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        for number, handler in before.items():
            signal.signal(number, handler)
        out, err = capfd.readouterr()
        code = end.value.code
        return Outcome(code if isinstance(code, int) else 0, out, err)

    return call
