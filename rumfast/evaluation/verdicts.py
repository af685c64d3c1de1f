"""Verdicts: does a value, with its interval, lie where the values of genuine retrains lie?"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from rumfast.evaluation.bands import NullBand, prediction_half, t_interval, within
from rumfast.evaluation.metrics import Metric

Verdict = Literal["inside", "outside", "cannot tell", "no power"]
FORGET_FACTOR = {"tow": "accuracy_forget", "tow_mia": "mia"}  # what a product takes from the forget set
SINGLE = 2.0  # half widths of the band: 1 would call 7 % of retrains different, 2 calls 2 % (simulated)
WIDEST = 2.0  # times the band's width: a mean inside whose interval is wider still cannot tell
MOST_MODELS = 200  # of each kind that a run is advised to train; beyond, an audit tells more by fewer


class Finding(NamedTuple):
    """One metric of one model or population, held against retrained models."""

    value: float
    low: float  # 95 % interval
    high: float
    null: NullBand
    verdict: Verdict
    needed: int | None = None  # models of each kind that would tell, about, where these cannot
    over_forgotten: bool = False  # outside on the side where more is forgotten than by retraining


class Judgement(NamedTuple):
    """The verdict on a plan or population as a whole, with its reasons."""

    verdict: str  # matches, differs or cannot tell; an audit says pass, fail or cannot tell
    reasons: tuple[str, ...]


def judge(value: float, low: float, high: float, band: NullBand, metric: Metric) -> Finding:
    """The verdict on a value with its interval.

    *inside*: the value lies in the band, or beyond its good end. *outside*: the whole interval lies beyond an
    end that matters. *cannot tell*: the value does, its interval does not.
    """
    below = band.low - value if metric.better != "lower" else -math.inf
    above = value - band.high if metric.better != "higher" else -math.inf
    if max(below, above) <= 0:
        return Finding(value, low, high, band, "inside")
    if high >= band.low if below > above else low <= band.high:
        return Finding(value, low, high, band, "cannot tell")
    over = metric.forgotten == ("lower" if below > above else "higher")
    return Finding(value, low, high, band, "outside", over_forgotten=over)


def judge_models(values: Sequence[float], band: NullBand, metric: Metric) -> Finding:
    """The verdict on the mean of a few models, with its t-interval over them.

    A single model shows no spread. Its interval is taken to be ``SINGLE`` times as wide as the oracles' band:
    if it is like them, it scatters as they do, and their spread is known from few. A mean inside the band
    *cannot tell* where its interval is more than ``WIDEST`` times as wide as the band.
    """
    mean, low, high, _ = t_interval(values, metric.range)
    if low is None or high is None:
        low, high = within(metric.range, mean - SINGLE * band.half, mean + SINGLE * band.half)
        return judge(mean, low, high, band, metric)
    finding = judge(mean, low, high, band, metric)
    too_wide = high - low > WIDEST * (band.high - band.low)
    return finding._replace(verdict="cannot tell") if finding.verdict == "inside" and too_wide else finding


def without_power(
    findings: Mapping[str, Finding], originals: Mapping[str, Finding], needed: Mapping[str, int | None]
) -> dict[str, Finding]:
    """Findings in which *inside* reads *no power* where the originals themselves are not told by the metric.

    A metric that cannot tell models that never forgot from retrains says nothing of others on this forget
    set; see :func:`has_power`.

    Args:
        needed: models of each kind with which a metric would tell the originals.
    """
    return {
        name: finding._replace(verdict="no power", needed=needed[name])
        if finding.verdict == "inside" and not has_power(name, originals)
        else finding
        for name, finding in findings.items()
    }


def has_power(name: str, originals: Mapping[str, Finding]) -> bool:
    """True if a metric finds the originals outside, and a product such as ToW does so by its forget factor.

    Originals less accurate than oracles lie outside by ToW-MIA too: that tells nothing of forgetting.
    """
    chosen = (name, FORGET_FACTOR.get(name, name))
    return all(originals[each].verdict == "outside" for each in chosen if each in originals)


def models_to_tell(originals: Sequence[float], band: NullBand, metric: Metric) -> int | None:
    """Seeds, and as many oracles, with which the originals would be found outside; None: more than 200.

    The least m with t_{0.975, m−1} · (s_r · √(1 + 1/m) + s_o / √m) < d, where s_r and s_o are the deviations
    of oracles and originals and d is the distance of the originals' mean from the band's: the band for one
    retrained model narrows little as m grows, the interval of the originals' mean narrows as 1/√m.
    """
    apart = float(np.mean(originals)) - band.mean
    distance = abs(apart) if metric.better == "oracle" else apart if metric.better == "lower" else -apart
    spread = band.half / prediction_half(band.n, 1.0)
    own = float(np.std(originals, ddof=1)) if len(originals) > 1 else spread
    m_M = np.arange(max(band.n, len(originals)) + 1, MOST_MODELS + 1)
    reach_M = stats.t.ppf(0.975, m_M - 1) * (spread * np.sqrt(1 + 1 / m_M) + own / np.sqrt(m_M))
    told_M = m_M[reach_M < distance]
    return int(told_M[0]) if len(told_M) else None


def conclude(findings: Mapping[str, Finding], metrics: Mapping[str, Metric]) -> Judgement:
    """The verdict of all metrics: *differs* where one is outside, else *cannot tell* where one cannot.

    *Matches* takes a metric that asks for membership, has power, and is inside: to be as accurate as
    retrained models is not to have forgotten.

    Args:
        metrics: the findings', by name.
    """

    def names(verdict: str, over: bool = False) -> list[str]:
        chosen = (name for name, finding in findings.items() if finding.verdict == verdict)
        return [metrics[name].label for name in chosen if findings[name].over_forgotten == over]

    found = {"over-forgotten by": names("outside", over=True), "unlike retraining by": names("outside")}
    if outside := tuple(f"{text} {', '.join(labels)}" for text, labels in found.items() if labels):
        return Judgement("differs", outside)
    if unclear := names("cannot tell"):
        return Judgement("cannot tell", (f"too few models to tell by {', '.join(unclear)}",))
    passed = [metrics[name] for name, finding in findings.items() if finding.verdict == "inside"]
    if not any(metric.membership for metric in passed):
        return Judgement(
            "cannot tell", ("no metric of membership tells even the originals from retrained models",)
        )
    powerful = " that have power here" if names("no power") else ""
    return Judgement("matches", (f"like retraining by all {len(passed)} metrics{powerful}",))
