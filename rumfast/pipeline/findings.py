"""What an experiment says of a claim: paired differences over seeds, their intervals, and the verdicts."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from rumfast.errors import DataError
from rumfast.evaluation import Interval, t_interval
from rumfast.evaluation.bands import Limits, interval_dict

ERROR_RATE = 0.05  # of a 95 % interval
SHARES_APART: Limits = (-1, 1)  # the range of a difference between two shares
Verdict = Literal["held", "contradicted", "undecided"]


class Comparison(NamedTuple):
    """The claim that ``one`` scores higher than ``other``, with the values of both, seed by seed.

    ``claim`` is None where nothing was claimed and the difference is only of interest. Seeds are paired:
    value s of both comes from original s. ``tried``: the numbers of candidates that both were chosen from;
    more choice makes a better plan. ``among``: of how many subjects the claim is, compared or not.
    """

    claim: str | None
    subject: str  # what the difference is about: an algorithm, or a pair of plans
    metric: str
    one: str
    other: str
    one_S: Sequence[float]
    other_S: Sequence[float]
    tried: tuple[int, int]
    among: int


def verdict_of(interval: Interval) -> Verdict:
    """Held where the whole interval is above zero, contradicted where it is below.

    >>> verdict_of(t_interval([0.1, 0.2, 0.15], SHARES_APART)), verdict_of(t_interval([0.3], SHARES_APART))
    ('held', 'undecided')
    """
    if interval.low is not None and interval.low > 0:
        return "held"
    if interval.high is not None and interval.high < 0:
        return "contradicted"
    return "undecided"


def weigh(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Differences with their verdicts, and what they say of each claim.

    Each difference carries its 95 % t-interval over seeds and the verdict that follows, and a second verdict,
    ``simultaneous``, from intervals that hold for all differences together (Bonferroni: 1 − 0.05 / number of
    differences). A finding says how many subjects were ``compared`` and ``among`` how many its claim would
    speak for. A claim is *held* or *contradicted* where all its differences say so, *undecided* where none
    decides, and *mixed* otherwise.

    Raises:
        DataError: the two sides of a comparison have different numbers of seeds.
    """
    count = len(comparisons)
    differences = [_difference(one, count) for one in comparisons]
    claims = {(one.claim, one.metric): one.among for one in comparisons if one.claim is not None}
    findings = []
    for (claim, metric), among in claims.items():
        rows = [row for row in differences if (row["claim"], row["metric"]) == (claim, metric)]
        findings.append({"claim": claim, "metric": metric, "among": among, **_finding(rows)})
    return {
        "intervals": count,
        "expected_by_chance": ERROR_RATE * count,
        "differences": differences,
        "findings": findings,
    }


def _difference(comparison: Comparison, count: int) -> dict[str, Any]:
    claim, subject, metric, one, other, one_S, other_S, tried, _ = comparison
    if len(one_S) != len(other_S):
        raise DataError(f"{subject}: got {len(one_S)} and {len(other_S)} seeds, expected as many of each")
    difference_S = (np.asarray(one_S) - np.asarray(other_S)).tolist()
    interval = t_interval(difference_S, SHARES_APART)
    return {
        "claim": claim,
        "subject": subject,
        "metric": metric,
        "one": one,
        "other": other,
        "tried": list(tried),
        "interval": interval_dict(interval),
        "verdict": verdict_of(interval),
        "simultaneous": verdict_of(t_interval(difference_S, SHARES_APART, 1 - ERROR_RATE / count)),
    }


def _finding(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the differences of one claim say of it."""
    subjects = {
        verdict: [row["subject"] for row in rows if row["verdict"] == verdict]
        for verdict in ("held", "contradicted", "undecided")
    }
    whole = [verdict for verdict, names in subjects.items() if len(names) == len(rows)]
    return {
        "compared": len(rows),
        "verdict": whole[0] if whole else "mixed",
        **subjects,
        "simultaneous": {
            verdict: [row["subject"] for row in rows if row["simultaneous"] == verdict]
            for verdict in ("held", "contradicted")
        },
    }
