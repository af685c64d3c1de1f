"""Sweeps: members per hour of the local engine, against one fresh process per member."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch

from rumfast.bench.cases import OURS, Case, Measure, case
from rumfast.bench.report import OWN
from rumfast.bench.setting import Setting, random_dataset
from rumfast.bench.timing import Call, interleave
from rumfast.config import TrainConfig, load_recipe
from rumfast.data import Dataset, load_dataset
from rumfast.runtime import usable_cores
from rumfast.sweeps import LocalEngine, Population, PopulationSpec
from rumfast.sweeps.run import sweep_spec
from rumfast.training import learning_rate

ONE, MANY = "a process per member, one by one", "a process per member, as many as cores"
RANDOM_EXAMPLES, RANDOM_TESTS = 12_000, 3_000
INCLUDE = 0.7  # share of the training set each member sees


def cases(setting: Setting) -> dict[str, Measure]:
    """Time sweeps of the shipped digits recipe."""
    members, rounds = setting.size(2, 4, 8), 2 if setting.quick else 3
    return {"sweep": partial(against_processes, setting, members, rounds)}


def against_processes(setting: Setting, members: int, rounds: int) -> list[Case]:
    """Ours against a process per member; workers of ours stay from sweep to sweep, as in a long one.

    Accuracies are means over all members that were trained, so that nobody gains speed by training worse.
    """
    data = load_dataset("digits")
    config = recipe(epochs=setting.size(5, 20, 20))
    device = str(setting.device)
    accuracy: dict[str, list[float]] = {OURS: [], ONE: [], MANY: []}
    spec = sweep_spec(data, config, include=INCLUDE, device=device)
    with tempfile.TemporaryDirectory() as folder, LocalEngine(device=device) as engine:
        plain, cores = prepare(Path(folder) / "plain", data, spec, members), usable_cores()
        variants = {
            OURS: keeping(accuracy[OURS], engine_sweeps(engine, Path(folder) / "ours", spec, members)),
            ONE: keeping(accuracy[ONE], lambda: plain_sweep(plain, members, device, at_once=1)),
            MANY: keeping(accuracy[MANY], lambda: plain_sweep(plain, members, device, at_once=cores)),
        }
        # Our workers start untimed, as they do once in a long sweep; a process per member always starts.
        variants[OURS]()
        samples = interleave(variants, rounds, setting.device, warmup=0)
    examples = f"{len(spec.subset(0, len(data)))} of {len(data)} examples"
    shape = f"{config.arch}, digits, {examples}, {config.epochs} epochs, members {members}"
    means = {variant: float(np.mean(values)) for variant, values in accuracy.items()}
    return [
        case(
            "sweep",
            shape,
            spec.precision.removeprefix("torch."),
            samples,
            throughput=("members/h", 3600 * members),
            notes={"test accuracy": means},
        )
    ]


def by_workers(setting: Setting, rounds: int = 3, source: str | None = None) -> list[Case]:
    """Time the local engine with one worker process against two and four on the same device.

    One engine after the other, since each starts an MPS daemon of its own where workers share a GPU.
    Members are ResNet-9 on CIFAR-10, or on random images of its size; in a quick run ResNet-8 on digits.

    Args:
        source: of CIFAR-10, packed or for instance ``npz:FILE``.
    """
    members, device = setting.size(1, 4, 8), str(setting.device)
    counts = {OURS: 1} | {f"{OWN}{count} workers": count for count in setting.size((2,), (2, 4), (2, 4))}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if setting.quick:
            data, config = load_dataset("digits"), recipe(epochs=1)
        else:
            data = load_dataset(source or f"npz:{random_npz(root)}")
            config = TrainConfig(arch="resnet9", epochs=8, batch_size=512, lr=0.1)
        spec = sweep_spec(data, config, include=INCLUDE, device=device)
        samples: dict[str, list[float]] = {}
        for name, workers in counts.items():
            with LocalEngine(workers, device) as engine:
                sweep = engine_sweeps(engine, root / name, spec, members)
                # The first round starts the workers, which load the data and compile.
                samples |= interleave({name: sweep}, rounds, setting.device)
    shape = f"{config.arch}, {list(data.train.image_NHWC.shape)} uint8, {config.epochs} epochs"
    return [
        case(
            "sweep by workers",
            f"{shape}, members {members}",
            spec.precision.removeprefix("torch."),
            samples,
            throughput=("members/h", 3600 * members),
        )
    ]


def random_npz(folder: Path) -> Path:
    """A file of random images of CIFAR-10's size, which worker processes can load."""
    data, path = random_dataset(RANDOM_EXAMPLES), folder / "random.npz"
    train = data.train
    np.savez(
        path,
        train_images=train.image_NHWC,
        train_labels=train.label_N,
        test_images=train.image_NHWC[:RANDOM_TESTS],
        test_labels=train.label_N[:RANDOM_TESTS],
    )
    return path


def recipe(epochs: int) -> TrainConfig:
    """The shipped digits recipe at ``epochs`` epochs, without augmentation."""
    plain = {"epochs": epochs, "flip": False, "crop_padding": 0}  # a plain worker does not augment
    return load_recipe("digits.toml").train.model_copy(update=plain)


def keeping(accuracy: list[float], sweep: Callable[[], list[float]]) -> Call:
    """A call that runs a sweep and appends its members' accuracies."""
    return lambda: accuracy.extend(sweep())


def engine_sweeps(
    engine: LocalEngine, root: Path, spec: PopulationSpec, members: int
) -> Callable[[], list[float]]:
    """Ours: each call trains a new population of ``members`` and returns their test accuracies."""
    seeds = count()

    def sweep() -> list[float]:
        seed = next(seeds)
        population = Population.create(root / str(seed), spec.model_copy(update={"seed": seed}))
        engine.run(population, range(members))
        return [float(population.record(index).correct_test_N.mean()) for index in range(members)]

    return sweep


def prepare(folder: Path, data: Dataset, spec: PopulationSpec, members: int) -> Path:
    """Write what the plain workers read: images, labels, each member's ids, and the recipe step by step."""
    folder.mkdir()
    ids_MN = np.stack([spec.subset(index, len(data)) for index in range(members)])
    steps = math.ceil(ids_MN.shape[1] / spec.train.batch_size)  # per epoch
    lr_of_step = [learning_rate(spec.train, step / steps) for step in range(spec.train.epochs * steps + 1)]
    np.savez(
        folder / "arrays.npz",
        train_image=data.train.image_NHWC,
        train_label=data.train.label_N,
        test_image=data.test.image_NHWC,
        test_label=data.test.label_N,
        mean=data.mean,
        std=data.std,
        ids=ids_MN,
    )
    full = spec.train.model_dump() | {"classes": len(data.classes), "lr_of_step": lr_of_step}
    (folder / "recipe.json").write_text(json.dumps(full))
    return folder


def plain_sweep(folder: Path, members: int, device: str, at_once: int) -> list[float]:
    """Train each member in a process of its own, ``at_once`` at a time with an equal share of the threads."""
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // at_once))}

    def train(index: int) -> float:
        command = [sys.executable, "-m", "rumfast.bench.member", str(folder), str(index), device]
        environment = os.environ | threads
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        return float(done.stdout)

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(train, range(members)))
