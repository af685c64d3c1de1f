"""Unlearning algorithms by name."""

from rumfast.algorithms.bad_teacher import BAD_TEACHER
from rumfast.algorithms.base import Algorithm, SgdConfig
from rumfast.algorithms.finetune import FINETUNE, NONE, RETRAIN
from rumfast.algorithms.grid import GRID
from rumfast.algorithms.influence import INFLUENCE
from rumfast.algorithms.l1_sparse import L1_SPARSE
from rumfast.algorithms.last_layers import CFK, EUK
from rumfast.algorithms.neggrad import NEGGRAD, NEGGRAD_PLUS
from rumfast.algorithms.relabel import RANDOM_LABEL, SALUN
from rumfast.algorithms.scrub import SCRUB
from rumfast.algorithms.ssd import SSD

ALGORITHMS: dict[str, Algorithm] = {
    "none": NONE,
    "retrain": RETRAIN,
    "finetune": FINETUNE,
    "l1_sparse": L1_SPARSE,
    "neggrad": NEGGRAD,
    "neggrad_plus": NEGGRAD_PLUS,
    "random_label": RANDOM_LABEL,
    "salun": SALUN,
    "scrub": SCRUB,
    "influence": INFLUENCE,
    "bad_teacher": BAD_TEACHER,
    "ssd": SSD,
    "cfk": CFK,
    "euk": EUK,
}

__all__ = ["ALGORITHMS", "GRID", "Algorithm", "SgdConfig"]
