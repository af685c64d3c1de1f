"""Unlearning by training on the retain set: none, fine-tuning, and retraining from scratch."""

from torch import Tensor

from rumfast.algorithms.base import Algorithm, SgdConfig
from rumfast.config import Strict
from rumfast.training import Learner


class NoConfig(Strict):
    """No hyper-parameters."""


def _none(learner: Learner, forget: Tensor, retain: Tensor, config: NoConfig, seed: int) -> None:
    """Keep the model: right for examples that it never memorized."""


def _finetune(learner: Learner, forget: Tensor, retain: Tensor, config: SgdConfig, seed: int) -> None:
    """min_θ CE(R), from θo: relies on forgetting what is no longer trained on."""
    optimizer = learner.optimizer(config.lr, config.momentum, config.weight_decay)
    learner.descend(learner.batches(retain, config.epochs, seed), optimizer, learner.cross_entropy)


def _retrain(learner: Learner, forget: Tensor, retain: Tensor, config: NoConfig, seed: int) -> None:
    """The training recipe on R, from new weights: the exact answer, at full cost."""
    learner.fit(retain, seed)


NONE = Algorithm(
    NoConfig, _none, lambda forget, retain, batch, config: (0, 0), "Zhao et al. 2024, section 5.2"
)
FINETUNE = Algorithm(
    SgdConfig, _finetune, lambda forget, retain, batch, config: (retain, 0), "Warnecke et al. 2021"
)
RETRAIN = Algorithm(
    NoConfig,
    _retrain,
    lambda forget, retain, batch, config: (retain, 0),
    "the definition of exact unlearning",
)
