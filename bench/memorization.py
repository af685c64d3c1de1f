"""As many members of a memorization sweep as the time allows: ``python -m rumfast.bench.memorization``.

It needs neither FFCV nor what reports are made with: ``RECIPE --data npz:FILE --out FOLDER`` is enough.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from rumfast.bench.ledger import Unfinished
from rumfast.bench.record import described
from rumfast.bench.setting import limited
from rumfast.bench.votes import Votes
from rumfast.config import Recipe, load_recipe
from rumfast.data import Dataset, load_dataset
from rumfast.progress import track
from rumfast.score_files import write_scores
from rumfast.scores import worst_standard_error
from rumfast.store import write_json
from rumfast.sweeps import LocalEngine, Population
from rumfast.sweeps.run import sweep_spec

SCHEMA = "rumfast/memorization/1"
VOTES = "votes.npz"


def measure(
    recipe: Recipe,
    source: str,
    folder: Path,
    members: int,
    left: Callable[[], float],
    device: str = "auto",
    *,
    votes: Path | None = None,
    scores: Path | None = None,
    save: Callable[[dict[str, Any]], object] = lambda record: None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Train members of the recipe's sweep, at most ``members``, while there is time; reduce all there are.

    The members that start the workers, which load the data and compile, are left out of the rate. What
    ``folder`` or ``votes`` holds already counts as done and not as trained.

    Args:
        left: seconds that are left now.
        folder: of the sweep; it may be lost as long as ``votes`` is kept.
        votes: file that what is needed of each member is added to; None: in ``folder``.
        scores: file to write the memorization scores to after each round, for a recipe's ``sweep.scores``.
        save: called with the record after each round.
        workers: processes; None: as the engine chooses.
    """
    data = limited(load_dataset(source), recipe.data)
    spec = sweep_spec(
        data, recipe.train, include=recipe.sweep.include, design=recipe.sweep.design, device=device
    )
    kept = Votes(votes or folder / VOTES, Population.create(folder, spec), data)
    kept.collect(range(members))
    with LocalEngine(workers, device) as engine:
        for rate in _train(engine, kept, members, left):
            if scores is not None:
                export(kept, scores)
            record = _record(recipe, kept, rate)
            save(record)
    return record


def _record(recipe: Recipe, kept: Votes, rate: dict[str, Any]) -> dict[str, Any]:
    """The record after the members so far."""
    spec, data = kept.spec, kept.data
    reliability, accuracy = kept.reliability(), kept.test_accuracies()
    return {
        "schema": SCHEMA,
        "recipe": recipe.name,
        "arch": spec.train.arch,
        "epochs": spec.train.epochs,
        "batch_size": spec.train.batch_size,
        "precision": spec.precision,
        "dataset": {"name": data.name, "train": len(data), "test": len(data.test)},
        "examples_per_member": len(spec.subset(0, len(data))),
        "members": len(kept),
        **rate,
        "test_accuracy": {"mean": float(np.mean(accuracy)), "sd": float(np.std(accuracy))},
        "split_half": None if reliability is None else reliability._asdict(),
        "worst_standard_error": worst_standard_error(len(kept), recipe.sweep.include),
        "environment": described(),
    }


def _train(
    engine: LocalEngine, votes: Votes, members: int, left: Callable[[], float]
) -> Iterator[dict[str, Any]]:
    """Train in rounds of two members per worker while another round fits; yields the rate after each.

    The first round, of a member per worker, starts them. What the caller does with a rate counts as part of
    its round, but not of the rate.
    """
    missing = [index for index in range(members) if index not in votes]
    first, size = engine.workers, 2 * engine.workers
    rounds = [missing[:first], *(missing[at : at + size] for at in range(first, len(missing), size))]
    start_up, wall, round_s, trained = 0.0, 0.0, 0.0, 0
    with track("sweep members", members, members - len(missing)) as advance:

        def on_done(answer: dict[str, Any]) -> None:
            votes.collect(missing)
            advance()

        for number, chosen in enumerate(rounds):
            if number and left() <= round_s:
                break
            began = perf_counter()
            engine.run(votes.population, chosen, on_done)
            wall += perf_counter() - began
            if number:
                trained += len(chosen)
            else:
                start_up = wall
            yield {
                "workers": engine.workers,
                "start_up_s": start_up,
                "wall_s": wall,
                "members_per_hour": 3600 * trained / (wall - start_up) if trained else None,
            }
            round_s = perf_counter() - began


def export(votes: Votes, path: Path) -> None:
    """Write the scores as a recipe's ``sweep.scores`` reads them."""
    data: Dataset = votes.data
    scores, ids = votes.memorization(), np.arange(len(data))
    columns = {
        "id": ids,
        "label": data.train.label_N,
        "flipped": np.isin(ids, data.flipped),
        "memorization": scores.score_N,
        "standard_error": scores.standard_error_N,
        "included": scores.included_N,
        "excluded": scores.excluded_N,
    }
    write_scores(path, columns)


def unless_unfinished(record: dict[str, Any], members: int) -> dict[str, Any]:
    """The entries of a record that a summary shows.

    Raises:
        Unfinished: with the same, if members are missing.
    """
    summary = {key: record[key] for key in ("members", "members_per_hour", "workers", "test_accuracy")}
    if record["members"] < members:
        raise Unfinished(summary)
    return summary


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
    until = perf_counter() + arguments.seconds
    record = measure(recipe, arguments.data, arguments.out, members, lambda: until - perf_counter())
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
