"""CF-k and EU-k: unlearn in the last k layers, and leave the others as they are."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from rumfast.algorithms.base import Algorithm, SgdConfig
from rumfast.config import Positive, Rate
from rumfast.errors import UsageError
from rumfast.models import Classifier, initialize_
from rumfast.training import Learner


class CfkConfig(SgdConfig):
    """``k`` layers, counted from the end, learn: the classifier is one, each residual stage another."""

    k: Positive = 2


class EukConfig(CfkConfig):
    """New weights need a larger rate than θo's."""

    lr: Rate = 0.05


def _cfk(learner: Learner, forget: Tensor, retain: Tensor, config: CfkConfig, seed: int) -> None:
    """min CE(R) over the last k layers, from θo; the others end bit-identical, batch-norm statistics too.

    Their backward pass is saved; the cost counts whole gradients nevertheless.
    """
    _learn_last(learner, retain, config, seed, anew=False)


def _euk(learner: Learner, forget: Tensor, retain: Tensor, config: EukConfig, seed: int) -> None:
    """CF-k from new weights in the last k layers."""
    _learn_last(learner, retain, config, seed, anew=True)


def _learn_last(learner: Learner, retain: Tensor, config: CfkConfig, seed: int, *, anew: bool) -> None:
    frozen, learning = split_layers(learner.model, config.k)
    if anew:
        initialize_(learning, seed)
    optimizer = learner.optimizer(
        config.lr, config.momentum, config.weight_decay, list(learning.parameters())
    )
    with _without_gradients(frozen):
        learner.descend(
            learner.batches(retain, config.epochs, seed), optimizer, learner.cross_entropy, frozen=frozen
        )


def split_layers(model: Classifier, k: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """(frozen modules, last k layers): fc, then the stages from the last to the first, then the stem.

    Raises:
        UsageError: the model has fewer than k layers.
    """
    modules = list(model.children())
    stem = 2 if isinstance(modules[1], nn.BatchNorm2d) else 1  # a convolution with its batch norm
    layers = len(modules) - stem + 1
    if k > layers:
        raise UsageError(f"k: got {k}, but the model has {layers} layers, its classifier and stem included")
    first = 0 if k == layers else len(modules) - k
    return nn.ModuleList(modules[:first]), nn.ModuleList(modules[first:])


@contextmanager
def _without_gradients(frozen: nn.Module) -> Iterator[None]:
    frozen.requires_grad_(False)
    try:
        yield
    finally:
        frozen.requires_grad_(True)


def _cost(forget: int, retain: int, batch: int, config: CfkConfig) -> tuple[float, int]:
    return retain, 0


CFK = Algorithm(CfkConfig, _cfk, _cost, "Goel et al. 2022, section 4")
EUK = Algorithm(EukConfig, _euk, _cost, "Goel et al. 2022, section 4")
