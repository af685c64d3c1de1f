"""Speed of this machine on a recipe: seconds of real steps, with as many busy cores as there will be."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import islice

import torch

from rumfast.config import TrainConfig
from rumfast.data import Dataset
from rumfast.loaders import Batch
from rumfast.runtime import cpu_threads, pick_device, usable_cores
from rumfast.stepping import split
from rumfast.training import Learner

WARM_UP = 2  # examples of a first step, which loads code: in a new installation that takes many seconds
LEAST_STEPS, TIMED_S = 3, 0.7  # steps to time, and for how long where steps are short
FOREVER = 10**6  # epochs
PATIENCE_S = 5.0  # a whole step that takes longer is the only one that is timed

# A core at work as long as its stdin is open, and for a minute at most.
BUSY = """
import select, sys, time
import numpy as np
a, end = np.ones((256, 256), np.float32), time.monotonic() + 60
print(flush=True)
while time.monotonic() < end and not select.select([sys.stdin], [], [], 0)[0]:
    a @ a
"""


def gradient_seconds(data: Dataset, config: TrainConfig, device: str, workers: int) -> float:
    """Seconds that a worker needs for one example's gradient in a training step of the recipe.

    Times a few steps, about a second of them, without changing any weight. On a CPU, ``workers`` - 1 other
    processes are kept busy meanwhile, since cores that share caches or clocks slow each other down. On CUDA
    steps are not compiled, which would take longer than all the rest.
    """
    where = pick_device(device)
    on_cpu = where.type == "cpu"
    with cpu_threads(1) if on_cpu else nullcontext(), ExitStack() as others:
        learner = Learner(data, config.model_copy(update={"compile": "off"}), device)
        for _ in range(min(workers, usable_cores()) - 1 if on_cpu else 0):
            others.enter_context(_busy_core())
        return _timed(learner)


def _timed(learner: Learner) -> float:
    _steps(learner, WARM_UP)(1)
    take = _steps(learner, len(learner.loader))
    first_s, examples = take(1)  # allocates memory and chooses algorithms
    if first_s > PATIENCE_S:
        return first_s / examples
    seconds, examples = take(LEAST_STEPS)
    while seconds < TIMED_S:
        more_s, more = take(LEAST_STEPS)
        seconds, examples = seconds + more_s, examples + more
    return seconds / examples


def _steps(learner: Learner, examples: int) -> Callable[[int], tuple[float, int]]:
    """A function that takes some steps on the first examples, and returns their seconds and examples.

    On a CPU without an optimizer: its part in a step is small, and to import what it needs takes two seconds.
    """
    ids = torch.arange(min(examples, len(learner.loader)), device=learner.device)
    batches = learner.batches(ids, FOREVER, 0)
    config = learner.config
    step: Callable[[Batch], object] = partial(_backward, learner)
    if learner.device.type != "cpu":
        optimizer = learner.optimizer(0.0, config.momentum, config.weight_decay)  # no weight moves
        step = learner.stepper(optimizer, learner.cross_entropy)
    learner.model.train()

    def take(count: int) -> tuple[float, int]:
        started, taken = time.perf_counter(), 0
        for batch in islice(batches, count):
            step(batch)
            taken += len(batch.id)
        if learner.device.type == "cuda":
            torch.cuda.synchronize(learner.device)
        return time.perf_counter() - started, taken

    return take


def _backward(learner: Learner, batch: Batch) -> None:
    for part in split(batch, learner.config.micro_batches):
        learner.cross_entropy(part)[0].backward()
    learner.model.zero_grad()


@contextmanager
def _busy_core() -> Iterator[None]:
    variables = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches this process alone
        env=os.environ | variables,
    )
    with process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it is at work
            yield
        finally:
            process.kill()
