"""One pass of a model over a data set: logits, and on request embeddings."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rumfast.data import Dataset, Examples
from rumfast.errors import DivergedError, UsageError
from rumfast.kernels.augment import augment, normalise
from rumfast.kernels.margins import OUTPUTS, Margins, margins
from rumfast.loaders import batch_bounds
from rumfast.models import Classifier
from rumfast.stepping import Record, Replayed, side_stream

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
    On CUDA, convolutions multiply in TF32 as torch lets them: a logit then errs by about what storing its
    margin as float16 costs, and a pass takes a fraction of the time. ``runtime.exact_float32`` around it
    avoids that.

    Batches are halved while they do not fit into the device's memory.

    Raises:
        DivergedError: a logit is not finite, as of weights that are finite and huge.
        UsageError: not even one image fits.
    """
    return _predictions(data, logits_of(model, data, data.train), logits_of(model, data, data.test))


def logits_of(model: Classifier, data: Dataset, examples: Examples) -> np.ndarray:
    """Logits [N, C] of ``examples``, normalised as ``data``'s training set is."""
    return _map(model, model.forward, data, examples).cpu().numpy()


def embeddings_of(model: Classifier, data: Dataset, examples: Examples) -> Tensor:
    """Penultimate embeddings [N, D] of ``examples``, float32, on the model's device."""
    return _map(model, model.embed, data, examples)


class Predictor(Replayed[tuple[str, Tensor], Tensor]):
    """Predicts one data set by one model, time after time as its weights change in place.

    On a CPU as :func:`predict` does. On a GPU on which the images lie, a batch is gathered, normalised and
    passed through the network by one recorded call.

    Args:
        forward: the model, or what it was compiled to.
        image_NHWC: the training images on the model's device; None where they do not fit there.
        record, stream: see ``stepping.cuda_graphs`` and ``side_stream``; None without graphs.
    """

    def __init__(
        self,
        model: Classifier,
        data: Dataset,
        *,
        forward: Callable[[Tensor], Tensor],
        image_NHWC: Tensor | None,
        record: Record | None = None,
        stream: "torch.cuda.Stream | None" = None,
    ) -> None:
        super().__init__(record)
        self._model = model
        self._data = data
        self._forward = forward
        self._stream = stream
        self._images = {} if image_NHWC is None or not image_NHWC.is_cuda else {"train": image_NHWC}

    def predict(self) -> Predictions:
        """See :func:`predict`."""
        return _predictions(self._data, self.logits("train"), self.logits("test"))

    def logits(self, part: Part, ids: np.ndarray | None = None) -> np.ndarray:
        """Logits [K, C] of the examples ``ids`` of a part (None: all)."""
        examples: Examples = getattr(self._data, part)
        if not self._images:
            if ids is not None:
                examples = Examples(examples.image_NHWC[ids], examples.label_N[ids])
            return logits_of(self._model, self._data, examples)
        device = self._images["train"].device
        if part not in self._images:
            self._images[part] = torch.from_numpy(examples.image_NHWC).to(device)
        id_K = torch.arange(len(examples)) if ids is None else torch.from_numpy(ids)
        return self._in_batches(part, id_K.to(device)).cpu().numpy()

    @torch.no_grad()
    def _in_batches(self, part: Part, id_K: Tensor) -> Tensor:
        image_NHWC = self._images[part]

        def compute(start: int, stop: int, size: int) -> Tensor:
            # Filled up by its last example, so that all batches are of one shape.
            place = torch.arange(start, start + size, device=id_K.device).clamp_(max=stop - 1)
            return self((part, id_K[place]))[: stop - start].clone()

        with _eval_mode(self._model), side_stream(image_NHWC.device, self._stream):
            return _batched(compute, len(id_K), image_NHWC.shape, image_NHWC.device)

    def _compute(self, fed: tuple[str, Tensor]) -> Tensor:
        part, id_B = fed
        plain: dict[str, Any] = {"seed": 0, "epoch": 0, "flip": False, "crop_padding": 0}
        image = augment(self._images[part], id_B, mean=self._data.mean, std=self._data.std, **plain)
        return self._forward(image).float()


def _predictions(data: Dataset, train_NC: np.ndarray, test_NC: np.ndarray) -> Predictions:
    if not (np.isfinite(train_NC).all() and np.isfinite(test_NC).all()):
        raise DivergedError("the model's logits are not finite; lower lr or alpha")
    return Predictions(train_NC, test_NC, data.train.label_N, data.test.label_N)


@contextmanager
def _eval_mode(model: Classifier) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def _map(
    model: Classifier, function: Callable[[Tensor], Tensor], data: Dataset, examples: Examples
) -> Tensor:
    device = next(model.parameters()).device

    def compute(start: int, stop: int, size: int) -> Tensor:
        image = torch.from_numpy(examples.image_NHWC[start:stop]).to(device)
        return function(normalise(image, data.mean, data.std)).float()

    with _eval_mode(model):
        return _batched(compute, len(examples), examples.image_NHWC.shape, device)


def _batched(
    compute: Callable[[int, int, int], Tensor], count: int, shape: Sequence[int], device: torch.device
) -> Tensor:
    """``compute(start, stop, size of the largest batch)`` of all batches, halved while they do not fit.

    Args:
        shape: of the images, [N, H, W, 3].
    """
    height, width = shape[1:3]
    most = max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // (height * width)))
    while True:
        bounds = batch_bounds(count, most)
        size = max((stop - start for start, stop in bounds), default=0)
        try:
            return torch.cat([compute(start, stop, size) for start, stop in bounds])
        except torch.OutOfMemoryError as error:
            if most == 1:
                raise UsageError(
                    f"one image of {height}×{width} does not fit into {device}'s memory ({error}); "
                    "use a device with more, or a smaller network"
                ) from None
            most //= 2
