"""CUDA graphs without a GPU: a recorded step is a list of operations over addresses.

Replaying computes those operations anew, on whatever lies at the addresses by then; no Python of the step
runs. So a step that depends on something that it was not given differs from eager training here as on a GPU.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves, tree_map


class Place(NamedTuple):
    """Where a tensor lies: an address that keeps no memory alive, and a layout."""

    storage: StorageWeakRef
    address: int
    offset: int
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        storage = tensor.untyped_storage()
        layout = tensor.storage_offset(), tensor.size(), tensor.stride(), tensor.dtype
        return cls(StorageWeakRef(storage), storage.data_ptr(), *layout)

    def freed(self) -> bool:
        """True if nothing keeps the memory any more."""
        return self.storage.expired()

    def tensor(self) -> Tensor:
        """A plain CPU tensor there.

        Raises:
            RuntimeError: the memory was freed.
        """
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            raise RuntimeError(f"a replayed step reads a freed tensor of {self.dtype} {tuple(self.size)}")
        empty = torch.empty(0, dtype=self.dtype)
        return empty.set_(storage, self.offset, self.size, self.stride)


def plain(value: Any) -> Any:
    """A tensor as a plain CPU tensor over the same memory; anything else as it is."""
    return Place.of(value).tensor() if isinstance(value, Tensor) else value


def place_of(value: Any) -> Any:
    """A tensor's place; numbers that lie on the CPU are read once, as a kernel's argument is."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.device.type == "cpu" and not value.ndim else Place.of(value)


def tensor_at(value: Any) -> Any:
    """The inverse of ``place_of``."""
    return value.tensor() if isinstance(value, Place) else value


def is_place(value: Any) -> bool:
    return isinstance(value, Place)


class Operation(NamedTuple):
    """One recorded operation, and the places of what it made."""

    func: Callable[..., Any]
    args: Any
    kwargs: Any
    made: list[Any]

    def __call__(self) -> None:
        args, kwargs = tree_map(tensor_at, (self.args, self.kwargs), is_leaf=is_place)
        for place, new in zip(self.made, tree_leaves(self.func(*args, **kwargs)), strict=True):
            if isinstance(place, Place) and new.untyped_storage().data_ptr() != place.address:
                place.tensor().copy_(new)


class Graph:
    """``torch.cuda.CUDAGraph``: the operations of a step, and the memory that they took from its pool."""

    def __init__(self) -> None:
        self._operations: list[Operation] = []
        self._memory: dict[int, torch.UntypedStorage] = {}
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Remember what lies at tensors that an operation may overwrite."""
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if storage.data_ptr() not in self._memory | self._before:
                self._before[storage.data_ptr()] = storage, storage.clone()

    def end(self) -> None:
        """Undo what recording computed, since on a GPU it computes nothing: new memory holds NaN or −1."""
        for storage, before in self._before.values():
            storage.copy_(before)
        self._before.clear()
        for storage in self._memory.values():
            storage.fill_(255)

    def add(self, func: Callable[..., Any], args: Any, kwargs: Any, made: Any) -> None:
        """Write an operation down; what it allocated stays allocated."""
        here, there = tree_map(place_of, (args, kwargs)), [place_of(leaf) for leaf in tree_leaves(made)]
        known = {place.address for place in tree_leaves(here, is_leaf=is_place) if is_place(place)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self._memory[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        self._operations.append(Operation(func, *here, there))

    def memory(self) -> list[StorageWeakRef]:
        """What the step allocated."""
        return [StorageWeakRef(storage) for storage in self._memory.values()]

    def replay(self) -> None:
        """Compute all operations anew."""
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for operation in self._operations:
                operation()


class Pools:
    """Which graphs share a pool of memory, by the handle that ``graph_pool_handle`` gave."""

    def __init__(self) -> None:
        self._graphs: dict[Any, list[weakref.ref[Graph]]] = {}
        self._memory: dict[Any, list[StorageWeakRef]] = {}

    def handle(self) -> tuple[int, int]:
        """``torch.cuda.graph_pool_handle``."""
        handle = (0, len(self._graphs) + 1)
        self._graphs[handle], self._memory[handle] = [], []
        return handle

    def check(self, handle: Any) -> None:
        """Refuse a pool without a graph in which a tensor still lies, as CUDA's allocator does.

        Raises:
            RuntimeError: in that case.
        """
        unused = all(graph() is None for graph in self._graphs[handle])
        if unused and any(not storage.expired() for storage in self._memory[handle]):
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED: a tensor outlived its pool's graphs")

    def add(self, handle: Any, graph: Graph) -> None:
        """Count a recorded graph as one of the pool's."""
        self._graphs[handle].append(weakref.ref(graph))
        self._memory[handle] += graph.memory()
