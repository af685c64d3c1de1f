"""The parts of an audit's record: what metrics, classes, examples and curves say of populations."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rumfast.evaluation import METRICS, Metric
from rumfast.evaluation.audit import LEVEL, Auditor
from rumfast.evaluation.guards import LEAST_UTILITY, judge_population, utility
from rumfast.evaluation.outputs import Outputs
from rumfast.evaluation.pairing import Pairing
from rumfast.evaluation.ranking import badness, rank_agreement
from rumfast.evaluation.roc import curve
from rumfast.evaluation.verdicts import Finding, without_power
from rumfast.pipeline.context import Context
from rumfast.refinement import refine

EXAMPLES = 6  # forgotten examples whose margins are shown, from the least to the most memorized


class Audited(NamedTuple):
    """One population that is held against the oracles."""

    name: str
    kind: str  # oracle, original, plan or control
    outputs: Outputs
    facts: Mapping[str, Any]  # steps, cost, time


def model_record(
    one: Audited, findings: Mapping[str, Finding], none: Mapping[str, Finding], auditor: Auditor
) -> dict[str, Any]:
    """The findings of one population and its verdict.

    Args:
        none: the originals' findings, which say where audits have power. Oracles need no such check.
    """
    found = findings if one.kind == "oracle" else without_power(findings, none, auditor.needed(none))
    useful = utility(one.outputs, auditor.oracles)
    verdict, reasons = judge_population(found, useful, METRICS)
    return {
        "name": one.name,
        "kind": one.kind,
        **{key: one.facts.get(key) for key in ("steps", "cost", "time")},
        "findings": {name: finding_record(finding) for name, finding in found.items()},
        "utility": {"value": useful, "least": LEAST_UTILITY, "passed": bool(useful >= LEAST_UTILITY)},
        "verdict": verdict,
        "reasons": list(reasons),
    }


def finding_record(finding: Finding) -> dict[str, Any]:
    """A finding as JSON."""
    return finding._asdict() | {"null": finding.null.record()}


def false_alarms(pool: Outputs, *, draws: int, splits: int, seed: int) -> dict[str, Any]:
    """How often half of the oracles are found outside the other half's bands, over random halves.

    Args:
        pool: all oracles, the held-out ones too.
    """
    draw, n = np.random.default_rng([seed, 2]), pool.models // 2
    counts: dict[str, int] = {}
    alarmed = 0
    for number in range(draws):
        order = draw.permutation(pool.models)
        auditor = Auditor(pool.take(order[:n]), n, splits=splits, seed=number)
        findings = auditor.audit(pool.take(order[n : 2 * n]))
        outside = {name: finding.verdict == "outside" for name, finding in findings.items()}
        counts = {name: counts.get(name, 0) + alarm for name, alarm in outside.items()}
        alarmed += any(outside.values())
    return {
        "draws": draws,
        "counts": counts,
        "alarmed": alarmed,
        "rate": alarmed / draws,
        "by_chance": LEVEL,
    }


def breakdown(
    run: Context, audited: Sequence[Audited], oracles: Outputs, *, splits: int, seed: int
) -> dict[str, Any]:
    """Forget accuracy by class and by memorization level, each with its band."""
    forget = run.split.forget
    label_F = run.data.train.label_N[forget]
    score_N = None if run.memorization is None else run.memorization.score_N
    masks = {
        "class": {str(run.data.classes[c]): label_F == c for c in np.unique(label_F)},
        "level": memorization_levels(forget, score_N, run.recipe.forget.groups),
    }
    result: dict[str, dict[str, Any]] = {each.name: {kind: {} for kind in masks} for each in audited}
    for kind, by_name in masks.items():
        if not by_name:
            continue
        metrics = {name: _part_accuracy(mask_F) for name, mask_F in by_name.items()}
        auditor = Auditor(oracles, oracles.models, metrics=metrics, splits=splits, seed=seed)
        for each in audited:
            found = auditor.audit(each.outputs)
            result[each.name][kind] = {name: finding_record(finding) for name, finding in found.items()}
    return result


def memorization_levels(forget: np.ndarray, score_N: np.ndarray | None, groups: int) -> dict[str, np.ndarray]:
    """Which of the forget set belong to each level of memorization, [F] bool by name.

    Plans may refine it in another way. Nothing where a forgotten example has no score, or there are fewer
    examples than levels.

    >>> memorization_levels(np.array([3, 1]), np.array([0.0, 0.2, 0.1, 0.9]), 2)
    {'low': array([False,  True]), 'high': array([ True, False])}
    """
    if score_N is None or len(forget) < groups or np.isnan(score_N[forget]).any():
        return {}
    return {group.name: np.isin(forget, group.ids) for group in refine(forget, score_N, groups)}


def _part_accuracy(mask_F: np.ndarray) -> Metric:
    """Accuracy on a part of the forget set."""
    definition = "share of this part of the forget set classified as labelled"
    accuracy = partial(_accuracy_of, mask_F=mask_F)
    return METRICS["accuracy_forget"]._replace(definition=definition, function=accuracy)


def _accuracy_of(outputs: Outputs, mask_F: np.ndarray) -> np.ndarray:
    return outputs.forget.correct_MN[:, mask_F].mean(1)


def examples(run: Context, audited: Sequence[Audited], oracles: Outputs) -> list[dict[str, Any]]:
    """Margins of some forgotten examples in every population."""
    forget = run.split.forget
    score_N = None if run.memorization is None else run.memorization.score_N
    order = np.arange(len(forget)) if score_N is None else np.argsort(score_N[forget], kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).astype(int))
    margins = {"oracle": oracles.forget.margin_MN} | {
        "original" if each.kind == "original" else each.name: each.outputs.forget.margin_MN
        for each in audited
        if each.kind in ("original", "plan")
    }
    return [
        {
            "id": int(forget[row]),
            "memorization": None if score_N is None else float(score_N[forget[row]]),
            "label": run.data.classes[run.data.train.label_N[forget[row]]],
            "margins": {name: margin_MF[:, row].tolist() for name, margin_MF in margins.items()},
        }
        for row in order[places]
    ]


def ranking(auditor: Auditor, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Kendall's τ between the orders in which metrics put populations, with intervals over thirds of models.

    Args:
        values: what the auditor measured of each population, [S, Q].
    """
    metrics = list(auditor.metrics.values())
    goal_Q = np.array([band.mean for band in auditor.bands.values()])
    tau_SQQ = rank_agreement(badness(np.stack(list(values.values())), goal_Q, metrics))

    def entry(i: int, j: int) -> dict[str, float | None]:
        tau_S = tau_SQQ[:, i, j][np.isfinite(tau_SQQ[:, i, j])]
        if not len(tau_S):  # one of them puts all populations level
            return {"mean": None, "low": None, "high": None}
        low, high = np.quantile(tau_S, [LEVEL / 2, 1 - LEVEL / 2])
        return {"mean": float(tau_S.mean()), "low": float(low), "high": float(high)}

    count = range(len(metrics))
    return {
        "metrics": list(auditor.metrics),
        "models": list(values),
        "tau": [[entry(i, j) for j in count] for i in count],
    }


def curves(audited: Outputs, oracles: Outputs, offline_a: float) -> dict[str, Any]:
    """ROC curves of both attacks, of all models against all oracles; RMIA's with the audit's a."""
    pairing = Pairing(audited, oracles, offline_a)
    found = {"u_lira": curve(pairing.u_lira), "rmia": curve(pairing.rmia)}
    return {name: {"fpr": roc.fpr_T.tolist(), "tpr": roc.tpr_T.tolist()} for name, roc in found.items()}
