import subprocess
import sys

import pytest
import torch

from rumfast.kernels import backend
from rumfast.kernels.backend import Target, pick_backend, power_of_2, target_of
from rumfast.kernels.margins import margins


def test_power_of_2_is_the_least_that_is_not_below():
    for count in range(1, 70):
        power = power_of_2(count)
        assert power & (power - 1) == 0 and power // 2 < count <= power


def test_the_target_is_the_tensors_gpu_and_none_in_the_interpreter(device):
    found = target_of(torch.zeros(1, device=device))
    if device.type == "cpu":
        assert found == Target(amd=False, capability=0)
    elif torch.version.hip:
        assert found == Target(amd=True, capability=0)
    else:
        major, minor = torch.cuda.get_device_capability(device)
        assert found == Target(amd=False, capability=10 * major + minor)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="got 'cuda', expected auto, triton or torch"):
        pick_backend("cuda", torch.zeros(1))


def test_triton_on_a_cpu_tensor_is_refused_and_not_demoted(monkeypatch):
    monkeypatch.setattr(backend.triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="triton asked for, got a tensor on cpu"):
        margins(torch.zeros(1, 2), torch.tensor([0]), backend="triton")


def test_kernels_import_and_compute_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, pkgutil, importlib, rumfast.kernels as package\n"
        "for module in pkgutil.iter_modules(package.__path__):\n"
        "    importlib.import_module(f'rumfast.kernels.{module.name}')\n"
        "from rumfast.kernels.margins import margins\n"
        "print(margins(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).margin.item())\n"
        "try: margins(torch.zeros(1, 2), torch.tensor([0]), backend='triton')\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2.0" in done.stdout and "got no Triton installed" in done.stdout
