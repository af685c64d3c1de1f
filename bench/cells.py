"""Cells of the tables: a mean with its interval, bold where the record says so."""

from collections.abc import Mapping
from typing import Any

from rumfast.evaluation.bands import Limits, within
from rumfast.reporting.audit_text import MARKS

SHARE: Limits = (0, 1)
DIFFERENCE: Limits = (-1, 1)  # of two shares


def interval_text(interval: Mapping[str, Any], limits: Limits, form: str = ".3f", bold: bool = False) -> str:
    """Mean and 95 % interval, cut to the range as records of before 0.7 did not.

    >>> interval_text({"mean": 0.98, "low": 0.95, "high": 1.01}, SHARE, bold=True)
    '**0.980** [0.950, 1.000]'
    """
    mean = f"{interval['mean']:{form}}"
    mean = f"**{mean}**" if bold else mean
    if interval["low"] is None:
        return mean
    low, high = within(limits, interval["low"], interval["high"])
    return f"{mean} [{low:{form}}, {high:{form}}]"


def metric_cell(metric: Mapping[str, Any]) -> str:
    """A metric of a plan with the mark of its verdict; bold where the mean lies inside, before 0.7.

    >>> metric_cell({"mean": 0.5, "low": 0.25, "high": 0.75, "inside": True, "verdict": "no power"})
    '0.500 [0.250, 0.750] –'
    """
    if "verdict" not in metric:
        return interval_text(metric, SHARE, bold=metric["inside"])
    return f"{interval_text(metric, SHARE)} {MARKS[metric['verdict']]}"
