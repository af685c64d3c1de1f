"""Tug-of-war: one number for forgetting, retaining and generalising like the oracle."""

from collections.abc import Mapping

import numpy as np

from rumfast.errors import DataError


def tug_of_war(unlearned: Mapping[str, float], oracle: Mapping[str, float]) -> float:
    """ToW = Π_X (1 − |a(θu, X) − a(θr, X)|) over the keys X (Zhao et al. 2024, section 4).

    Args:
        unlearned, oracle: the same quantities in [0, 1] of both models: accuracy on forget, retain and test
            set; for ToW-MIA the forget set's accuracy gives way to the share of it that an attack calls
            non-member.

    Returns:
        A value in [0, 1]; 1 where all these quantities equal the oracle's.

    >>> tug_of_war({"forget": 0.9, "test": 0.5}, {"forget": 0.8, "test": 0.5})
    0.9
    """
    if unlearned.keys() != oracle.keys() or not unlearned:
        raise DataError(
            f"tug_of_war: got {sorted(unlearned)} against {sorted(oracle)}, expected the same quantities"
        )
    return round(float(np.prod([1 - abs(unlearned[key] - oracle[key]) for key in unlearned])), 12)
