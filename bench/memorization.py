"""As many members of a memorization sweep as the time allows: ``python -m rumfast.bench.memorization``.

It needs neither FFCV nor what reports are made with: ``RECIPE --data npz:FILE --out FOLDER`` is enough.
"""

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from rumfast.config import Recipe, load_recipe
from rumfast.data import load_dataset
from rumfast.progress import track
from rumfast.runtime import environment
from rumfast.scores import worst_standard_error
from rumfast.store import write_json
from rumfast.sweeps import LocalEngine, Population, load_sweep
from rumfast.sweeps.run import sweep_spec

SCHEMA = "rumfast/memorization/1"


def measure(
    recipe: Recipe, source: str, folder: Path, members: int, seconds: float, device: str = "auto"
) -> dict[str, Any]:
    """Train members of the recipe's sweep for ``seconds``, at most ``members``, and reduce all there are.

    The members that start the workers, which load the data and compile, are left out of the rate. What
    ``folder`` holds already counts as done and not as trained.
    """
    asked = recipe.data
    data = load_dataset(source).take(asked.train_examples, asked.test_examples, asked.seed)
    spec = sweep_spec(
        data, recipe.train, include=recipe.sweep.include, design=recipe.sweep.design, device=device
    )
    population = Population.create(folder, spec)
    with LocalEngine(device=device) as engine:
        rate = _train(engine, population, members, seconds)
    sweep = load_sweep(population, range(members))
    reliability = sweep.reliability()
    accuracy = [float(record.correct_test_N.mean()) for record in sweep.records()]
    count = len(sweep.members)
    return {
        "schema": SCHEMA,
        "recipe": recipe.name,
        "arch": spec.train.arch,
        "epochs": spec.train.epochs,
        "batch_size": spec.train.batch_size,
        "precision": spec.precision,
        "dataset": {"name": data.name, "train": len(data), "test": len(data.test)},
        "examples_per_member": len(spec.subset(0, len(data))),
        "members": count,
        **rate,
        "test_accuracy": {"mean": float(np.mean(accuracy)), "sd": float(np.std(accuracy))},
        "split_half": None if reliability is None else reliability._asdict(),
        "worst_standard_error": worst_standard_error(count, recipe.sweep.include),
        "environment": dict(environment()),
    }


def _train(engine: LocalEngine, population: Population, members: int, seconds: float) -> dict[str, Any]:
    """Train in rounds of two members per worker until the time is over."""
    started = perf_counter()
    missing = sorted(set(range(members)) - set(population.done(range(members))))
    first, size = missing[: engine.workers], 2 * engine.workers
    with track("sweep members", members, members - len(missing)) as advance:
        engine.run(population, first, lambda answer: advance())
        start_up, trained = perf_counter() - started, 0
        while perf_counter() - started < seconds and (chosen := missing[len(first) + trained :][:size]):
            engine.run(population, chosen, lambda answer: advance())
            trained += len(chosen)
    wall = perf_counter() - started
    return {
        "workers": engine.workers,
        "start_up_s": start_up,
        "wall_s": wall,
        "members_per_hour": 3600 * trained / (wall - start_up) if trained else None,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True, help="a packed folder or a source, for instance npz:FILE")
    parser.add_argument("--out", type=Path, required=True, help="the sweep's folder; it is resumed")
    parser.add_argument("--members", type=int, help="at most; else as the recipe says")
    parser.add_argument("--seconds", type=float, default=480, help="after which no further round begins")
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    members = arguments.members or recipe.sweep.members
    record = measure(recipe, arguments.data, arguments.out, members, arguments.seconds)
    halves = record["split_half"]
    agreement = "no halves" if halves is None else f"split-half Spearman {halves['spearman']:.3f}"
    rate = record["members_per_hour"]
    print(
        f"{record['members']} members, {'' if rate is None else f'{rate:.0f} per hour, '}"
        f"test accuracy {record['test_accuracy']['mean']:.3f}, {agreement}"
    )
    if arguments.save:
        write_json(arguments.save, record)


if __name__ == "__main__":
    main()
