"""What no audit of membership sees: a useless model forgets perfectly."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from rumfast.evaluation.audit import Finding
from rumfast.evaluation.metrics import Metric
from rumfast.evaluation.outputs import Outputs

LEAST_UTILITY = 0.9


class Judgement(NamedTuple):
    """What to say of a population as a whole."""

    verdict: str  # pass, fail or cannot tell
    reasons: tuple[str, ...]


def utility(audited: Outputs, oracles: Outputs) -> float:
    """(RA_u / RA_r) · (TA_u / TA_r), mean retain and test accuracy of models and oracles; 1 is as useful.

    The utility factor of the NeurIPS 2023 competition's final score (Triantafillou et al. 2024, section 3).
    Nothing where the oracles are always wrong: NaN.
    """
    ratios = [
        getattr(audited, which).accuracy_M.mean() / getattr(oracles, which).accuracy_M.mean()
        for which in ("retain", "test")
    ]
    return float(np.prod(ratios))


def judge_population(
    findings: Mapping[str, Finding], found_utility: float, metrics: Mapping[str, Metric]
) -> Judgement:
    """Pass where the utility holds up and no audit is outside; fail where either does not; else cannot tell.

    Audits without power count for nothing, and where all that ask for membership have none there is nothing
    to pass: to be as accurate as retrained models is not to have forgotten.

    Args:
        metrics: the findings', by name.
    """

    def names(verdict: str) -> list[str]:
        return [metrics[name].label for name, finding in findings.items() if finding.verdict == verdict]

    reasons = []
    if not found_utility >= LEAST_UTILITY:
        reasons.append(
            f"utility {found_utility:.2f} is below {LEAST_UTILITY}: the model no longer does its work"
        )
    if outside := names("outside"):
        reasons.append(f"unlike retraining by {', '.join(outside)}")
    if reasons:
        return Judgement("fail", tuple(reasons))
    if unclear := names("cannot tell"):
        return Judgement("cannot tell", (f"too few models to tell by {', '.join(unclear)}",))
    passed = [metrics[name] for name, finding in findings.items() if finding.verdict == "inside"]
    if not any(metric.membership for metric in passed):
        return Judgement(
            "cannot tell", ("no audit of membership tells even the originals from retrained models",)
        )
    powerful = " that have power here" if names("no power") else ""
    return Judgement("pass", (f"like retraining by all {len(passed)} audits{powerful}",))
