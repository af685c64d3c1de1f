"""CUDA's device rules without a GPU: tensors in the CPU's memory that say they lie on cuda:0.

PyTorch computes on them as on any CPU tensor, so values are a CPU's. Each operation passes
``OnCuda.__torch_dispatch__`` first, also those of autograd, vmap and the optimizers. There

- an operation that CUDA refuses because its tensors lie on two devices raises RuntimeError;
- an operation that makes the host wait for the GPU is counted with its file and line, and raises while a
  step is recorded, as capture on a GPU would;
- a rumfast operator runs its CUDA launcher; the Triton kernel's result is the CPU's, or the interpreter's
  where ``Emulation.interprets``, which takes a hundred times as long;
- a recorded step is written down operation by operation (see ``emulated_graphs``).

``Emulation`` is the mode that serves Python's ways to a device: ``device="cuda"``, ``.to``, ``pin_memory``.
Compiled code, the order of streams and the allocator's limits are not emulated.
"""

import sys
from collections import Counter
from typing import Any

import torch
from emulated_graphs import Graph, Place, plain
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
LIBRARIES = {
    "torch", "triton", "contextlib", "functools", "emulated_cuda", "emulated_graphs", "emulated_torch",
}  # fmt: skip
WAITING = {  # operations whose result, or its shape, the host has to know
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive",
    "bincount", "equal", "repeat_interleave", "_linalg_check_errors",
}  # fmt: skip
TAKE_SCALARS = {"fill_", "fill", "masked_fill_", "masked_fill", "where"}  # beside all pointwise operations
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
GET_DEVICE = Tensor.device.__get__
MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda}
COPIED = {torch.tensor, torch.as_tensor, torch.asarray}  # from the host's memory


def where() -> str:
    """``file:line`` of the innermost frame that is neither a library's nor the emulation's."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in LIBRARIES:
        frame = frame.f_back
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-3:])}:{frame.f_lineno}"


def within_vmap() -> bool:
    """True if ``torch.func.vmap`` is at work."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__") != "torch._functorch.vmap":
        frame = frame.f_back
    return frame.f_back is not None


class OnCuda(Tensor):
    """A tensor that takes itself to lie on cuda:0."""

    emulation: "Emulation"  # the one that is installed
    device = property(lambda self: CUDA)
    is_cuda, is_cpu = True, False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls.emulation.compute(func, args, kwargs or {})

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.emulation.move(self, args, kwargs)

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.emulation.move(self, (CPU,), {})

    def cuda(self, *args: Any, **kwargs: Any) -> Tensor:
        return self

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def record_stream(self, stream: Any) -> None:
        pass

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert cuda:0 device type tensor to numpy at {where()}; use Tensor.cpu()")

    __array__ = numpy

    def __repr__(self, **kwargs: Any) -> str:
        with torch._C.DisableTorchFunction():
            return f"OnCuda({plain(self)!r})"

    def __format__(self, spec: str) -> str:
        return repr(self) if self.ndim else format(self.item(), spec)


def on_cuda(tensor: Tensor) -> OnCuda:
    """The same memory, taken for CUDA's."""
    return Tensor._make_subclass(OnCuda, tensor, tensor.requires_grad)


def device_of(value: Any) -> torch.device | None:
    """The device that an argument names, as ``Tensor.to`` understands it."""
    if isinstance(value, Tensor):
        return value.device
    return torch.device(value) if isinstance(value, str | torch.device) else None


def as_on_cpu(value: Any) -> Any:
    """The same argument of ``Tensor.to`` for a tensor that stays where it is."""
    if isinstance(value, Tensor):
        return value.dtype
    return CPU if device_of(value) else value


