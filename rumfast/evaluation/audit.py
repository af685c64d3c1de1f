"""Verdicts on populations: every metric with its interval, against what genuine retraining gives."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from rumfast.errors import DataError
from rumfast.evaluation.bands import NullBand, within
from rumfast.evaluation.metrics import METRICS, Metric, applies
from rumfast.evaluation.outputs import Outputs
from rumfast.evaluation.pairing import Pairing, offline_a_of
from rumfast.evaluation.verdicts import Finding, judge

LEVEL = 0.05  # share of genuine retrains that lie outside some band
LEAST_MODELS = 6  # of each kind: their thirds are pairs
Z = 1.96  # of a 95 % interval


class Auditor:
    """Holds populations against oracles.

    Every metric is a statistic T of m models and m oracles, a third of what there is. The *value* is its
    mean over random thirds, with mean ± 1.96·s as *interval*, s the delete-d jackknife's (Shao & Wu 1989):
    the deviation over thirds times √(m / (n − m)). A bootstrap, which repeats models, would raise KLoM and
    U-LiRA.

    The *null band* is where genuine retrains fall. With the oracles drawn in disjoint thirds A, A', B, the
    difference D = T(A', B) − T(A, B) is that of two such populations; means over all n models and K oracles
    differ less, by s = deviation(D) · √(m/2 · (1/n + 1/K)). The band is mean T(A, B) ± c·s, with one c for
    all metrics, the 95th percentile of the largest |D| / deviation(D) of any (Westfall & Young 1993): 95 %
    of genuine retrains lie within all bands at once, however many metrics there are.

    Args:
        oracles: the reference, K models.
        models: n of each audited population.
        metrics: by name; those that do not apply to the oracles are left out, see ``applies``.
        splits: draws of thirds.
        seed: of the draws.

    Raises:
        DataError: fewer than six audited models or oracles.
    """

    def __init__(
        self,
        oracles: Outputs,
        models: int,
        *,
        metrics: Mapping[str, Metric] = METRICS,
        splits: int = 200,
        seed: int = 0,
    ) -> None:
        if min(models, oracles.models) < LEAST_MODELS:
            raise DataError(
                f"audit: got {models} models and {oracles.models} oracles, expected {LEAST_MODELS} of each"
            )
        self.oracles = oracles
        self.models = models
        self.third = min(models, oracles.models) // 3
        self.metrics = {
            name: metric for name, metric in metrics.items() if applies(name, oracles)
        }
        self.splits = splits
        self.seed = seed

    def values(self, audited: Outputs) -> np.ndarray:
        """The metrics of each pair of thirds, [S, Q] in the order of ``metrics``."""
        if audited.models != self.models:
            raise DataError(f"audit: got {audited.models} models, expected {self.models}")
        draw = np.random.default_rng([self.seed, 0])
        chosen = [(draw.permutation(self.models)[: self.third], b) for _, _, b in self._thirds]
        return self._statistics(audited, chosen)

    @cached_property
    def offline_a(self) -> float:
        """RMIA's a, chosen once on all oracles."""
        return offline_a_of(self.oracles)

    @cached_property
    def _thirds(self) -> list[tuple[np.ndarray, ...]]:
        """Disjoint thirds A, A', B of the oracles."""
        draw, m = np.random.default_rng([self.seed, 1]), self.third
        orders = [draw.permutation(self.oracles.models) for _ in range(self.splits)]
        return [(order[:m], order[m : 2 * m], order[2 * m : 3 * m]) for order in orders]

    @cached_property
    def null(self) -> tuple[np.ndarray, np.ndarray]:
        """The metrics of the oracles' thirds A, and A', against B: [S, Q] each."""
        one, other = (
            self._statistics(self.oracles, [(thirds[which], thirds[2]) for thirds in self._thirds])
            for which in (0, 1)
        )
        return one, other

    @cached_property
    def bands(self) -> dict[str, NullBand]:
        """Null band of each metric."""
        one_SQ, other_SQ = self.null
        mean_Q = (one_SQ + other_SQ).mean(0) / 2
        difference_SQ = other_SQ - one_SQ
        deviation_Q = np.sqrt((difference_SQ**2).mean(0))
        largest_S = (np.abs(difference_SQ) / np.where(deviation_Q > 0, deviation_Q, 1)).max(1)
        scale = self.third / 2 * (1 / self.models + 1 / self.oracles.models)
        half_Q = float(np.quantile(largest_S, 1 - LEVEL)) * deviation_Q * math.sqrt(scale)
        return {
            name: NullBand(float(mean), *within(metric.range, mean - half, mean + half), self.oracles.models)
            for (name, metric), mean, half in zip(self.metrics.items(), mean_Q, half_Q, strict=True)
        }

    def audit(self, audited: Outputs, values_SQ: np.ndarray | None = None) -> dict[str, Finding]:
        """Every metric of a population, with its verdict; see ``judge``.

        Args:
            values_SQ: what :meth:`values` gave for the population, if it is known.
        """
        found_SQ = self.values(audited) if values_SQ is None else values_SQ
        value_Q = found_SQ.mean(0)
        half_Q = Z * found_SQ.std(0, ddof=1) * math.sqrt(self.third / (self.models - self.third))
        found = {}
        for (name, metric), value, half in zip(
            self.metrics.items(), value_Q.tolist(), half_Q.tolist(), strict=True
        ):
            ends = within(metric.range, value - half, value + half)
            finding = judge(value, *ends, self.bands[name], metric)
            if finding.verdict == "cannot tell":
                finding = finding._replace(needed=models_needed(finding, metric, self.models))
            found[name] = finding
        return found

    def needed(self, findings: Mapping[str, Finding]) -> dict[str, int | None]:
        """Models of each kind with which each metric would find the originals, given theirs, outside."""
        return {
            name: models_needed(finding, self.metrics[name], finding.null.n)
            for name, finding in findings.items()
        }

    def _statistics(self, audited: Outputs, chosen: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Every metric of some models ``rows`` against some oracles ``columns``, [S, Q]."""
        found_SQ = np.empty((len(chosen), len(self.metrics)))
        whole = [(q, metric) for q, metric in enumerate(self.metrics.values()) if metric.kind == "population"]
        for q, metric in enumerate(self.metrics.values()):
            if metric.kind == "model":
                value_M = metric.function(audited)
                found_SQ[:, q] = [value_M[rows].mean() for rows, _ in chosen]
            elif metric.kind == "pair":
                value_MK = metric.function(audited, self.oracles)
                found_SQ[:, q] = [value_MK[np.ix_(rows, columns)].mean() for rows, columns in chosen]
        for s, (rows, columns) in enumerate(chosen if whole else ()):
            pairing = Pairing(audited.take(rows), self.oracles.take(columns), self.offline_a)
            for q, metric in whole:
                found_SQ[s, q] = metric.function(pairing)
        return found_SQ


def models_needed(finding: Finding, metric: Metric, models: int) -> int | None:
    """Models of each kind, about, with which a finding on ``models`` would be *outside*; None: none would.

    The half widths h of the interval and b of the band fall as 1/√n, so that with n·((h + b)/d)² models they
    no longer meet over the distance d of the value from the band's mean.

    >>> finding = Finding(0.75, 0.625, 0.875, NullBand(0.5, 0.25, 0.75, 8), "inside", None)
    >>> models_needed(finding, METRICS["accuracy_forget"], 8)  # 8 · ((0.125 + 0.25)/0.25)²
    18
    """
    value, low, high, band = finding[:4]
    gap = value - band.mean
    apart = abs(gap) if metric.better == "oracle" else gap if metric.better == "lower" else -gap
    if apart <= 0:
        return None
    # The longer sides: the others may be cut to the metric's range.
    half = max(high - value, value - low) + max(band.high - band.mean, band.mean - band.low)
    return math.ceil(models * (half / apart) ** 2)
