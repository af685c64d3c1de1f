"""rumfast: refined unlearning of image classifiers, fast.

The flow: ``load_dataset`` → ``run_sweep`` → ``memorization_scores`` → ``Split`` → ``refine`` → ``train`` →
``rum`` → ``evaluate``.

Array names end in their axes: M members, N train examples, F forget, R retain, B batch, C classes,
D embedding width, G groups: ``correct_MN``, ``embedding_FD``. An *example id* is a row of the training set.

Names load on first use: ``import rumfast`` costs nothing.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Dataset": "rumfast.data",
    "Split": "rumfast.data",
    "TrainConfig": "rumfast.config",
    "RumfastError": "rumfast.errors",
    "build_model": "rumfast.models",
    "entanglement_score": "rumfast.scores",
    "evaluate": "rumfast.pipeline",
    "load_dataset": "rumfast.data",
    "load_recipe": "rumfast.config",
    "memorization_scores": "rumfast.scores",
    "predict": "rumfast.inference",
    "refine": "rumfast.refinement",
    "rum": "rumfast.plans",
    "run": "rumfast.pipeline",
    "run_sweep": "rumfast.sweeps",
    "train": "rumfast.training",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rumfast' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
