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
Loss = tuple[Any, ...]  # a loss, how many examples it used, and any tensors for whoever watches the steps
Record = Callable[[Callable[[], Any]], Callable[[], Any]]

WARM_UP = 3  # calls of a shape before it is recorded: they compile, and allocate what a graph may not


class Terms(tuple[Any, ...]):
    """What each summand of a step's loss is taken on: they are computed, and split, one after another."""


class Recorded(NamedTuple):
    """A call over tensors that stay in place."""

    fed: Any
    replay: Callable[[], Any]


class Replayed(Generic[Fed, Result]):
    """A computation that is recorded when a shape comes for the fourth time, and replayed from then on.

    Hundreds of kernels then start at one call. ``_compute`` runs in Python only until it is recorded, so it
    must depend on what it is given and on tensors that stay in place; nothing else may change from call to
    call. What it returns is overwritten by the next call.

    Whether float32 is multiplied as TF32 counts as a part of the shape.

    Args:
        record: see :func:`cuda_graphs`; None computes in Python each time.
    """

    def __init__(self, record: Record | None) -> None:
        self._record = record
        self._called: Counter[Any] = Counter()
        self.recorded: dict[Any, Recorded] = {}  # by signature and the use of TF32

    def _compute(self, fed: Fed) -> Result:
        raise AssertionError("each kind of computation defines its own")

    def __call__(self, fed: Fed) -> Result:
        """The computation's result for ``fed``."""
        if self._record is None:
            return self._compute(fed)
        key = signature(fed), torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        if key not in self.recorded:
            self._called[key] += 1
            if self._called[key] <= WARM_UP:
                return self._compute(fed)
            own = map_tensors(torch.clone, fed)
            self.recorded[key] = Recorded(own, self._record(lambda: self._compute(own)))
        recorded = self.recorded[key]
        for place, tensor in zip(tensors(recorded.fed), tensors(fed), strict=True):
            place.copy_(tensor, non_blocking=True)
        return recorded.replay()


class Taken(NamedTuple):
    """A step that was taken; the next one overwrites its tensors.

    Attributes:
        watched: what ``loss_of`` returned beside the loss and the count, of the whole batch.
    """

    loss: Tensor
    examples: int
    watched: tuple[Tensor, ...]


class Stepper(Replayed[Fed, Taken]):
    """Takes SGD steps on ``loss_of``, a mean over the examples it is given.

    A loss over several batches is fed as ``Terms``: ``loss_of`` of each, added up. Calling it takes a step.

    Args:
        loss_of: the loss, how many examples it used, and any tensors [B, …] for whoever watches the steps.
        micro_batches: parts that a batch is split into; their gradients are added up, so that one part at a
            time needs memory. Batch norm then sees each part by itself.
        record: see ``Replayed``; a step is recorded whole: forward, backward, optimizer and ``repair``.
        repair: called at the end of each step, to put back weights that must not move.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        loss_of: Callable[[Fed], Loss],
        micro_batches: int = 1,
        record: Record | None = None,
        repair: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(record)
        self.optimizer = optimizer
        self._loss_of = loss_of
        self._micro_batches = micro_batches
        self._repair = repair

    def _compute(self, fed: Fed) -> Taken:
        self.optimizer.zero_grad()
        losses, examples, watched = [], 0, []
        for term in fed if isinstance(fed, Terms) else (fed,):
            for part in split(term, self._micro_batches):
                loss, used, *more = self._loss_of(part)
                if self._micro_batches > 1:
                    loss = loss * (_length(part) / _length(term))
                loss.backward()
                losses.append(loss.detach())
                examples += used
                watched.append(more)
        self.optimizer.step()
        if self._repair is not None:
            self._repair()
        return Taken(
            losses[0] if len(losses) == 1 else torch.stack(losses).sum(),
            examples,
            tuple(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*watched, strict=True)),
        )

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
    """Record calls as CUDA graphs that share one pool of memory, all on the current stream.

    Each caller asks for a recorder of its own: a pool must not be captured into again once its graphs are
    gone while a tensor still lies in it, such as a gradient, and graphs go with whoever made them.

    Whole-step capture after ``torch.cuda.graph``'s documentation, "Whole-network capture".
    """
    pool = torch.cuda.graph_pool_handle()

    def record(call: Callable[[], Any]) -> Callable[[], Any]:
        graph = torch.cuda.CUDAGraph()
        # Threads that fill pinned memory go on meanwhile: only this thread's calls are recorded.
        with torch.cuda.graph(graph, pool, torch.cuda.current_stream(), capture_error_mode="thread_local"):
            result = call()

        def replay() -> Any:
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
