"""Unlearning algorithms by name."""

from rumfast.algorithms.base import Algorithm, SgdConfig
from rumfast.algorithms.finetune import FINETUNE, NONE, RETRAIN
from rumfast.algorithms.neggrad import NEGGRAD_PLUS
from rumfast.algorithms.relabel import RANDOM_LABEL, SALUN

ALGORITHMS: dict[str, Algorithm] = {
    "none": NONE,
    "retrain": RETRAIN,
    "finetune": FINETUNE,
    "neggrad_plus": NEGGRAD_PLUS,
    "random_label": RANDOM_LABEL,
    "salun": SALUN,
}

__all__ = ["ALGORITHMS", "Algorithm", "SgdConfig"]
