"""Refine a forget set into homogeneous groups, ordered from low to high score."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rumfast.data import check_ids
from rumfast.errors import DataError

NAMES = {1: ("all",), 2: ("low", "high"), 3: ("low", "mid", "high")}


class Group(NamedTuple):
    """A named part of the forget set; empty where the set has fewer examples than groups were asked for."""

    name: str
    ids: np.ndarray  # [F_k] int64, sorted


def refine(forget: np.ndarray, score_N: np.ndarray, groups: int = 3) -> tuple[Group, ...]:
    """Cut a forget set into ``groups`` groups of nearly equal size, from the lowest to the highest score.

    Ties are cut by example id. Sizes differ by at most one, the larger groups first. Three groups are called
    low, mid and high; more are called g1, g2, …

    With fewer examples than groups the last groups hold one each and the first are empty: plans often leave
    the lowest group as it is, and an example that was asked to be forgotten must not fall to such a step.

    Args:
        forget: [F] int64 unique example ids.
        score_N: [N] score per example id, for instance memorization; rising with difficulty.

    Raises:
        DataError: no examples, fewer than one group, an id that ``score_N`` has no row for or that is given
            twice, or a forgotten example's score is NaN.

    >>> [(g.name, g.ids.tolist()) for g in refine(np.array([0, 1, 2]), np.array([0.9, 0.1, 0.5]))]
    [('low', [1]), ('mid', [2]), ('high', [0])]
    """
    forget = _checked(forget, groups, len(score_N))
    score_F = score_N[forget]
    if np.isnan(score_F).any():
        raise DataError(
            f"refine: {int(np.isnan(score_F).sum())} of {len(forget)} forgotten examples have no score "
            f"(first: id {int(forget[np.isnan(score_F)][0])}); train more sweep members"
        )
    return _cut(forget[np.lexsort((forget, score_F))], groups)


def refine_at_random(forget: np.ndarray, groups: int, seed: int) -> tuple[Group, ...]:
    """Cut a forget set into random groups of :func:`refine`'s sizes: the paper's control, "shuffle"."""
    forget = _checked(forget, groups)
    shuffled = np.random.default_rng(seed).permutation(np.sort(forget))
    return _cut(shuffled, groups)


def refine_by_class(forget: np.ndarray, label_N: np.ndarray) -> tuple[Group, ...]:
    """One group per class that the forget set touches, named class-0, class-1, …"""
    forget = _checked(forget, 1, len(label_N))
    label_F = label_N[forget]
    return tuple(Group(f"class-{label}", np.sort(forget[label_F == label])) for label in np.unique(label_F))


def _checked(forget: np.ndarray, groups: int, examples: int | None = None) -> np.ndarray:
    if groups < 1 or not len(forget):
        raise DataError(
            f"refine: found {len(forget)} examples for {groups} groups, expected at least one of each"
        )
    return check_ids(forget, int(np.max(forget)) + 1 if examples is None else examples, "refine")


def _cut(ordered: np.ndarray, groups: int) -> tuple[Group, ...]:
    held = min(groups, len(ordered))
    parts = [ordered[:0]] * (groups - held) + np.array_split(ordered, held)
    return tuple(Group(name, np.sort(part)) for name, part in zip(_names(groups), parts, strict=True))


def filled(groups: Sequence[Group]) -> tuple[Group, ...]:
    """The groups that hold examples, in their order."""
    return tuple(group for group in groups if len(group.ids))


def shortage(examples: int, groups: int) -> str | None:
    """The notice that some groups are empty, for whoever reads the results; None where each holds examples.

    >>> shortage(1, groups=3)
    '1 example makes 1 group of the 3 asked for: low and mid are empty, and plans skip the steps for them'
    """
    empty = _names(groups)[: max(0, groups - examples)]
    if not empty:
        return None
    made = "1 example makes 1 group" if examples == 1 else f"{examples} examples make {examples} groups"
    named = " and ".join(filter(None, (", ".join(empty[:-1]), empty[-1])))
    are, steps = ("is", "step for it") if len(empty) == 1 else ("are", "steps for them")
    return f"{made} of the {groups} asked for: {named} {are} empty, and plans skip the {steps}"


def _names(groups: int) -> tuple[str, ...]:
    return NAMES.get(groups, tuple(f"g{index + 1}" for index in range(groups)))
