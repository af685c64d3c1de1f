"""Unlearning: the time of each algorithm, per gradient against training, and in all against retraining."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from rumfast.algorithms import ALGORITHMS
from rumfast.bench.cases import OURS, Case, Measure, case
from rumfast.bench.setting import Setting
from rumfast.bench.sweep import recipe
from rumfast.bench.timing import Call, interleave
from rumfast.data import Split, load_dataset, select_forget
from rumfast.runtime import cpu_threads
from rumfast.training import Learner

TRAIN, RETRAIN = "training", "retraining"
EPOCHS = 10  # timed as one, since a single epoch of digits is too short to time; as many as fine-tuning takes
SAMPLED = 1000  # gradients that a time per gradient is stated for
TOGETHER = 4  # algorithms timed in turn with each other, training and retraining
TIMED = tuple(name for name in ALGORITHMS if name not in ("none", "retrain"))  # none does nothing


def cases(setting: Setting) -> dict[str, Measure]:
    """Time each algorithm with its default hyper-parameters on the shipped digits recipe.

    With one thread, as the workers have that unlearn on a CPU. Two cases each: milliseconds per 1000 example
    gradients against training's, which shows what the algorithm adds to it; and milliseconds in all against
    retraining, which is what a user is spared.
    """
    together = [TIMED[start : start + TOGETHER] for start in range(0, len(TIMED), TOGETHER)]
    rounds = 3 if setting.quick else 5
    return {f"unlearn {', '.join(names)}": partial(measure, names, setting, rounds) for names in together}


def measure(names: Sequence[str], setting: Setting, rounds: int) -> list[Case]:
    """Two cases for each of some algorithms, timed in turn with training and retraining."""
    data = load_dataset("digits")
    data = data.take(setting.size(300, 1400, 1400), 100)
    learner = Learner(data, recipe(epochs=20), str(setting.device))
    split = select_forget(f"random:{len(data) // 10}", data.train.label_N)
    with cpu_threads(1):
        variants = algorithms(learner, split, names)
        gradients = {name: spent(learner, call) for name, call in variants.items()}
        samples = interleave(variants, rounds, setting.device, warmup=0)
    shape = f"{learner.config.arch}, digits, {len(split.forget)} of {len(data)} examples forgotten, 1 thread"
    return [one for name in names for one in _two_cases(name, shape, learner, samples, gradients)]


def algorithms(learner: Learner, split: Split, names: Sequence[str] = TIMED) -> dict[str, Call]:
    """One call per algorithm, each from the same original model, beside training and retraining."""
    forget, retain = (torch.as_tensor(ids, device=learner.device) for ids in (split.forget, split.retain))
    learner.fit(torch.cat([forget, retain]), seed=0)
    original = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}

    def unlearn(name: str) -> None:
        learner.model.load_state_dict(original)
        algorithm = ALGORITHMS[name]
        algorithm.run(learner, forget, retain, algorithm.config(), 0)

    config = learner.config
    optimizer = learner.optimizer(config.lr, config.momentum, config.weight_decay)
    stepper = learner.stepper(optimizer, learner.cross_entropy)  # as training has: one for all models

    def train() -> None:
        learner.model.load_state_dict(original)
        stepper.forget_momentum()
        learner.take(learner.batches(retain, EPOCHS, 0), stepper)

    peers: dict[str, Call] = {TRAIN: train, RETRAIN: partial(unlearn, "retrain")}
    return peers | {name: partial(unlearn, name) for name in names}


def spent(learner: Learner, call: Call) -> int:
    """Example gradients that a call takes."""
    before = learner.examples
    call()
    return learner.examples - before


def _two_cases(
    name: str, shape: str, learner: Learner, samples: dict[str, list[float]], gradients: dict[str, int]
) -> list[Case]:
    per_gradient = {
        variant: (SAMPLED / gradients[own] * np.array(samples[own])).tolist()
        for variant, own in ((OURS, name), (TRAIN, TRAIN))
    }
    whole = {OURS: samples[name], RETRAIN: samples[RETRAIN]}
    taken = {"gradients": {OURS: float(gradients[name]), RETRAIN: float(gradients[RETRAIN])}}
    dtype = str(learner.dtype).removeprefix("torch.")
    return [
        case(f"unlearn {name}, {SAMPLED} gradients", shape, dtype, per_gradient),
        case(f"unlearn {name}", shape, dtype, whole, notes=taken),
    ]
