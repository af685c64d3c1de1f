"""Difficulty of examples and forget sets: memorization, its proxies, entanglement and distances."""

from rumfast.scores.catalogue import SCORES, Score, rising
from rumfast.scores.curvature import loss_curvature, symmetric_divergence
from rumfast.scores.distances import mmd2, neighbour_overlap
from rumfast.scores.entanglement import entanglement_score
from rumfast.scores.influence import Influence, influence_scores, top_influences
from rumfast.scores.memorization import (
    MarginStatistics,
    MemberTotals,
    Memorization,
    memorization_scores,
    worst_standard_error,
)
from rumfast.scores.proxies import ProxyScores, ProxyTotals, TrainingEvents

__all__ = [
    "SCORES",
    "Influence",
    "MarginStatistics",
    "MemberTotals",
    "Memorization",
    "ProxyScores",
    "ProxyTotals",
    "Score",
    "TrainingEvents",
    "entanglement_score",
    "influence_scores",
    "loss_curvature",
    "memorization_scores",
    "mmd2",
    "neighbour_overlap",
    "rising",
    "symmetric_divergence",
    "top_influences",
    "worst_standard_error",
]
