"""What no audit of membership sees: a useless model forgets perfectly."""

from collections.abc import Mapping

import numpy as np

from rumfast.evaluation.metrics import Metric
from rumfast.evaluation.outputs import Outputs
from rumfast.evaluation.verdicts import Finding, Judgement, conclude

LEAST_UTILITY = 0.9


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


def useless_text(found_utility: float) -> str:
    """The reason why a model of this utility fails."""
    return f"utility {found_utility:.2f} is below {LEAST_UTILITY}: the model no longer does its work"


def judge_population(
    findings: Mapping[str, Finding], found_utility: float, metrics: Mapping[str, Metric]
) -> Judgement:
    """Pass where the utility holds up and no audit is outside; fail where either does not; else cannot tell.

    Audits without power count for nothing, see ``conclude``.

    Args:
        metrics: the findings', by name.
    """

    found = conclude(findings, metrics)
    useless = (
        ()
        if found_utility >= LEAST_UTILITY
        else (useless_text(found_utility),)
    )
    if useless or found.verdict == "differs":
        return Judgement("fail", (*useless, *(found.reasons if found.verdict == "differs" else ())))
    return found._replace(verdict="pass") if found.verdict == "matches" else found
