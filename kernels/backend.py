"""Which implementation computes: Triton on a GPU, plain torch elsewhere.

``auto`` takes the registered operator, which goes by the tensor's device: the Triton kernel on CUDA, blocked
torch operations on the CPU. ``triton`` and ``torch`` (the formula as written) insist, and raise where they
cannot run. TRITON_INTERPRET=1 runs Triton kernels on CPU tensors, slowly, for tests.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no wheels outside Linux; the kernels' definitions must still parse
    triton, tl = None, SimpleNamespace(constexpr=None)

Backend = Literal["auto", "triton", "torch"]
Meta = dict[str, int]  # what a kernel is specialised to: block sizes, num_warps, num_stages


def jit(function: Any = None, **options: Any) -> Any:
    """``triton.jit`` where Triton is installed, with its options if called with any."""
    if function is None:
        return partial(jit, **options)
    return triton.jit(function, **options) if triton else function


def pick_backend(backend: Backend, tensor: Tensor) -> Backend:
    """Check that ``backend`` can compute on ``tensor``, and return it.

    Raises:
        ValueError: the backend is unknown, or Triton can not run on this tensor's device.
    """
    if backend not in ("auto", "triton", "torch"):
        raise ValueError(f"backend: got {backend!r}, expected auto, triton or torch")
    if backend == "triton" and tensor.device.type != "cuda":
        if triton is None or not triton.knobs.runtime.interpret:
            found = "no Triton installed" if triton is None else f"a tensor on {tensor.device}"
            raise ValueError(f"backend: triton asked for, got {found}; use auto, or a CUDA device")
    return backend


class Target(NamedTuple):
    """What block sizes and precisions depend on.

    Attributes:
        amd: True for an AMD GPU.
        capability: compute capability of an NVIDIA GPU, 90 for 9.0; 0 elsewhere.
    """

    amd: bool
    capability: int


def target_of(tensor: Tensor) -> Target:
    """What Triton would compile for on the device of ``tensor``; no GPU where kernels are interpreted.

    Launchers ask Triton's driver, not torch, so that ahead-of-time builds can name any target.
    """
    if triton.knobs.runtime.interpret:
        return Target(amd=False, capability=0)
    with torch.cuda.device_of(tensor):
        found = triton.runtime.driver.active.get_current_target()
    amd = found.backend == "hip"
    return Target(amd, capability=0 if amd else found.arch)


def power_of_2(count: int) -> int:
    """The least power of two that is not below ``count``, at least 1.

    >>> [power_of_2(count) for count in (0, 1, 2, 3, 1000)]
    [1, 1, 2, 4, 1024]
    """
    return 1 << max(0, count - 1).bit_length()
