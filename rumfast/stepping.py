"""SGD steps: taken one after the other, or on a GPU recorded once for each shape and replayed."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

Fed = TypeVar("Fed")  # what one step is taken on: a batch, or tuples of batches, tensors and constants
Result = TypeVar("Result")
Loss = tuple[Tensor, int]  # a loss, and how many examples it used
Record = Callable[[Callable[[], Loss]], Callable[[], Loss]]

WARM_UP = 3  # steps of a shape before it is recorded: they compile, and allocate what a graph may not


class Terms(tuple[Any, ...]):
    """What each summand of a step's loss is taken on: they are computed, and split, one after another."""


class Recorded(NamedTuple):
    """A step over tensors that stay in place."""

    fed: Any
    replay: Callable[[], Loss]


class Stepper(Generic[Fed]):
    """Takes SGD steps on ``loss_of``, a mean over the examples it is given.

    A loss over several batches is fed as ``Terms``: ``loss_of`` of each, added up.

    With ``record``, a step whose shapes and constants come for the fourth time is recorded, and from then on
    replayed: hundreds of kernels of forward, backward and optimizer start at one call. ``loss_of`` runs in
    Python only while it is recorded, so it must depend on what it is given, on the weights, and on
    tensors that stay in place; nothing else may change from step to step.

    Args:
        micro_batches: parts that a batch is split into; their gradients are added up, so that one part at a
            time needs memory. Batch norm then sees each part by itself.
        record: see :func:`cuda_graphs`; None takes every step anew.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        loss_of: Callable[[Fed], Loss],
        micro_batches: int = 1,
        record: Record | None = None,
    ) -> None:
        self.optimizer = optimizer
        self._loss_of = loss_of
        self._micro_batches = micro_batches
        self._record = record
        self._taken: Counter[Any] = Counter()
        self._recorded: dict[Any, Recorded] = {}

    def __call__(self, fed: Fed) -> Loss:
        """Take one step; the loss is overwritten by the next."""
        if self._record is None:
            return self._take(fed)
        key = signature(fed)
        if key not in self._recorded:
            self._taken[key] += 1
            if self._taken[key] <= WARM_UP:
                return self._take(fed)
            own = map_tensors(torch.clone, fed)
            self._recorded[key] = Recorded(own, self._record(lambda: self._take(own)))
        recorded = self._recorded[key]
        for place, tensor in zip(tensors(recorded.fed), tensors(fed), strict=True):
            place.copy_(tensor, non_blocking=True)
        return recorded.replay()

    def _take(self, fed: Fed) -> Loss:
        self.optimizer.zero_grad()
        losses, examples = [], 0
        for term in fed if isinstance(fed, Terms) else (fed,):
            for part in split(term, self._micro_batches):
                loss, used = self._loss_of(part)
                if self._micro_batches > 1:
                    loss = loss * (_length(part) / _length(term))
                loss.backward()
                losses.append(loss.detach())
                examples += used
        self.optimizer.step()
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum(), examples

    def set_rate(self, lr: float) -> None:
        """Set the learning rate of the steps to come."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # where a graph reads it
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def forget_momentum(self) -> None:
        """Start anew: momentum 0, in place."""
        for state in self.optimizer.state.values():
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].zero_()


def map_tensors(function: Callable[[Tensor], Tensor], fed: Any) -> Any:
    """The same nesting of tuples with ``function`` of each tensor; constants stay.

    >>> map_tensors(torch.neg, (torch.tensor(1), (torch.tensor(2), True)))
    (tensor(-1), (tensor(-2), True))
    """
    if isinstance(fed, Tensor):
        return function(fed)
    if isinstance(fed, tuple):
        parts = [map_tensors(function, part) for part in fed]
        return type(fed)(*parts) if hasattr(fed, "_fields") else type(fed)(parts)
    return fed


def tensors(fed: Any) -> Iterator[Tensor]:
    """The tensors of a nesting of tuples, in order."""
    if isinstance(fed, Tensor):
        yield fed
    elif isinstance(fed, tuple):
        for part in fed:
            yield from tensors(part)


def signature(fed: Any) -> Any:
    """What a recorded step is bound to: shapes, layouts and dtypes of tensors, and constants.

    >>> signature((torch.zeros(2, 3), True))
    (((2, 3), (3, 1), torch.float32), True)
    """
    if isinstance(fed, Tensor):
        return tuple(fed.shape), fed.stride(), fed.dtype
    if isinstance(fed, tuple):
        return tuple(signature(part) for part in fed)
    return fed


def split(fed: Any, parts: int) -> Iterator[Any]:
    """Cut all tensors along their first axis into as many parts, sizes differing by at most one.

    At most as many parts as there are entries; tensors without axes are in every part.

    >>> [part.tolist() for part in split(torch.arange(5), 2)]
    [[0, 1], [2, 3, 4]]
    """
    parts = max(1, min(parts, _length(fed)))

    def cut(tensor: Tensor, part: int) -> Tensor:
        if not tensor.ndim:
            return tensor
        return tensor[len(tensor) * part // parts : len(tensor) * (part + 1) // parts]

    for part in range(parts):
        yield map_tensors(partial(cut, part=part), fed)


def _length(fed: Any) -> int:
    """Entries of each of its tensors."""
    return next((len(tensor) for tensor in tensors(fed) if tensor.ndim), 1)


def cuda_graphs() -> Record:
    """Record steps as CUDA graphs that share one pool of memory, all on the current stream.

    Whole-step capture after ``torch.cuda.graph``'s documentation, "Whole-network capture".
    """
    pool = torch.cuda.graph_pool_handle()

    def record(step: Callable[[], Loss]) -> Callable[[], Loss]:
        graph = torch.cuda.CUDAGraph()
        # Threads that fill pinned memory go on meanwhile: only this thread's calls are recorded.
        with torch.cuda.graph(graph, pool, torch.cuda.current_stream(), capture_error_mode="thread_local"):
            result = step()

        def replay() -> Loss:
            graph.replay()
            return result

        return replay

    return record


@contextmanager
def side_stream(device: torch.device, stream: "torch.cuda.Stream | None") -> Iterator[None]:
    """Compute on ``stream``, after all that was asked for before, with convolutions tuned to their shapes."""
    if stream is None:
        yield
        return
    tuned, caller = torch.backends.cudnn.benchmark, torch.cuda.current_stream(device)
    with ExitStack() as stack:
        stack.callback(setattr, torch.backends.cudnn, "benchmark", tuned)
        stack.callback(caller.wait_stream, stream)
        torch.backends.cudnn.benchmark = True
        stream.wait_stream(caller)
        with torch.cuda.stream(stream):
            yield
