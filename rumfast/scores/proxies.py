"""Proxies of memorization that cost nothing: averages over the training of one model."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rumfast.errors import DataError
from rumfast.kernels.margins import margins


class ProxyScores(NamedTuple):
    """Means over the epochs of one training, [N] float64; NaN for an example that was never trained on.

    All fall as memorization rises, so ``refine(forget, -scores.confidence_N)`` orders from low to high
    (Zhao & Triantafillou 2024, arXiv 2410.16516, section 3).

    Attributes:
        confidence_N: p_y, in [0, 1].
        max_confidence_N: max_c p_c, in [0, 1].
        negative_entropy_N: Σ_c p_c log p_c, in [−log C, 0] nats, where 0 log 0 = 0.
        binary_accuracy_N: share of epochs in which argmax_c p_c = y.
    """

    confidence_N: np.ndarray
    max_confidence_N: np.ndarray
    negative_entropy_N: np.ndarray
    binary_accuracy_N: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """The scores by their names in ``SCORES``, where entropy is −Σ_c p_c log p_c and so rises."""
        return {
            "confidence": self.confidence_N,
            "max_confidence": self.max_confidence_N,
            "entropy": 0.0 - self.negative_entropy_N,
            "binary_accuracy": self.binary_accuracy_N,
        }


class ProxyTotals:
    """Adds up the proxies of N examples while a model trains, from the forward passes it makes anyway.

    >>> import rumfast as rf
    >>> data = rf.load_dataset("digits").take(100, 50)
    >>> totals = ProxyTotals(len(data))
    >>> model = rf.train(data, rf.TrainConfig(arch="resnet8", epochs=2), observe=totals.add)
    >>> totals.scores().confidence_N.shape
    (100,)
    """

    def __init__(self, examples: int) -> None:
        self._total_4N = torch.zeros(4, examples, dtype=torch.float64)
        self._count_N = torch.zeros(examples, dtype=torch.int64)

    def add(self, id_B: Tensor, logits_BC: Tensor, label_B: Tensor) -> None:
        """Count one forward pass of the examples ``id_B``, unique int64 ids."""
        found = margins(logits_BC, label_B, ("confidence", "max_confidence", "entropy", "correct"))
        values = (found.confidence, found.max_confidence, -found.entropy, found.correct)
        self._total_4N = self._total_4N.to(id_B.device)
        self._count_N = self._count_N.to(id_B.device)
        self._total_4N.index_add_(1, id_B, torch.stack([value.double() for value in values]))
        self._count_N.index_add_(0, id_B, torch.ones_like(id_B))

    def scores(self) -> ProxyScores:
        """The means so far.

        Raises:
            DataError: nothing was added.
        """
        if not self._count_N.any():
            raise DataError("proxies: no forward pass was added; give train(…, observe=totals.add)")
        mean_4N = torch.where(self._count_N > 0, self._total_4N / self._count_N, torch.nan)
        return ProxyScores(*mean_4N.cpu().numpy())


class TrainingEvents(ProxyTotals):
    """Proxies, and in which epochs each example was classified as labelled.

    ``learned_EN`` [E, N] is boolean: the outcome of the example's e-th forward pass, before its step; False
    where there was none. Learning and forgetting events are its changes along E (Toneva et al. 2019, arXiv
    1812.05159, section 3).
    """

    def __init__(self, examples: int, epochs: int) -> None:
        super().__init__(examples)
        self.learned_EN = torch.zeros(epochs, examples, dtype=torch.bool)

    def add(self, id_B: Tensor, logits_BC: Tensor, label_B: Tensor) -> None:
        """Count one forward pass of the examples ``id_B``, unique int64 ids."""
        self.learned_EN = self.learned_EN.to(id_B.device)
        epoch_B = self._count_N.to(id_B.device)[id_B]
        super().add(id_B, logits_BC, label_B)
        self.learned_EN[epoch_B, id_B] = logits_BC.argmax(1) == label_B
