"""Uncertainty: intervals over seeds, and the noise floor that genuine retraining sets."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import stats

from rumfast.errors import DataError

Model = TypeVar("Model")


Limits = tuple[float | None, float | None]  # least and greatest value of a quantity; None: no limit


class Interval(NamedTuple):
    """A mean with its 95 % t-interval; ``low`` and ``high`` are None for a single value."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]


def t_interval(values: Sequence[float], limits: Limits, confidence: float = 0.95) -> Interval:
    """Mean ± t_{(1+confidence)/2, n−1} · s/√n, cut to ``limits``; s is the sample standard deviation.

    Cutting loses no coverage: the true mean lies within the limits too.

    Args:
        limits: the range of the values, (0, 1) for a share.

    Raises:
        DataError: no values.

    >>> t_interval([1.0, 1.0, 1.0], (0, 1))[:3]
    (1.0, 1.0, 1.0)
    >>> t_interval([0.9, 1.0], (0, 1)).high
    1.0
    """
    if not values:
        raise DataError("t_interval: no values")
    mean = float(np.mean(values))
    n = len(values)
    if n == 1:
        return Interval(mean, None, None, tuple(values))
    quantile = float(stats.t.ppf((1 + confidence) / 2, n - 1))
    half = quantile * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, *within(limits, mean - half, mean + half), tuple(values))


def interval_dict(interval: Interval) -> dict[str, Any]:
    """An interval as JSON."""
    return interval._asdict() | {"values": list(interval.values)}


def within(limits: Limits, low: float, high: float) -> tuple[float, float]:
    """Two ends, cut to the limits.

    >>> within((0, None), -0.5, 1.5)
    (0.0, 1.5)
    """
    least, most = limits
    return (
        float(low) if least is None else max(float(least), float(low)),
        float(high) if most is None else min(float(most), float(high)),
    )


class NullBand(NamedTuple):
    """What a metric gives for genuine retrains: the range a perfectly unlearned model falls into."""

    mean: float
    low: float
    high: float
    n: int  # oracles
    half: float = math.nan  # half of its width before it was cut to the metric's range

    def record(self) -> dict[str, float]:
        """The band as JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high}

    def contains(self, value: float) -> bool:
        """True if ``value`` could be a retrain's."""
        return self.low <= value <= self.high


def null_band(
    oracles: Sequence[Model],
    metric: Callable[[Model, Sequence[Model]], float],
    limits: Limits = (0.0, 1.0),
    least: float = 0.0,
    pairs: bool = False,
) -> NullBand:
    """Compute ``metric`` of each oracle against all the others, and where one more oracle would fall.

    The band is the 95 % prediction interval for a new retrain, mean ± t_{0.975, n−1} · s · √(1 + 1/n), cut
    to the metric's range: it is about one model, where a t-interval would be about the mean of many.

    Args:
        least: the smallest that s may be, see :func:`least_deviation`.
        pairs: the metric compares pairs, as ToW does. An oracle that lies apart then lowers the values of all
            others too, so that their deviation is (n−2)/(n−1) of what it would be against other models; s is
            divided by that, and two oracles set no limits.

    Raises:
        DataError: fewer than two oracles.
    """
    n = len(oracles)
    if n < 2:
        raise DataError(f"null_band: got {n} oracle, expected at least 2")
    values = [metric(oracle, [*oracles[:i], *oracles[i + 1 :]]) for i, oracle in enumerate(oracles)]
    mean = float(np.mean(values))
    deviation = max(float(np.std(values, ddof=1)), least)
    half = prediction_half(n, deviation)
    if pairs:
        half = half * (n - 1) / (n - 2) if n > 2 else math.inf
    return NullBand(mean, *within(limits, mean - half, mean + half), n, half)


def prediction_half(n: int, deviation: float) -> float:
    """Half of the 95 % prediction interval for one value more than n: t_{0.975, n−1} · s · √(1 + 1/n)."""
    return float(stats.t.ppf(0.975, n - 1)) * deviation * math.sqrt(1 + 1 / n)


def least_deviation(examples: int) -> float:
    """1/(2n), the standard deviation of a share of n examples of which models agree on all but one.

    Where a few retrained models agree on every one of a few examples, their spread of 0 does not show that
    the next one would agree too; this is what an example adds that they get right every other time.

    >>> least_deviation(5)
    0.1
    """
    return 0.5 / examples
