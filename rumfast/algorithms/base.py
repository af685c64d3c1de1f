"""What an unlearning algorithm is."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field
from torch import Tensor

from rumfast.config import Rate, Strict
from rumfast.training import Learner

Epochs = Annotated[float, Field(gt=0, allow_inf_nan=False)]  # passes; a fraction ends with a whole batch


class SgdConfig(Strict):
    """Hyper-parameters that all SGD-based algorithms share."""

    lr: Rate = 0.01  # constant
    epochs: Epochs = 10.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Rate = 5e-4

    def scaled(self, factor: float) -> Self:
        """The same hyper-parameters over ``factor`` times the epochs, which cost ``factor`` times as much."""
        return self.model_copy(update={"epochs": self.epochs * factor})


class Algorithm(NamedTuple):
    """An unlearning algorithm: its hyper-parameters, what it does, and what it costs.

    ``run(learner, forget, retain, config, seed)`` changes ``learner.model`` in place and leaves it in eval
    mode; it may return a note on what it did. ``forget`` and ``retain`` are int64 ids on the learner's
    device; nothing else of the data may be used. ``cost(F, R, batch size, config)`` is the number of examples
    whose gradient one epoch takes, and a fixed number besides; plans of equal budget are made with it.
    Forward passes of teachers are not counted.
    """

    config: type[Strict]
    run: Callable[[Learner, Tensor, Tensor, Any, int], str | None]
    cost: Callable[[int, int, int, Any], tuple[float, int]]
    source: str
