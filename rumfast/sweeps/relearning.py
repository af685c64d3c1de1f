"""Relearning: how soon a model knows the forget set again when it is fine-tuned on it."""

from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from rumfast.data import Dataset
from rumfast.errors import DivergedError
from rumfast.training import Learner


class Relearning(NamedTuple):
    """What became of a model that was fine-tuned on the forget set.

    Attributes:
        steps: taken when the target was first seen to be reached; the most allowed where it was not.
        reached: was it?
        accuracy: on the forget set in [0, 1], before the first step and at each look since; a model that
            diverges is not looked at again.
    """

    steps: int
    reached: bool
    accuracy: tuple[float, ...]


def relearn(
    learner: Learner, data: Dataset, forget: np.ndarray, *, target: float, every: int, most: int, seed: int
) -> Relearning:
    """Fine-tune the learner's model on the forget set, in place, until its accuracy there is ``target``.

    SGD on cross-entropy over shuffled batches of the forget set alone, with the batch size, lr, momentum and
    weight decay of the learner's recipe and no schedule. Relearn time (Golatkar et al. 2020, arXiv
    1911.04933) counts steps as the Anamnesis Index does (Chundawat et al. 2023, arXiv 2201.05629): few where
    the model still holds what it was to forget. It means nothing without anchors: an original needs none, a
    fresh model as many as it takes to learn the set from nothing. That is no bound: a model that never saw a
    class has to give up its belief in the others first, and may need more.

    Args:
        forget: [F] int64 ids.
        target: accuracy in [0, 1].
        every: steps between two looks, which cost a forward pass over the forget set each.
        most: steps, after which it ends.
        seed: of the order.
    """
    config = learner.config
    label_F = data.train.label_N[forget]
    optimizer = learner.optimizer(config.lr, config.momentum, config.weight_decay)
    ids = torch.as_tensor(forget, device=learner.device)
    batches = learner.batches(ids, most / learner.steps_per_epoch(len(ids)), seed)
    step = learner.stepper(optimizer, learner.cross_entropy)

    def accuracy() -> float:
        return float((learner.predictor.logits("train", forget).argmax(1) == label_F).mean())

    steps, seen = 0, [accuracy()]
    while seen[-1] < target and steps < most:
        taken = min(every, most - steps)
        try:
            learner.take(islice(batches, taken), step)
        except DivergedError:
            return Relearning(most, False, tuple(seen))
        steps += taken
        seen.append(accuracy())
    return Relearning(steps, seen[-1] >= target, tuple(seen))
