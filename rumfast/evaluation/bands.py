"""Uncertainty: intervals over seeds, and the noise floor that genuine retraining sets."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import stats

from rumfast.errors import DataError

Model = TypeVar("Model")


class Interval(NamedTuple):
    """A mean with its 95 % t-interval; ``low`` and ``high`` are None for a single value."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean ± t_{(1+confidence)/2, n−1} · s/√n, s the sample standard deviation.

    >>> t_interval([1.0, 1.0, 1.0])[:3]
    (1.0, 1.0, 1.0)
    """
    if not values:
        raise DataError("t_interval: no values")
    mean = float(np.mean(values))
    n = len(values)
    if n == 1:
        return Interval(mean, None, None, tuple(values))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, tuple(values))


class NullBand(NamedTuple):
    """What a metric gives for genuine retrains: the range a perfectly unlearned model falls into."""

    mean: float
    low: float
    high: float
    n: int  # oracles

    def contains(self, value: float) -> bool:
        """Could ``value`` be a retrain's?"""
        return self.low <= value <= self.high


def null_band(
    oracles: Sequence[Model],
    metric: Callable[[Model, Sequence[Model]], float],
    limits: tuple[float, float] = (0.0, 1.0),
) -> NullBand:
    """Compute ``metric`` of each oracle against all the others, and where one more oracle would fall.

    The band is the 95 % prediction interval for a new retrain, mean ± t_{0.975, n−1} · s · √(1 + 1/n), cut
    to the metric's range: it is about one model, where a t-interval would be about the mean of many. Values
    of a metric that compares pairs, such as ToW, share oracles, so that their band holds a new retrain a
    little less often: 0.88 of the time with 3 oracles, 0.89 with 5, 0.93 with 10 (simulated). Two oracles at
    equal distance from each other show no spread, and so set no limits.

    Raises:
        DataError: fewer than two oracles.
    """
    n = len(oracles)
    if n < 2:
        raise DataError(f"null_band: got {n} oracle, expected at least 2")
    values = [metric(oracle, [*oracles[:i], *oracles[i + 1 :]]) for i, oracle in enumerate(oracles)]
    mean = float(np.mean(values))
    if n == 2 and values[0] == values[1]:
        return NullBand(mean, *limits, n)
    half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / n)
    return NullBand(mean, max(limits[0], mean - half), min(limits[1], mean + half), n)
