"""One sweep on several engines, and do their records agree? ``python -m rumfast.bench.engines local ray``.

On one machine this says what an engine costs, not what a cluster gains.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from rumfast.config import TrainConfig, load_recipe
from rumfast.data import load_dataset
from rumfast.runtime import environment
from rumfast.store import content_digest, write_json
from rumfast.sweeps import Population, open_engine
from rumfast.sweeps.journal import read_history
from rumfast.sweeps.run import sweep_spec, train_members

SCHEMA = "rumfast/engines/1"


def measure(engines: Sequence[str], folder: Path, members: int, config: TrainConfig) -> dict[str, Any]:
    """Train the same digits members on each engine in turn, on CPUs; start-up of the engine counts."""
    spec = sweep_spec(load_dataset("digits"), config, device="cpu")
    rows, digests = [], []
    for number, text in enumerate(engines):
        population = Population.create(folder / str(number), spec)
        started = perf_counter()
        with open_engine(text, device="cpu") as engine:
            train_members(engine, population, range(members), text)
            workers = engine.workers
        wall_s = perf_counter() - started
        history = read_history(population.root)
        digests.append([content_digest(population.member(index)) for index in range(members)])
        rows.append(
            {
                "engine": text,
                "workers": workers,
                "wall_s": wall_s,
                "member_s": float(np.median(list(history.seconds.values()))),
                "repeated": history.repeated,
                "same_records": digests[-1] == digests[0],
            }
        )
    return {
        "schema": SCHEMA,
        "members": members,
        "epochs": config.epochs,
        "rows": rows,
        "environment": dict(environment()),
    }


def main() -> None:
    """Measure, print, and on request save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", nargs="+", metavar="ENGINE", help="local, 'slurm(slots=2)', …")
    parser.add_argument("--members", type=int, default=24)
    parser.add_argument("--folder", type=Path, help="that all nodes of a cluster share")
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        record = measure(arguments.engines, Path(folder), arguments.members, load_recipe("digits.toml").train)
    for row in record["rows"]:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    if arguments.save:
        write_json(arguments.save, record)


if __name__ == "__main__":
    main()
