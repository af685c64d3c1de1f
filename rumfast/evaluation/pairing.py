"""Two populations held against each other; what several metrics share is computed once."""

from functools import cache, cached_property

import numpy as np

from rumfast.evaluation.forgetting import epsilon, final_score, forgetting_quality
from rumfast.evaluation.klom import klom
from rumfast.evaluation.lira import u_lira
from rumfast.evaluation.outputs import Outputs, of_kept_classes
from rumfast.evaluation.rmia import choose_offline_a, rmia
from rumfast.evaluation.roc import Attack


def offline_a_of(oracles: Outputs) -> float:
    """RMIA's a, chosen on oracles alone; the same for all that is held against these or some of them."""
    return choose_offline_a(oracles.forget.margin_MN, oracles.retain.margin_MN, _population_margins(oracles))


def _population_margins(outputs: Outputs) -> np.ndarray:
    """Margins [M, Z] on the test examples that RMIA compares with."""
    kept_N = of_kept_classes(outputs.test.label_N, outputs.retain.label_N)
    return outputs.test.margin_MN[:, kept_N]


class Pairing:
    """Models, unlearned or not, and oracles.

    Args:
        offline_a: RMIA's a, see ``offline_a_of``.
    """

    def __init__(self, audited: Outputs, oracles: Outputs, offline_a: float) -> None:
        self.audited = audited
        self.oracles = oracles
        self.offline_a = offline_a
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
        """The attack that asks how much likelier an example is than test examples of kept classes are."""
        both = self.audited, self.oracles
        forget, population = (outputs.forget.margin_MN for outputs in both), map(_population_margins, both)
        return rmia(*forget, *population, offline_a=self.offline_a)

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
