"""Kernel tests run on CUDA where there is one, and in Triton's interpreter on the CPU elsewhere."""

import numpy as np
import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def device():
    """Where the Triton backend computes."""
    return torch.device(DEVICE)


@pytest.fixture(autouse=True)
def quiet_interpreter():
    """Masked lanes may divide by zero; numpy, unlike a GPU, would say so."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(autouse=True, scope="session")
def bf16_products():
    """The interpreter holds bf16 as its bits, and would multiply those."""
    if DEVICE == "cuda":
        yield
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original = InterpreterBuilder.create_dot

    def widened(operand):
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):
        return original(self, widened(a), widened(b), *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", create_dot)
        yield


@pytest.fixture
def sparse(device, tmp_path):
    """Makes tensors beyond 2³¹ elements of which only the pages that are touched take memory."""

    def make(elements, dtype):
        if device.type == "cuda":
            return torch.empty(elements, dtype=dtype, device=device)
        size = elements * torch.empty((), dtype=dtype).element_size()
        return torch.from_numpy(np.memmap(tmp_path / "sparse", np.uint8, "w+", shape=size)).view(dtype)

    return make


def pytest_collection_modifyitems(items):
    if DEVICE == "cuda":
        for item in items:
            if "device" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.gpu)
