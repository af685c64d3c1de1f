"""``torch.cuda`` without a GPU: answers of an H100, streams that all compute at once, recorded steps."""

import contextlib
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from emulated_cuda import CUDA, Emulation, OnCuda, where
from emulated_graphs import Graph, Pools, plain
from torch.utils._pytree import tree_leaves, tree_map
from triton.runtime.interpreter import GridExecutor

from rumfast.runtime import environment

GIB = 1 << 30
H100 = SimpleNamespace(
    name="Emulated H100", total_memory=80 * GIB, multi_processor_count=132, major=9, minor=0
)


class Stream:
    """A stream; all of them compute at once."""

    current: "Stream"

    def __init__(self, *args, **kwargs):
        pass

    def wait_stream(self, other):
        pass

    def wait_event(self, event):
        pass

    def synchronize(self):
        OnCuda.emulation.wait("synchronize")


class Event(Stream):
    def record(self, stream=None):
        pass

    def wait(self, stream=None):
        pass

    def query(self):
        return True


@contextlib.contextmanager
def on_stream(stream):
    before, Stream.current = Stream.current, stream or Stream.current
    try:
        yield
    finally:
        Stream.current = before


def capturing(emulation, pools, default):
    """``torch.cuda.graph``."""

    @contextlib.contextmanager
    def capture(graph, pool=None, stream=None, capture_error_mode="global"):
        if stream is default:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream")
        pool = pools.handle() if pool is None else pool
        pools.check(pool)
        emulation.graph = graph
        try:
            yield
        finally:
            emulation.graph = None
            graph.end()
        pools.add(pool, graph)

    return capture


def launching(emulation, interpret):
    """A Triton launch: refuses what lies on the CPU, and lets the interpreter compute."""

    def launch(self, *args, **kwargs):
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if not all(isinstance(tensor, OnCuda) for tensor in given):
            raise ValueError(f"Pointer argument cannot be accessed from Triton (cpu tensor?) at {where()}")

        def compute(*args, **kwargs):
            interpret(self, *args, **kwargs)

        if not emulation.interprets:
            return
        if emulation.graph is not None:
            emulation.graph.keep(given)
        with torch._C.DisableTorchFunction():
            plain_args, plain_kwargs = tree_map(plain, (args, kwargs))
            compute(*plain_args, **plain_kwargs)
        if emulation.graph is not None:
            emulation.graph.add(compute, args, kwargs, None)

    return launch


class Autocast(torch.autocast):
    """CUDA's autocast, with the CPU's lists of operations."""

    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu", *args, **kwargs)


def grouping(group):
    """Optimizers group their tensors by a device that C++ reads off them."""

    def grouped(tensorlists, with_indices=False):
        return {
            (CUDA if isinstance(tensors[0][0], OnCuda) else device, dtype): (tensors, indices)
            for (device, dtype), (tensors, indices) in group(tensorlists, with_indices).items()
        }

    return staticmethod(grouped)


ANSWERS = {
    "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "set_device": None,
    "mem_get_info": (70 * GIB, 80 * GIB), "is_bf16_supported": True, "get_device_capability": (9, 0),
    "get_device_name": H100.name, "get_device_properties": H100, "empty_cache": None, "memory_allocated": 0,
    "max_memory_allocated": 0, "memory_reserved": 0, "reset_peak_memory_stats": None,
}  # fmt: skip


def always(answer, *args, **kwargs):
    """``answer``, whatever is asked."""
    return answer


def replacements(emulation, default):
    """What stands for each name of ``torch.cuda``; ``default`` is the default stream."""
    pools = Pools()
    return {name: partial(always, answer) for name, answer in ANSWERS.items()} | {
        "Stream": Stream, "Event": Event, "stream": on_stream, "CUDAGraph": Graph,
        "current_stream": lambda device=None: Stream.current, "default_stream": lambda device=None: default,
        "graph": capturing(emulation, pools, default), "graph_pool_handle": pools.handle,
        "is_current_stream_capturing": lambda: emulation.graph is not None,
        "device": lambda device: contextlib.nullcontext(),
        "device_of": lambda tensor: contextlib.nullcontext(),
        "synchronize": lambda device=None: emulation.wait("synchronize"),
    }  # fmt: skip


@contextlib.contextmanager
def emulated():
    """A CUDA device within the block; everything is put back afterwards."""
    emulation, Stream.current = Emulation(), Stream()
    optimizer = torch.optim.Optimizer
    group = optimizer._group_tensors_by_device_and_dtype
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in replacements(emulation, Stream.current).items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(torch, "autocast", Autocast)
        patch.setattr(optimizer, "_group_tensors_by_device_and_dtype", grouping(group))
        patch.setattr(GridExecutor, "__call__", launching(emulation, GridExecutor.__call__))
        patch.setattr(OnCuda, "emulation", emulation, raising=False)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        environment.cache_clear()  # it names the GPU
        try:
            with emulation, np.errstate(all="ignore"):  # masked lanes of a kernel may divide by zero
                yield emulation
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
            environment.cache_clear()
