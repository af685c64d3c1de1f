"""Time and memory of auditing whole populations: ``python -m rumfast.bench.audits``.

The logits are synthetic, in the numbers that populations of real models have; nothing is trained.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from rumfast.bench.timing import peak_megabytes
from rumfast.evaluation import METRICS
from rumfast.evaluation.audit import Auditor
from rumfast.evaluation.outputs import Outputs, collect
from rumfast.progress import track
from rumfast.runtime import environment
from rumfast.store import write_json

SCHEMA = "rumfast/audits/1"
MODELS, CLASSES = 64, 10
FORGET, RETAIN, TEST = 1000, 7000, 2000
MIA_EXAMPLES, SPLITS = 500, 200  # as `rumfast audit` has them
LEVELS = {"oracle": 0.0, "held-out": 0.0, "none": 2.0}  # what the logit of a forgotten example's label gains


def measure(
    models: int = MODELS,
    *,
    forget: int = FORGET,
    retain: int = RETAIN,
    test: int = TEST,
    splits: int = SPLITS,
) -> dict[str, Any]:
    """Seconds from logits to verdicts on two populations, and the memory that this adds at its peak."""
    sizes = {"forget": forget, "retain": retain, "test": test}
    found: dict[str, Any] = {}

    def audit() -> None:
        started = perf_counter()
        populations = {name: _outputs(name, models, **sizes) for name in LEVELS}
        found["collect_s"] = perf_counter() - started
        started = perf_counter()
        auditor = Auditor(populations["oracle"], models, splits=splits)
        for name in ("held-out", "none"):
            outside = [
                key for key, value in auditor.audit(populations[name]).items() if value.verdict == "outside"
            ]
            found[f"{name}_outside"] = len(outside)
        found["audit_s"] = perf_counter() - started
        found["metrics"] = len(auditor.metrics)

    peak = peak_megabytes({"audit": audit}, torch.device("cpu"))
    if not peak:  # this system does not count memory, and nothing was called
        audit()
    return {
        "schema": SCHEMA,
        "models": models,
        **sizes,
        "splits": splits,
        "mia_examples": MIA_EXAMPLES,
        "of": len(METRICS),
        **found,
        "peak_mb": peak.get("audit"),
        "environment": dict(environment()),
    }


def _outputs(name: str, models: int, forget: int, retain: int, test: int) -> Outputs:
    train_label_N = np.arange(forget + retain) % CLASSES
    test_label_N = np.arange(test) % CLASSES
    ids = np.arange(forget + retain)
    draws = _logits(name, models, train_label_N, test_label_N, forget)
    return collect(draws, train_label_N, test_label_N, ids[:forget], ids[forget:], mia_examples=MIA_EXAMPLES)


def _logits(
    name: str, models: int, train_label_N: np.ndarray, test_label_N: np.ndarray, forget: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(list(LEVELS).index(name))
    with track(f"models, {name}", models) as advance:
        for _ in range(models):
            train_NC = draw.standard_normal((len(train_label_N), CLASSES), np.float32) * 2
            train_NC[np.arange(len(train_NC)), train_label_N] += 5
            train_NC[np.arange(forget), train_label_N[:forget]] += LEVELS[name] - 3
            test_NC = draw.standard_normal((len(test_label_N), CLASSES), np.float32) * 2
            test_NC[np.arange(len(test_NC)), test_label_N] += 2
            yield train_NC, test_NC
            advance()


def main() -> None:
    """Measure, print, and on request save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=MODELS)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    record = measure(arguments.models)
    print(", ".join(f"{key} {value}" for key, value in record.items() if key != "environment"))
    if arguments.save:
        write_json(arguments.save, record)


if __name__ == "__main__":
    main()
