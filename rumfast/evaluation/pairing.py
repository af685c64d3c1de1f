"""Two populations held against each other; what several metrics share is computed once."""

from functools import cache, cached_property

import numpy as np

from rumfast.evaluation.forgetting import epsilon, final_score, forgetting_quality
from rumfast.evaluation.klom import klom
from rumfast.evaluation.lira import u_lira
from rumfast.evaluation.outputs import Outputs
from rumfast.evaluation.rmia import rmia
from rumfast.evaluation.roc import Attack


class Pairing:
    """Models, unlearned or not, and oracles."""

    def __init__(self, audited: Outputs, oracles: Outputs) -> None:
        self.audited = audited
        self.oracles = oracles
        self.klom = cache(self._klom)

    def _klom(self, which: str) -> np.ndarray:
        """KLoM of each example of the forget, retain or test set, [N] in nats."""
        return klom(getattr(self.audited, which).margin_MN, getattr(self.oracles, which).margin_MN)

    @cached_property
    def u_lira(self) -> Attack:
        """The attack that knows each example's margins in both populations."""
        return u_lira(self.audited.forget.margin_MN, self.oracles.forget.margin_MN)

    @cached_property
    def rmia(self) -> Attack:
        """The attack that asks how much likelier an example is than test examples are."""
        ours, theirs = self.audited, self.oracles
        return rmia(
            ours.forget.margin_MN, theirs.forget.margin_MN, ours.test.margin_MN, theirs.test.margin_MN
        )

    @cached_property
    def quality(self) -> float:
        """Forgetting quality, in [0, 1]."""
        return forgetting_quality(epsilon(self.audited.forget.margin_MN, self.oracles.forget.margin_MN))

    @cached_property
    def final_score(self) -> float:
        """Forgetting quality times the ratios of retain and test accuracy."""
        sets = ("retain", "test")
        ours, theirs = (
            [float(getattr(outputs, which).accuracy_M.mean()) for which in sets]
            for outputs in (self.audited, self.oracles)
        )
        return final_score(self.quality, ours[0], theirs[0], ours[1], theirs[1])
