"""Train members of populations: ``python -m rumfast.sweeps.worker --device cpu`` serves one slot.

One JSON task per line on stdin ({"population": folder, "index": i}), one JSON answer per line on stdout;
other engines call ``do_chunk`` in processes of theirs. A worker keeps the data set and the compiled model
from task to task. It holds no state that the store lacks: any other worker can do the rest.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rumfast.data import Dataset
from rumfast.errors import DataError, DivergedError, MismatchError, RumfastError, StorageError
from rumfast.plans import StepRecord, Unlearned, bind, parse_plan, run_plan, spread_budget
from rumfast.refinement import Group
from rumfast.runtime import device_lost, pick_device, pick_precision
from rumfast.scores.proxies import ProxyTotals, TrainingEvents
from rumfast.sweeps.journal import Journal
from rumfast.sweeps.population import Population
from rumfast.sweeps.probes import run_probe
from rumfast.sweeps.proxy_models import Timed, train_proxies
from rumfast.sweeps.records import MemberRecord
from rumfast.sweeps.sharing import with_shared_images
from rumfast.sweeps.spec import DataRef, PopulationSpec
from rumfast.sweeps.trials import run_trial
from rumfast.training import Learner

FOLLOW_S = 1.0  # seconds between two looks at whether the engine is alive


class Worker:
    """Trains any member of any population on one device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._data: dict[str, Dataset] = {}
        self._learners: dict[tuple[str, str], Learner] = {}
        self._journals: dict[Path, Journal] = {}

    def do(self, root: Path, index: int, images: str | None = None) -> dict[str, Any]:
        """Train and commit one member, and keep the journal; a member that exists is left alone.

        Args:
            images: where the images of the population's data set lie decoded, see ``SharedImages``.
        """
        population = self.population(root)
        if population.has(index):
            return {"status": "done", "wall_s": 0.0}
        if root not in self._journals:
            self._journals[root] = Journal(root)
        journal, started = self._journals[root], time.perf_counter()
        journal.write(index, "begun")
        try:
            committed, status = self._train(population, index, images)
        except Exception as error:
            # An error while training is the member's; no journal can tell of a disk that is full.
            with suppress(StorageError):
                journal.write(index, "failed", kind=type(error).__name__, message=str(error))
            raise
        wall_s = time.perf_counter() - started
        journal.write(index, status if committed else "repeated", wall_s=wall_s)
        return {"status": status, "wall_s": wall_s}

    def population(self, root: Path) -> Population:
        """The population in folder ``root``."""
        return Population.open(root)

    def _train(self, population: Population, index: int, images: str | None) -> tuple[bool, str]:
        spec = population.spec
        data, learner = self._dataset(spec.data, images), self._learner(spec)
        if spec.kind == "subsets":
            record = train_record(learner, spec, index, data)
            committed = commit(population, record, exact=learner.device.type == "cpu")
            return committed, "diverged" if record.diverged else "done"
        if spec.kind == "proxies":
            return train_proxies(learner, population, index, data), "done"
        if spec.kind == "trials":
            return run_trial(learner, population, index, data), "done"
        if spec.kind == "probes":
            return run_probe(learner, population, index, data), "done"
        return train_model(learner, population, index, data), "done"

    def _dataset(self, ref: DataRef, images: str | None = None) -> Dataset:
        if ref.fingerprint not in self._data:
            data = ref.load()
            self._data[ref.fingerprint] = data if images is None else with_shared_images(data, images)
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
    events = TrainingEvents(len(data), spec.train.epochs) if spec.events else None
    dtype = np.float16 if spec.margins == "fp16" else np.float32
    nothing = np.empty(0, bool), np.empty(0, bool), np.empty(0, dtype), np.empty(0, dtype)
    try:
        learner.fit(ids, spec.member_seed(index), None if events is None else events.add)
        predictions = learner.predictor.predict()
    except DivergedError:
        return MemberRecord(index, include_N, *nothing, spec.data.fingerprint, diverged=True)
    train, test = (predictions.margins(part, ("margin", "correct")) for part in ("train", "test"))
    return MemberRecord(
        index,
        include_N,
        train.correct.numpy(),
        test.correct.numpy(),
        _stored(train.margin, dtype),
        _stored(test.margin, dtype),
        spec.data.fingerprint,
        learned_EN=None if events is None else events.learned_EN.cpu().numpy(),
        proxies_KN=None if events is None else np.stack(events.scores()).astype(np.float32),
    )


def commit(population: Population, record: MemberRecord, *, exact: bool) -> bool:
    """Commit a record; False where another worker has stored this member before.

    Args:
        exact: training is reproducible bit by bit, so the member must be equal; on a GPU sums may be taken in
            another order, and then the same subset of the same data is enough.

    Raises:
        MismatchError: another worker has stored something else; the first is kept.
    """
    try:
        return population.save_record(record)
    except MismatchError:
        if exact or not np.array_equal(population.record(record.index).include_N, record.include_N):
            raise
        return False


