"""Time and memory of reducing sweeps of thousands of members: ``python -m rumfast.bench.reduce``.

The records are synthetic, written by the store that real ones are written by: what a sweep of so many models
leaves behind, without the weeks it would take to train them here.
"""

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from rumfast.bench.timing import peak_megabytes
from rumfast.config import TrainConfig
from rumfast.progress import track
from rumfast.runtime import environment
from rumfast.scores import memorization_scores, top_influences
from rumfast.store import write_json
from rumfast.sweeps import DataRef, Population, PopulationSpec, load_sweep
from rumfast.sweeps.records import MemberRecord

SCHEMA = "rumfast/reduce/1"
EXAMPLES, TESTS = 50_000, 10_000  # as many as CIFAR-10 has
STACKED = 1000  # members that are also stacked as [M, N], which needs memory for all of them
INFLUENCED = 100  # test examples that influences are computed of
TOP = 10  # of each of them


def measure(
    members: Sequence[int], folder: Path, examples: int = EXAMPLES, tests: int = TESTS
) -> dict[str, Any]:
    """Seconds and peak memory of reducing the first ``members[0]``, ``members[1]``, … of one population."""
    population = synthetic(folder, max(members), examples, tests)
    rows = []
    for count in members:
        row = {"members": count} | _timed("streamed", partial(scores, population, count))
        if count <= STACKED:
            row |= _timed("stacked", partial(stacked_scores, population, count))
        rows.append(row)
    most = load_sweep(population, range(max(members)))
    compacted = _timed("compact", most.compact)
    few_MT = most.correct_test_MT[:, :INFLUENCED]
    influence = _timed("influence", lambda: top_influences(most.include_MN, few_MT, TOP))
    return {
        "schema": SCHEMA,
        "examples": examples,
        "test_examples": tests,
        "record_bytes": population.member(0).stat().st_size,
        "rows": rows,
        "members": max(members),
        "influenced": few_MT.shape[1],
        **compacted,
        **influence,
        "environment": dict(environment()),
    }


def scores(population: Population, members: int) -> tuple[np.ndarray, ...]:
    """Everything that the score stage computes, from one pass over the records."""
    sweep = load_sweep(population, range(members))
    return sweep.memorization().score_N, sweep.margin_memorization().score_N, sweep.margins().mean_out_N


def stacked_scores(population: Population, members: int) -> np.ndarray:
    """The peer: all records as arrays [M, N], then the formulas."""
    sweep = load_sweep(population, range(members))
    score_N = memorization_scores(sweep.correct_MN, sweep.include_MN).score_N
    margin_MN = sweep.margin_MN.astype(np.float32)
    with warnings.catch_warnings():  # of examples that no member saw, or all did
        warnings.simplefilter("ignore", RuntimeWarning)
        for keep_MN in (sweep.include_MN, ~sweep.include_MN):
            margin_MN.mean(0, where=keep_MN), margin_MN.var(0, where=keep_MN)
    return score_N


def _timed(name: str, call: Any) -> dict[str, float]:
    started = perf_counter()
    call()
    seconds = perf_counter() - started
    peak = peak_megabytes({name: call}, torch.device("cpu"))
    return {f"{name}_s": seconds} | {f"{name}_peak_mb": value for value in peak.values()}


def synthetic(folder: Path, members: int, examples: int, tests: int) -> Population:
    """A population whose records are random but for their subsets."""
    spec = PopulationSpec(
        kind="subsets",
        data=DataRef(location="synthetic", fingerprint="0" * 64),
        train=TrainConfig(),
        precision="torch.float32",
        include=0.7,
    )
    population = Population.create(folder, spec)
    with track("synthetic members", members) as advance:
        for index in range(members):
            population.save_record(synthetic_record(spec, index, examples, tests))
            advance()
    return population


def synthetic_record(spec: PopulationSpec, index: int, examples: int, tests: int) -> MemberRecord:
    """What a model might have said, in a moment: margins higher on what it was trained on."""
    draw = np.random.default_rng(index)
    include_N = np.zeros(examples, bool)
    include_N[spec.subset(index, examples)] = True
    margin_N = (draw.standard_normal(examples, np.float32) * 4 + 1 + 6 * include_N).astype(np.float16)
    margin_test_N = (draw.standard_normal(tests, np.float32) * 4 + 2).astype(np.float16)
    return MemberRecord(
        index, include_N, margin_N > 0, margin_test_N > 0, margin_N, margin_test_N, spec.data.fingerprint
    )


def main() -> None:
    """Measure, print, and on request save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--folder", type=Path, help="where 140 kB for each member can lie for a while")
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        record = measure(sorted(arguments.members), Path(folder))
    for row in record["rows"]:
        print(", ".join(f"{key} {value:.4g}" for key, value in row.items()))
    if arguments.save:
        write_json(arguments.save, record)


if __name__ == "__main__":
    main()
