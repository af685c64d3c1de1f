"""One number of the report: a mean with an optional interval, where it stands, and how it is written.

The summary is JSON written by other code, so a value may be a bare number, a dict with ``mean``, ``low`` and
``high``, null or NaN. Everything below reads all of these through `estimate`, once.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

MISSING = "–"
TONES = {"inside": "good", "outside": "bad"}  # the style of a verdict; the others judge nothing and stay grey
Standing = Literal["inside", "outside", "cannot tell", "no power"]


class Estimate(NamedTuple):
    """A mean and its 95 % interval; None stands for what is not known (one seed has no interval)."""

    mean: float | None
    interval: tuple[float, float] | None = None


def finite(value: Any) -> float | None:
    """The value as a float, or None when it is null, not a number, NaN or infinite."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def estimate(value: Any) -> Estimate:
    """Read a number or a ``{"mean", "low", "high"}`` dict; half an interval counts as none.

    >>> estimate({"mean": 0.5, "low": 0.4, "high": float("nan")})
    Estimate(mean=0.5, interval=None)
    >>> estimate(2)
    Estimate(mean=2.0, interval=None)
    """
    if not isinstance(value, Mapping):
        return Estimate(finite(value))
    low, high = finite(value.get("low")), finite(value.get("high"))
    interval = None if low is None or high is None else (low, high)
    return Estimate(finite(value.get("mean")), interval)


def metric_estimate(plan: Mapping[str, Any], metric: str) -> Estimate:
    """The estimate of one metric of one plan; unknown when the plan does not have it."""
    return estimate((plan.get("metrics") or {}).get(metric))


def band_range(band: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """The oracle null band as (low, high), or None when fewer than two oracles left it undefined."""
    return estimate(band).interval


def standing(plan: Mapping[str, Any], metric: str, band: Mapping[str, Any] | None) -> Standing | None:
    """The verdict on one metric of a plan; None where its value or the oracle null band is unknown.

    The evaluation's own verdict, so that page and JSON never contradict. Records of before 0.7 have none:
    there a mean outside the band *cannot tell* where its interval reaches into the band.

    >>> standing({"metrics": {"tow": {"mean": 0.5}}}, "tow", {"low": 0.9, "high": 1.0})
    'outside'
    """
    value, limits = metric_estimate(plan, metric), band_range(band)
    if value.mean is None or limits is None:
        return None
    entry = plan["metrics"][metric] if isinstance(plan["metrics"][metric], Mapping) else {}
    if "verdict" in entry:
        return cast(Standing, entry["verdict"])
    if entry.get("inside", limits[0] <= value.mean <= limits[1]):
        return "inside"
    reaches = value.interval and value.interval[0] <= limits[1] and value.interval[1] >= limits[0]
    return "cannot tell" if reaches else "outside"


def place_text(plan: Mapping[str, Any], metric: str, place: Standing | None) -> str:
    """A verdict in the words of a table's cell.

    >>> place_text({"metrics": {"mia": {"over_forgotten": True}}}, "mia", "outside")
    'over-forgotten'
    """
    entry = (plan.get("metrics") or {}).get(metric)
    if isinstance(entry, Mapping) and entry.get("over_forgotten"):
        return "over-forgotten"
    return {"inside": "in band"}.get(place or "", place or "")


def is_share(metric: str) -> bool:
    """Accuracies are read as percentages, every other metric as a number in [0, 1]."""
    return metric.startswith("accuracy")


def metric_text(metric: str, value: float | None) -> str:
    """Three decimals, or a percentage with one decimal for accuracies.

    >>> metric_text("tow", 0.96649), metric_text("accuracy_test", 0.9665), metric_text("tow", None)
    ('0.966', '96.7%', '–')
    """
    if value is None:
        return MISSING
    return f"{100 * value:.1f}%" if is_share(metric) else f"{value:.3f}"


def range_text(metric: str, interval: tuple[float, float] | None) -> str:
    """Two ends in the metric's own format, or nothing when they are not known.

    >>> range_text("tow", (0.9, 1.0)), range_text("accuracy_test", (0.9, 0.95)), range_text("tow", None)
    ('0.900–1.000', '90.0–95.0%', '')
    """
    if interval is None:
        return ""
    return f"{metric_text(metric, interval[0]).rstrip('%')}–{metric_text(metric, interval[1])}"


def cost_text(share: float | None) -> str:
    """Cost as a share of retraining, in percent, with a decimal only where it matters.

    >>> cost_text(0.0), cost_text(0.0432), cost_text(0.214), cost_text(None)
    ('0%', '4.3%', '21%', '–')
    """
    if share is None:
        return MISSING
    return f"{100 * share:.1f}%" if 0 < share < 0.0995 else f"{100 * share:.0f}%"


def seconds_text(seconds: float | None) -> str:
    """A duration with the two units a reader needs.

    >>> seconds_text(0.04), seconds_text(12.34), seconds_text(250.4), seconds_text(7500)
    ('0.04 s', '12.3 s', '4 min 10 s', '2 h 5 min')
    """
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def count_text(value: Any) -> str:
    """A count with thousands separators, or a dash.

    >>> count_text(42000), count_text(None)
    ('42,000', '–')
    """
    number = finite(value)
    return MISSING if number is None else f"{number:,.0f}"
