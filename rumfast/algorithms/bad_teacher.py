"""Bad teacher: learn the forget set from a teacher who knows nothing, the retain set from the original."""

import copy
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rumfast.algorithms.base import Algorithm, Epochs, SgdConfig
from rumfast.algorithms.distillation import divergence, teach
from rumfast.loaders import Batch
from rumfast.models import initialize_
from rumfast.runtime import derive_seed
from rumfast.training import Learner


class BadTeacherConfig(SgdConfig):
    """The teachers' and the student's logits are divided by ``temperature``."""

    epochs: Epochs = 5.0
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


def _bad_teacher(
    learner: Learner, forget: Tensor, retain: Tensor, config: BadTeacherConfig, seed: int
) -> None:
    """min_θ T²·KL(teacher ‖ θ) over S ∪ R shuffled together; the teacher is θo on R, new weights on S.

    (The research code learns from a random 30 % of R, and divides its loss by the number of classes.)
    """
    optimizer = learner.optimizer(config.lr, config.momentum, config.weight_decay)
    competent, incompetent = copy.deepcopy(learner.model), copy.deepcopy(learner.model)
    initialize_(incompetent, derive_seed("incompetent", seed))
    taught = teach(learner, [(incompetent, forget), (competent, retain)], config.epochs)

    def loss_of(batch: Batch) -> tuple[Tensor, int]:
        return divergence(taught(batch), learner.logits(batch.image), config.temperature), len(batch.id)

    learner.descend(learner.batches(torch.cat([forget, retain]), config.epochs, seed), optimizer, loss_of)


BAD_TEACHER = Algorithm(
    BadTeacherConfig,
    _bad_teacher,
    lambda forget, retain, batch, config: (forget + retain, 0),
    "Chundawat et al. 2023, section 4",
)
