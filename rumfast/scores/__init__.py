"""Difficulty scores of examples and forget sets: memorization and entanglement."""

from rumfast.scores.entanglement import entanglement_score
from rumfast.scores.memorization import Memorization, memorization_scores

__all__ = ["Memorization", "entanglement_score", "memorization_scores"]
