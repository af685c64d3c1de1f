"""Members of kind ``proxies``: the two scores of examples that need a model of their own, in one training."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rumfast.data import Dataset
from rumfast.errors import DivergedError
from rumfast.loaders import Batch, batch_bounds
from rumfast.runtime import derive_seed, exact_float32
from rumfast.scores import loss_curvature, symmetric_divergence
from rumfast.stepping import Loss
from rumfast.sweeps.population import Population
from rumfast.training import Learner

HOLDOUT_LR = 0.1  # constant; momentum and weight decay are the recipe's
HOLDOUT_EPOCHS = 30  # at most
PATIENCE = 4  # epochs without a smaller training loss, after which it ends


class Timed:
    """A function that adds up the seconds spent in it, on a GPU those of enqueueing its work.

    >>> timed = Timed(abs)
    >>> timed(-2), timed.seconds > 0
    (2, True)
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        started = time.perf_counter()
        result = self._function(*arguments)
        self.seconds += time.perf_counter() - started
        return result


def train_proxies(learner: Learner, population: Population, index: int, data: Dataset) -> bool:
    """Train on the pool without a tenth, measuring curvature after each epoch; then on the tenth.

    Commits ``curvature`` and ``holdout`` [N], NaN where the member was not trained on an example at first,
    and the seconds of each part; returns False where another worker has before.

    Raises:
        DivergedError: the first training's loss is not finite.
    """
    spec, n = population.spec, len(data)
    held = spec.holdout(index, n)
    trained = np.setdiff1d(spec.pool(n), held)
    total_K = np.zeros(len(trained))

    def add_curvature(epoch: int) -> None:
        total_K[:] += curvatures(learner, data, trained)

    seed, measure, further = spec.member_seed(index), Timed(add_curvature), Timed(_holdout)
    started = time.perf_counter()
    learner.fit(torch.as_tensor(trained, device=learner.device), seed, after_epoch=measure)
    train_s = time.perf_counter() - started - measure.seconds
    moved_N, epochs = further(learner, data, held, seed)
    scores = {"curvature": np.full(n, np.nan), "holdout": np.full(n, np.nan)}
    scores["curvature"][trained] = total_K / spec.train.epochs
    scores["holdout"][trained] = moved_N[trained]
    metrics = {
        "train_s": train_s,
        "curvature_s": measure.seconds,
        "holdout_s": further.seconds,
        "holdout_epochs": epochs,
    }
    return population.save_proxies(index, scores, metrics)


def _holdout(learner: Learner, data: Dataset, held: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """How far [N] retraining moved each output, and the epochs it took; NaN and 0 where it diverged."""
    before_NC = learner.predictor.logits("train")
    try:
        epochs = fit_holdout(learner, torch.as_tensor(held, device=learner.device), seed)
    except DivergedError:  # a recipe that trains at a lower rate; its curvature stands
        return np.full(len(data), np.nan), 0
    return symmetric_divergence(before_NC, learner.predictor.logits("train")), epochs


def curvatures(learner: Learner, data: Dataset, ids: np.ndarray) -> np.ndarray:
    """Loss curvature [K] of the training examples ``ids`` in eval mode and float32, without augmentation.

    Step and gradients are those of pixels in [0, 1], before images are normalised. In batches of the
    recipe's size, since what fits for a training step fits here; the model's mode is kept.
    """
    model, was_training = learner.model, learner.model.training
    model.eval()
    mean, std = (torch.tensor(each, device=learner.device).view(-1, 1, 1) for each in (data.mean, data.std))
    parts = []
    for start, stop in batch_bounds(len(ids), learner.config.batch_size):
        chosen = ids[start:stop]
        image_BHWC = torch.from_numpy(data.train.image_NHWC[chosen]).to(learner.device)
        pixel_BCHW = image_BHWC.permute(0, 3, 1, 2).float() / 255  # channels-last in memory, as batches are
        label_B = torch.from_numpy(data.train.label_N[chosen]).to(learner.device)
        with exact_float32():
            parts.append(loss_curvature(lambda pixel: model((pixel - mean) / std), pixel_BCHW, label_B))
    model.train(was_training)
    return torch.cat(parts).cpu().numpy()


def fit_holdout(learner: Learner, held: Tensor, seed: int) -> int:
    """Train the learner's model on held-out examples until their loss no longer falls; returns the epochs."""
    config = learner.config
    optimizer = learner.optimizer(HOLDOUT_LR, config.momentum, config.weight_decay)
    losses = _epoch_losses(learner, held, optimizer, derive_seed("retrain on holdout", seed))
    best, best_epoch, epoch = float("inf"), 0, 0
    while epoch < HOLDOUT_EPOCHS and epoch - best_epoch < PATIENCE:
        loss = next(losses)
        epoch += 1
        if loss < best:
            best, best_epoch = loss, epoch
    return epoch


def _epoch_losses(
    learner: Learner, ids: Tensor, optimizer: torch.optim.Optimizer, seed: int
) -> Iterator[float]:
    """Take the steps of epoch after epoch; the mean loss over each one's examples, each before its step."""
    total = torch.zeros((), device=learner.device)

    def loss_of(batch: Batch) -> Loss:
        loss, examples = learner.cross_entropy(batch)
        total.add_(loss.detach() * examples)
        return loss, examples

    step = learner.stepper(optimizer, loss_of)
    for one_pass in learner.loader.epochs(ids, seed):
        total.zero_()
        learner.take(one_pass, step)
        yield total.item() / len(ids)
