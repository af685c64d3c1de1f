"""The rungs of GPU measurements, from the lowest up: ``python -m rumfast.bench.rungs NAME …`` climbs one.

``bench/gpu.sh`` calls it. Importing this module imports no torch.
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rumfast.bench.ledger import DeviceLost, Rung, outcome

if TYPE_CHECKING:
    from rumfast.bench.cases import Measure
    from rumfast.bench.setting import Setting

LOST = 75  # exit status: the GPU answers no more, another process should go on
BENCH, TESTS, ACCURACY, PLANS = "bench.json", "tests.json", "accuracy.json", "plans.json"
MEMORIZATION, VOTES, SCORES = "memorization.json", "votes.npz", "scores.npz"
FILES = ("rungs.json", BENCH, TESTS, MEMORIZATION, VOTES, SCORES, PLANS, ACCURACY)
FOLLOW_S = 0.2  # between two looks at whether the climb is alive
DRY_STEPS = 2
SPARE_S = 10.0  # of the memorization rung, in which votes become scores
ACCURACY_EPOCHS = 15  # half of the recipe's, since the plain loop has to end in time too

Value = TypeVar("Value")


def smoke(rung: Rung) -> None:
    """Everything once, against float64."""
    from rumfast.bench.smoke import cases

    rung.run(cases(rung.dry))


def tests(rung: Rung) -> None:
    """The tests that need a GPU."""
    from rumfast.bench.gpu_tests import run_tests

    rung.run({"pytest": partial(run_tests, rung.folder / TESTS, rung.left, rung.dry)})


def suite(rung: Rung) -> None:
    """A suite of ``rumfast bench``; all suites lie in one record."""
    from rumfast.bench.record import measurements
    from rumfast.bench.setting import Setting

    setting = Setting.measure(rung.dry)
    own = {"train": epochs, "sweep": sweeps, "unlearn": algorithms}
    cases = own[rung.name](rung, setting) if rung.name in own else measurements(rung.name, setting)
    rung.run(few(cases, 1) if rung.dry else cases, partial(write_bench, rung, setting))


def epochs(rung: Rung, setting: "Setting") -> "dict[str, Measure]":
    """Epochs of training; of two steps in a dry run."""
    from rumfast.bench.train import cases

    return cases(setting, DRY_STEPS if rung.dry else None)


def sweeps(rung: Rung, setting: "Setting") -> "dict[str, Measure]":
    """Sweeps by several workers, and against a process per member, which takes ten seconds on a GPU."""
    from rumfast.bench.sweep import against_processes, by_workers

    rounds, source = (1, None) if rung.dry else (2, os.environ.get("CIFAR10"))
    return {
        "sweep by workers": partial(by_workers, setting, rounds, source),
        "sweep": partial(against_processes, setting, 4, rounds),
    }


def algorithms(rung: Rung, setting: "Setting") -> "dict[str, Measure]":
    """All algorithms; one of them, once, in a dry run."""
    from rumfast.bench.unlearn import cases, measure

    return {"unlearn finetune": partial(measure, ["finetune"], setting, 1)} if rung.dry else cases(setting)


def write_bench(rung: Rung, setting: "Setting") -> None:
    """Write the record of all suites measured so far, with what this process knows of the machine."""
    from rumfast.bench import SUITES
    from rumfast.bench.record import blank
    from rumfast.store import write_json

    results = {name: rung.ledger.results(name) for name in SUITES}
    record = blank([name for name in SUITES if results[name]], setting, os.getloadavg()[0])
    for name in SUITES:
        record["cases"] += [{"suite": name} | case for found in results[name] for case in found]
    write_json(rung.folder / BENCH, record)


def memorization(rung: Rung) -> None:
    """Members of a memorization sweep, as many as the time allows, on top of those of earlier climbs."""
    from rumfast.bench import memorization as sweep
    from rumfast.store import write_json

    recipe, source = chosen_recipe(rung.dry)

    def members() -> dict[str, Any]:
        record = sweep.measure(
            recipe,
            source,
            rung.work,
            recipe.sweep.members,
            lambda: rung.left() - SPARE_S,
            votes=rung.folder / VOTES,
            # Plans that are under way keep the scores that they were begun with.
            scores=None if rung.ledger.state("plans") == "partial" else rung.folder / SCORES,
            save=partial(write_json, rung.folder / MEMORIZATION),
            workers=1 if rung.dry else int(os.environ.get("WORKERS", 0)) or None,
        )
        return sweep.unless_unfinished(record, recipe.sweep.members)

    rung.run({"members": members})


def plans(rung: Rung) -> None:
    """The recipe's plans, on the scores of the sweep."""
    from rumfast.bench.plans import climb_plans

    recipe, source = chosen_recipe(rung.dry)
    climb_plans(rung, recipe, source, rung.folder / SCORES, rung.folder / PLANS)