class Emulation(TorchFunctionMode):
    """The emulated device: what the host waited for, and the step that is being recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()  # "what at file:line"
        self.graph: Graph | None = None
        self.interprets = False  # Triton kernels
        self._pinned: list[Place] = []

    def wait(self, what: str) -> None:
        """Count one wait of the host; an error while a step is recorded."""
        self.waits[f"{what} at {where()}"] += 1
        if self.graph is not None:
            raise RuntimeError(
                f"CUDA error: operation not permitted when stream is capturing: {what} at {where()}"
            )

    def pin(self, tensor: Tensor) -> Tensor:
        """Take the tensor's memory for pinned."""
        self._pinned = [place for place in self._pinned if not place.freed()] + [Place.of(tensor)]
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """True if the tensor lies in pinned memory, be it as a part."""
        address = tensor.untyped_storage().data_ptr()
        return any(not pinned.freed() and pinned.address == address for pinned in self._pinned)

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run one operation with a tensor on the emulated device, or raise what CUDA would."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func._schema.name.partition("::")[2]
        self._check_devices(func, name, args, [tensor for tensor in given if not isinstance(tensor, OnCuda)])
        if any(isinstance(leaf, torch.Generator) for leaf in tree_leaves((args, kwargs))):
            raise RuntimeError(f"Expected a 'cuda' device type for generator at {where()}: {name}")
        if name in WAITING:
            self.wait(name)
        if func.namespace == "rumfast":
            return self._launch(func, args)
        if self.graph is not None:
            self.graph.keep(given)  # all: batch norm's schema does not tell what it overwrites
        with torch._C._DisableTorchDispatch():
            found = func(*args, **kwargs)
            fresh = {id(leaf) for leaf in tree_leaves(found)} - {id(tensor) for tensor in given}
            found = tree_map(lambda leaf: on_cuda(leaf) if is_fresh(leaf, fresh) else leaf, found)
        if self.graph is not None:
            self.graph.add(func, args, kwargs, found)
        return found

    def _launch(self, func: Any, args: Any) -> Any:
        """Run an operator's CUDA launcher; its values are the CPU's unless kernels are interpreted."""
        with self:  # a mode is off within what it calls
            found = OPDEFS[func._schema.name]._backend_fns["cuda"](*args)
        if self.interprets:
            return found
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            here = func(*tree_map(plain, args))
            for there, value in zip(tree_leaves(found), tree_leaves(here), strict=True):
                there.copy_(value)
        if self.graph is not None:
            self.graph.add(func, args, {}, found)
        return found

    def _check_devices(self, func: Any, name: str, args: Any, strangers: list[Tensor]) -> None:
        """``strangers`` are the operation's tensors on the CPU."""
        if name == "copy_":
            if strangers:
                self._check_copy(args[0], args[1], len(args) > 2 and args[2])
            return
        if name in INDEXING:
            self._check_index(name, args)
            strangers = [tensor for tensor in strangers if not any(tensor is index for index in args[1])]
        scalars = name in TAKE_SCALARS or name in INDEXING or torch.Tag.pointwise in func.tags
        if name in ("native_batch_norm", "native_batch_norm_backward") and within_vmap():
            return  # vmap's rule makes a weight and a bias, where C++ takes the input to lie
        if not all(scalars and not tensor.ndim for tensor in strangers):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in strangers)
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
                f"cpu! at {where()}: {name} with a CPU tensor of {shapes}"
            )

    def _check_copy(self, target: Tensor, source: Tensor, non_blocking: bool) -> None:
        host = source if isinstance(target, OnCuda) else target
        if not (non_blocking and self.is_pinned(host)):
            self.wait("copy to the device" if host is source else "copy to the host")

    def _check_index(self, name: str, args: Any) -> None:
        """CUDA copies an index from the CPU, and waits; it fills by a mask without looking for its places."""
        indices = [index for index in args[1] if index is not None]
        if not isinstance(args[0], OnCuda):
            raise RuntimeError(f"indices should be on the CPU, as the indexed tensor is, at {where()}")
        if not all(isinstance(index, OnCuda) for index in indices):
            self.wait("index on the CPU")
        value = args[2] if len(args) > 2 else None
        fills = value is not None and not value.ndim and not isinstance(value, OnCuda)
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices) and not fills:
            self.wait("boolean index")

    def move(self, tensor: Tensor, args: Any, kwargs: Any) -> Tensor:
        """``tensor.to(*args, **kwargs)``."""
        given = (*args, *kwargs.values())
        target = next((device for value in given if (device := device_of(value))), tensor.device)
        non_blocking = kwargs.get("non_blocking", any(value is True for value in args))
        args, kwargs = tree_map(as_on_cpu, (tuple(args), dict(kwargs)))
        with torch._C.DisableTorchFunction():
            here = Tensor.to(tensor, *args, **kwargs) if args or kwargs else tensor
            if target.type == tensor.device.type:
                return here
            there = torch.empty_like(plain(here))
            if target.type == "cuda":
                there = on_cuda(there)
            elif non_blocking:
                self.pin(there)  # PyTorch's caching allocator for the host gives such memory
            return there.copy_(here, non_blocking)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == GET_DEVICE and torch._C._functorch.is_functorch_wrapped_tensor(args[0]):
            return innermost(args[0]).device
        if func in MOVES:
            to = {Tensor.cpu: (CPU,), Tensor.cuda: (CUDA,)}.get(func, args[1:])
            return self.move(args[0], to, {} if func is not Tensor.to else kwargs)
        if func is Tensor.pin_memory:
            return self.pin(args[0].clone())
        if func is Tensor.is_pinned:
            return self.is_pinned(args[0])
        pins, device = kwargs.pop("pin_memory", False), device_of(kwargs.get("device"))
        if device is None or device.type not in ("cuda", "cpu"):
            made = func(*args, **kwargs)
            return self.pin(made) if pins else made
        return self._make(func, args, kwargs | {"device": CPU}, device)

    def _make(self, func: Any, args: Any, kwargs: Any, device: torch.device) -> Any:
        """Call a function that was given a device."""
        if device.type == "cuda" and kwargs.get("generator") is not None:
            raise RuntimeError(f"Expected a 'cuda' device type for generator at {where()}: {func.__name__}")
        made = func(*args, **kwargs)
        if func in COPIED or isinstance(made, OnCuda) or device.type == "cpu":
            return self.move(made, (device,), {})
        made = on_cuda(made)
        if self.graph is not None:
            self.graph.add(func, args, kwargs, made)
        return made


def is_fresh(leaf: Any, fresh: set[int]) -> bool:
    """True if an operation made this tensor, and did not merely hand it on."""
    return isinstance(leaf, Tensor) and not isinstance(leaf, OnCuda) and id(leaf) in fresh


def innermost(tensor: Tensor) -> Tensor:
    """What lies beneath the levels of vmap and grad."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor
