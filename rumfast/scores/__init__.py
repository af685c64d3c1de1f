"""Difficulty of examples and forget sets: memorization, its proxies, entanglement and distances."""

from rumfast.scores.distances import mmd2, neighbour_overlap
from rumfast.scores.entanglement import entanglement_score
from rumfast.scores.memorization import Memorization, memorization_scores
from rumfast.scores.proxies import ProxyScores, ProxyTotals

__all__ = [
    "Memorization",
    "ProxyScores",
    "ProxyTotals",
    "entanglement_score",
    "memorization_scores",
    "mmd2",
    "neighbour_overlap",
]