def accuracy(rung: Rung) -> None:
    """Test accuracy and seconds of ours and of a plain loop, model by model."""
    from rumfast.bench import accuracy as both
    from rumfast.store import write_json

    recipe, source = chosen_recipe(rung.dry)
    epochs = 1 if rung.dry else ACCURACY_EPOCHS if "CIFAR10" in os.environ else None
    cases = both.cases([f"{recipe.name}.toml"], packed=source, epochs=epochs, quick=rung.dry)

    def write() -> None:
        write_json(rung.folder / ACCURACY, both.record(rung.ledger.results(rung.name)))

    rung.run(few(cases, 1) if rung.dry else cases, write)


def chosen_recipe(dry: bool) -> tuple[Any, str]:
    """The recipe and its data: CIFAR-10 from where ``CIFAR10`` says, or digits; small in a dry run."""
    from rumfast.config import load_recipe

    source = os.environ.get("CIFAR10")
    recipe = load_recipe("cifar10-resnet18.toml" if source else "digits.toml")
    if not dry:
        return recipe, source or "digits"
    small = {
        "data": recipe.data.model_copy(update={"train_examples": 200, "test_examples": 100}),
        "train": recipe.train.model_copy(update={"arch": "resnet8", "width": 4, "epochs": 2}),
        "sweep": recipe.sweep.model_copy(update={"members": 6}),
        "plans": recipe.plans[:2],
    }
    return recipe.model_copy(update=small), source or "digits"


def few(cases: Mapping[str, Value], count: int) -> dict[str, Value]:
    """The first of them."""
    return dict(list(cases.items())[:count])


# Seconds below which a rung is not begun: to load torch and data, to compile, and to measure a case or two.
RUNGS: dict[str, tuple[float, Callable[[Rung], None]]] = {
    "smoke": (60, smoke),
    "tests": (60, tests),
    "kernels": (45, suite),
    "train": (120, suite),
    "sweep": (90, suite),
    "memorization": (90, memorization),
    "plans": (120, plans),
    "loader": (45, suite),
    "unlearn": (60, suite),
    "accuracy": (90, accuracy),
}


def main() -> int:
    """Climb one rung; whatever it raises, the ledger tells of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rung", choices=list(RUNGS))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True, help="on the system's monotonic clock")
    parser.add_argument("--climb", required=True)
    parser.add_argument("--dry-run", action="store_true")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    from rumfast.bench.record import described, now

    stamp = {"date": now(), "commit": described()["commit"]}
    with tempfile.TemporaryDirectory() if asked.dry_run else nullcontext(asked.work) as work:
        rung = Rung(
            asked.rung,
            asked.folder,
            Path(work),
            asked.until,
            dry=asked.dry_run,
            climb=asked.climb,
            stamp=stamp,
        )
        return climb_one(rung)


def _follow(parent: int) -> None:
    """End with all processes of this rung soon after the climb does: another may write the same files."""
    while os.getppid() == parent:
        time.sleep(FOLLOW_S)
    os.killpg(0, signal.SIGKILL)


def climb_one(rung: Rung) -> int:
    """Run a rung's cases; what fails before the first of them is a case called ``setup``."""
    rung.record["cases"].pop("setup", None)
    try:
        found = outcome(partial(RUNGS[rung.name][1], rung))
    except DeviceLost:
        return LOST
    if found["status"] != "ok":
        rung.save("setup", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
