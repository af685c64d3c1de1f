"""Train members of populations: ``python -m rumfast.sweeps.worker --device cpu`` serves one engine slot.

One JSON task per line on stdin ({"population": folder, "index": i}), one JSON answer per line on stdout. The
worker keeps the data set and the compiled model from task to task. It holds no state that the store lacks:
when stdin ends it exits, and any other worker can do the rest.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rumfast.data import Dataset, load_dataset
from rumfast.errors import DataError, DivergedError, MismatchError, RumfastError
from rumfast.inference import predict
from rumfast.plans import bind, parse_plan, run_plan, spread_budget
from rumfast.refinement import Group
from rumfast.runtime import pick_device, pick_precision
from rumfast.sweeps.population import Population
from rumfast.sweeps.records import MemberRecord
from rumfast.sweeps.spec import DataRef, PopulationSpec
from rumfast.training import Learner


class Worker:
    """Trains any member of any population on one device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._data: dict[str, Dataset] = {}
        self._learners: dict[tuple[str, str], Learner] = {}

    def do(self, root: Path, index: int) -> dict[str, Any]:
        """Train and commit one member; a member that exists is left alone."""
        population = Population.open(root)
        if population.member(index).exists():
            return {"status": "done", "wall_s": 0.0}
        started = time.perf_counter()
        learner = self._learner(population.spec)
        status = "done"
        if population.spec.kind == "subsets":
            record = train_record(learner, population.spec, index, self._dataset(population.spec.data))
            population.save_record(record)
            status = "diverged" if record.diverged else "done"
        else:
            train_model(learner, population, index, self._dataset(population.spec.data))
        return {"status": status, "wall_s": time.perf_counter() - started}

    def _dataset(self, ref: DataRef) -> Dataset:
        if ref.fingerprint not in self._data:
            data = load_dataset(ref.location).take(ref.train_examples, ref.test_examples, ref.seed)
            if data.fingerprint != ref.fingerprint:
                raise MismatchError(
                    f"{ref.location}: content is {data.fingerprint[:12]}, the population was made "
                    f"with {ref.fingerprint[:12]}"
                )
            self._data[ref.fingerprint] = data
        return self._data[ref.fingerprint]

    def _learner(self, spec: PopulationSpec) -> Learner:
        key = (spec.data.fingerprint, spec.train.model_dump_json())
        if key not in self._learners:
            learner = Learner(self._dataset(spec.data), spec.train, self.device)
            found = str(pick_precision(spec.train.precision, pick_device(self.device)))
            if found != spec.precision:
                raise MismatchError(
                    f"precision: the population was started in {spec.precision}, this machine would "
                    f"use {found}; set train.precision in the recipe"
                )
            self._learners[key] = learner
        return self._learners[key]


def train_record(learner: Learner, spec: PopulationSpec, index: int, data: Dataset) -> MemberRecord:
    """Train one sweep member and reduce it to its record."""
    subset = spec.subset(index, len(data))
    include_N = np.zeros(len(data), bool)
    include_N[subset] = True
    ids = torch.as_tensor(subset, device=learner.device)
    nothing = np.empty(0, bool), np.empty(0, bool), np.empty(0, np.float16), np.empty(0, np.float16)
    try:
        learner.fit(ids, spec.member_seed(index))
    except DivergedError:
        return MemberRecord(index, include_N, *nothing, spec.data.fingerprint, diverged=True)
    predictions = predict(learner.model, data)
    train, test = (predictions.margins(part, ("margin", "correct")) for part in ("train", "test"))
    return MemberRecord(
        index,
        include_N,
        train.correct.numpy(),
        test.correct.numpy(),
        _half(train.margin),
        _half(test.margin),
        spec.data.fingerprint,
    )


def _half(margin: torch.Tensor) -> np.ndarray:
    limit = torch.finfo(torch.float16).max
    return margin.clamp(-limit, limit).half().numpy()


def train_model(learner: Learner, population: Population, index: int, data: Dataset) -> None:
    """Train, or unlearn, one model and commit it with its logits."""
    spec, started, before = population.spec, time.perf_counter(), learner.examples
    metrics: dict[str, object] = {}
    if spec.kind == "unlearned":
        metrics["steps"] = unlearn_model(learner, population, index, data)
    else:
        ids = spec.pool(len(data)) if spec.kind == "original" else spec.retained(len(data))
        learner.fit(torch.as_tensor(ids, device=learner.device), spec.member_seed(index))
    metrics |= {"examples": learner.examples - before, "wall_s": time.perf_counter() - started}
    predictions = predict(learner.model, data)
    state = {name: tensor.cpu() for name, tensor in learner.model.state_dict().items()}
    population.save_model(index, state, predictions.train_NC, predictions.test_NC, metrics)


def unlearn_model(learner: Learner, population: Population, index: int, data: Dataset) -> list[str]:
    """Run the population's plan on original ``index``, in place; returns the steps as run."""
    spec = population.spec
    if spec.parent is None or spec.plan is None:
        raise DataError(f"{population.root}: an unlearned population needs a parent and a plan")
    parent = Population.open(population.root / spec.parent)
    learner.model.load_state_dict(parent.state(index))
    groups = [Group(group.name, np.array(group.ids, np.int64)) for group in spec.groups]
    retain = spec.retained(len(data))
    bound = bind(parse_plan(spec.plan), groups)
    if spec.budget is not None:
        bound = spread_budget(bound, retain, spec.retain, spec.budget, spec.train.batch_size)
    result = run_plan(learner, bound, retain, mode=spec.retain, seed=spec.member_seed(index))
    return list(result.steps)


def serve(device: str) -> None:
    """Answer tasks until stdin ends."""
    worker = Worker(device)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    for line in sys.stdin:
        task = json.loads(line)
        try:
            answer = worker.do(Path(task["population"]), task["index"])
        except RumfastError as error:
            answer = {"status": "error", "kind": type(error).__name__, "message": str(error)}
        except Exception as error:  # out of memory, say: trying again would not help, and a traceback neither
            answer = {
                "status": "error",
                "kind": "PartialError",
                "message": f"{type(error).__name__}: {error}",
            }
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    """Entry point of a worker process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    if pick_device(arguments.device).type == "cpu":
        # One process per core is faster for small nets, and results do not vary with the number of cores.
        torch.set_num_threads(1)
    serve(arguments.device)


if __name__ == "__main__":
    main()
