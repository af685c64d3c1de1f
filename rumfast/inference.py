"""One pass of a model over a data set: logits, and on request embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rumfast.data import Dataset, Examples
from rumfast.errors import DivergedError, UsageError
from rumfast.kernels.augment import normalise
from rumfast.kernels.margins import OUTPUTS, Margins, margins
from rumfast.loaders import batch_bounds
from rumfast.models import Classifier

# Examples and pixels in a batch at most: large enough to fill a GPU, small enough for any.
EVALUATION_BATCH, EVALUATION_PIXELS = 1024, 1024 * 32 * 32
Part = Literal["train", "test"]


@dataclass(frozen=True)
class Predictions:
    """What a model says of every training and test example, beside the labels.

    Attributes:
        train_NC, test_NC: logits, float32.
        train_label_N, test_label_N: int64.
    """

    train_NC: np.ndarray
    test_NC: np.ndarray
    train_label_N: np.ndarray
    test_label_N: np.ndarray

    def margins(self, part: Part = "train", outputs: Sequence[str] = OUTPUTS) -> Margins:
        """Margins and their companions of ``part``, as tensors [N]; None where not among ``outputs``."""
        logits, label = self.logits_and_labels(part)
        return margins(torch.from_numpy(logits), torch.from_numpy(label), outputs)

    def logits_and_labels(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Logits [N, C] and labels [N] of ``part``."""
        if part == "train":
            return self.train_NC, self.train_label_N
        return self.test_NC, self.test_label_N

    def accuracy(self, part: Part, ids: np.ndarray | None = None) -> float:
        """Share of ``part`` (or of ``ids`` in it) whose label has the largest logit, in [0, 1]."""
        logits, label = self.logits_and_labels(part)
        correct = logits.argmax(1) == label
        return float(correct.mean() if ids is None else correct[ids].mean())


def predict(model: Classifier, data: Dataset) -> Predictions:
    """Predict all of ``data`` in eval mode and float32, without augmentation.

    Float32 whatever the training precision, because margins of memorized examples are where bf16 is coarse.

    Batches are halved while they do not fit into the device's memory.

    Raises:
        DivergedError: a logit is not finite, as of weights that are finite and huge.
        UsageError: not even one image fits.
    """
    train_NC, test_NC = logits_of(model, data, data.train), logits_of(model, data, data.test)
    if not (np.isfinite(train_NC).all() and np.isfinite(test_NC).all()):
        raise DivergedError("the model's logits are not finite; lower lr or alpha")
    return Predictions(train_NC, test_NC, data.train.label_N, data.test.label_N)


def logits_of(model: Classifier, data: Dataset, examples: Examples) -> np.ndarray:
    """Logits [N, C] of ``examples``, normalised as ``data``'s training set is."""
    return _map(model, lambda image: model.forward(image).cpu(), data, examples).numpy()


def embeddings_of(model: Classifier, data: Dataset, examples: Examples) -> Tensor:
    """Penultimate embeddings [N, D] of ``examples``, float32, on the model's device."""
    return _map(model, model.embed, data, examples)


@torch.no_grad()
def _map(
    model: Classifier, function: Callable[[Tensor], Tensor], data: Dataset, examples: Examples
) -> Tensor:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    height, width = examples.image_NHWC.shape[1:3]
    size = max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // (height * width)))

    def compute(start: int, stop: int) -> Tensor:
        image = torch.from_numpy(examples.image_NHWC[start:stop]).to(device)
        return function(normalise(image, data.mean, data.std)).float()

    while True:
        try:
            parts = [compute(start, stop) for start, stop in batch_bounds(len(examples), size)]
            break
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise UsageError(
                    f"one image of {height}×{width} does not fit into {device}'s memory ({error}); "
                    "use a device with more, or a smaller network"
                ) from None
            size //= 2
    model.train(was_training)
    return torch.cat(parts)