def _stored(margin: torch.Tensor, dtype: type) -> np.ndarray:
    limit = float(np.finfo(dtype).max)
    return margin.clamp(-limit, limit).numpy().astype(dtype)


def train_model(learner: Learner, population: Population, index: int, data: Dataset) -> bool:
    """Train, or unlearn, one model and commit it with its logits; False where another worker has before."""
    spec, proxies = population.spec, None
    metrics: dict[str, object]
    if spec.kind == "unlearned":
        result = unlearn_model(learner, population, index, data)
        metrics = {
            "steps": result.steps,
            "records": [record._asdict() for record in result.records],
            "budget": spec.budget,
            "examples": result.examples,
            "wall_s": result.wall_s,
        }
    else:
        metrics, proxies = fit_reference(learner, spec, index)
    predictions = learner.predictor.predict()
    committed = population.save_model(
        index, _weights(learner), predictions.train_NC, predictions.test_NC, metrics, proxies
    )
    population.discard_checkpoints([index])
    return committed


def fit_reference(
    learner: Learner, spec: PopulationSpec, index: int
) -> tuple[dict[str, object], dict[str, np.ndarray] | None]:
    """Train an original or an oracle; returns what it took, and an original's proxies.

    An original's forward passes are observed, which takes ``observe_s`` of its ``wall_s``.
    """
    started, before, n = time.perf_counter(), learner.examples, len(learner.loader)
    if spec.kind != "original":
        learner.fit(torch.as_tensor(spec.retained(n), device=learner.device), spec.member_seed(index))
        return {"examples": learner.examples - before, "wall_s": time.perf_counter() - started}, None
    totals = ProxyTotals(n)
    observe = Timed(totals.add)
    learner.fit(torch.as_tensor(spec.pool(n), device=learner.device), spec.member_seed(index), observe)
    proxies = totals.scores().columns()
    metrics: dict[str, object] = {
        "examples": learner.examples - before,
        "wall_s": time.perf_counter() - started,
        "observe_s": observe.seconds,
    }
    return metrics, proxies


def _weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in learner.model.state_dict().items()}


def unlearn_model(learner: Learner, population: Population, index: int, data: Dataset) -> Unlearned:
    """Run the population's plan on original ``index``, in place, from the last checkpoint if there is one."""
    spec = population.spec
    if spec.parent is None or spec.plan is None:
        raise DataError(f"{population.root}: an unlearned population needs a parent and a plan")
    groups = [Group(group.name, np.array(group.ids, np.int64)) for group in spec.groups]
    retain = spec.retained(len(data))
    bound = bind(parse_plan(spec.plan), groups)
    if spec.budget is not None:
        bound = spread_budget(bound, retain, spec.retain, spec.budget, spec.train)
    kept = population.checkpoint(index)
    state, stored = kept or (Population.open(population.root / spec.parent).state(index), [])
    learner.model.load_state_dict(state)

    def keep(records: Sequence[StepRecord]) -> None:
        if records[-1].examples:  # to repeat a step that trains nothing costs less than a file
            done = [record._asdict() for record in records]
            population.save_checkpoint(index, _weights(learner), done)

    return run_plan(
        learner,
        bound,
        retain,
        mode=spec.retain,
        seed=spec.member_seed(index),
        done=[StepRecord(**record) for record in stored],
        after_step=keep,
    )


@cache
def process_worker(device: str) -> Worker:
    """The worker of this process; it keeps data and compiled model from chunk to chunk."""
    where = pick_device(device)
    if where.type == "cpu":
        # One process per core is faster for small nets, and results do not vary with the number of cores.
        torch.set_num_threads(1)
    elif where.index is not None:
        torch.cuda.set_device(where)  # for all that does not look at a tensor's device
    return Worker(device)


def do_chunk(root: str, indices: Sequence[int], device: str = "auto") -> list[dict[str, Any]]:
    """Train and commit the members ``indices`` that are missing: what cluster engines send to their nodes.

    Raises:
        RumfastError: of the first member that ended in one; the members before it are kept.
    """
    worker = process_worker(device)
    return [worker.do(Path(root), index) for index in indices]


def serve(device: str) -> None:
    """Answer tasks until stdin ends."""
    worker = process_worker(device)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    for line in sys.stdin:
        task = json.loads(line)
        try:
            answer = worker.do(Path(task["population"]), task["index"], task.get("images"))
        except RumfastError as error:
            answer = {"status": "error", "kind": type(error).__name__, "message": str(error)}
        except Exception as error:  # out of memory, say: trying again would not help, and a traceback neither
            if device_lost():  # an error of another process under MPS, say; a new process gets a new context
                print(f"rumfast: {type(error).__name__}: {error}", file=sys.stderr)
                os._exit(1)
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
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    serve(parser.parse_args().device)


def _follow(parent: int) -> None:
    """End soon after the engine does, however that ended: an orphan would train on, seen by nobody."""
    while os.getppid() == parent:
        time.sleep(FOLLOW_S)
    os._exit(1)


if __name__ == "__main__":
    main()
