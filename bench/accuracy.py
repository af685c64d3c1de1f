"""Is accuracy traded for speed? Recipes trained our way and plainly: ``python -m rumfast.bench.accuracy``.

The plain way is what most research code has: a DataLoader over torchvision's transforms, eager float32,
contiguous layout. Both ways take the same data, SGD, schedule, batch size and initial weights; the batch size
is that of our even batches, for instance 250 where 256 are asked for of 45,000 examples. What differs is
precision, layout, compilation, and the random draws of orders, crops and flips.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from rumfast.bench.cells import DIFFERENCE, SHARE, interval_text
from rumfast.bench.machine import taken
from rumfast.bench.member import fit, logits
from rumfast.bench.plain import normalised, plain_loader, plain_workers
from rumfast.bench.record import described
from rumfast.bench.setting import limited
from rumfast.config import DataConfig, TrainConfig, load_recipe
from rumfast.data import Dataset, dataset_from_source, load_dataset
from rumfast.evaluation import t_interval
from rumfast.inference import logits_of
from rumfast.loaders import batch_count
from rumfast.models import build_model
from rumfast.progress import track
from rumfast.runtime import pick_device
from rumfast.store import write_json
from rumfast.training import Learner, learning_rate

SCHEMA = "rumfast/accuracy/1"
OURS, PLAIN = "ours", "plain"
SEEDS = 3
QUICK = 200  # training and test examples, each
UNPACKED = ("digits.toml",)  # recipes that need no packed data
PACKED = ("cifar10-small.toml",)
FOR_A_GPU = ("cifar10-resnet18.toml",)

Trained = tuple[float, float]  # test accuracy in [0, 1], seconds


def measure(
    recipes: Sequence[str],
    seeds: int = SEEDS,
    *,
    packed: str | None = None,
    epochs: int | None = None,
    quick: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Test accuracies and seconds of both ways to train each recipe, over ``seeds`` models of each.

    Args:
        packed: folder or source for recipes that read a packed folder; None: theirs.
        epochs: instead of the recipe's.
        quick: few examples, to see that it runs; nothing can be concluded from it.
    """
    planned = cases(recipes, seeds, packed=packed, epochs=epochs, quick=quick, device=device)
    trained = []
    with track("pairs of models", len(planned)) as advance:
        for train in planned.values():
            trained.append(train())
            advance()
    return record(trained)


def cases(
    recipes: Sequence[str],
    seeds: int = SEEDS,
    *,
    packed: str | None = None,
    epochs: int | None = None,
    quick: bool = False,
    device: str = "auto",
) -> dict[str, Callable[[], dict[str, Any]]]:
    """One pair of models, ours and the plain one, for each recipe and seed; arguments as for ``measure``."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for name in recipes:
        pairs = Pairs(name, packed, epochs, quick, device)
        found |= {f"{name}, seed {seed}": partial(pairs.train, seed) for seed in range(seeds)}
    return found


def record(trained: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of what ``cases`` gave: one row for each recipe."""
    names = dict.fromkeys(pair["setting"]["recipe"] for pair in trained)
    rows = [row([pair for pair in trained if pair["setting"]["recipe"] == name]) for name in names]
    return {"schema": SCHEMA, "rows": rows, "environment": described()}


def load(config: DataConfig, packed: str | None = None) -> Dataset:
    """The recipe's examples; where it names a source, from there without packing. All there are, if fewer."""
    if config.source is not None:
        data = dataset_from_source(config.source, config.label_noise, config.seed)
    else:
        data = load_dataset(packed or str(config.path))
    return limited(data, config)


class Pairs:
    """Trains a recipe both ways, seed by seed; data and learner are there from the first pair on."""

    def __init__(self, name: str, packed: str | None, epochs: int | None, quick: bool, device: str) -> None:
        self.recipe = load_recipe(name)
        changes = {} if epochs is None else {"epochs": epochs}
        self.config = self.recipe.train.model_copy(update=changes)
        self._packed, self._quick, self._device = packed, quick, device

    @cached_property
    def data(self) -> Dataset:
        """The recipe's examples; few of them where it is quick."""
        data = load(self.recipe.data, self._packed)
        return data.take(min(QUICK, len(data)), min(QUICK, len(data.test))) if self._quick else data

    @cached_property
    def learner(self) -> Learner:
        """Ours, compiled."""
        learner = Learner(self.data, self.config, self._device)
        _warm_up(learner)
        return learner

    def train(self, seed: int) -> dict[str, Any]:
        """Accuracy and seconds of a model of each way, both from the same initial weights."""
        learner, data = self.learner, self.data
        found = {OURS: train_ours(learner, data, seed)}
        found[PLAIN] = train_plainly(data, self.config, seed, learner.device)
        setting = {
            "recipe": self.recipe.name,
            "arch": self.config.arch,
            "dtype": str(learner.dtype).removeprefix("torch."),  # of ours
            "examples": len(data),
            "test_examples": len(data.test),
            "epochs": self.config.epochs,
        }
        return {"setting": setting} | {way: list(trained) for way, trained in found.items()}


def row(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One recipe: accuracies with 95 % t-intervals over seeds, their difference, and seconds per model.

    The difference, ours − plain, is paired: a seed has the same initial weights.
    """
    accuracy = {way: [pair[way][0] for pair in pairs] for way in (OURS, PLAIN)}
    difference = [ours - plain for ours, plain in zip(accuracy[OURS], accuracy[PLAIN], strict=True)]
    return {
        **pairs[0]["setting"],
        "seeds": len(pairs),
        "accuracy": {way: t_interval(values, SHARE)._asdict() for way, values in accuracy.items()},
        "difference": t_interval(difference, DIFFERENCE)._asdict(),
        "seconds": {way: [pair[way][1] for pair in pairs] for way in (OURS, PLAIN)},
    }


def _warm_up(learner: Learner) -> None:
    """An epoch that changes no weight, so that what is compiled is compiled."""
    ids = torch.arange(len(learner.loader), device=learner.device)
    optimizer = learner.optimizer(0.0, 0.0, 0.0)
    learner.descend(learner.batches(ids, 1, 0), optimizer, learner.cross_entropy)


def train_ours(learner: Learner, data: Dataset, seed: int) -> Trained:
    """Train by the recipe's own path."""
    ids = torch.arange(len(data), device=learner.device)
    started = perf_counter()
    learner.fit(ids, seed)  # waits for the device
    seconds = perf_counter() - started
    return _accuracy(logits_of(learner.model, data, data.test), data), seconds


def train_plainly(data: Dataset, config: TrainConfig, seed: int, device: torch.device) -> Trained:
    """Train the plain way; its order, crops and flips are drawn from ``seed`` too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(
            config.arch, len(data.classes), width=config.width, stem_stride=config.stem_stride, seed=seed
        )
        model = model.to(memory_format=torch.contiguous_format).to(device)  # type: ignore[call-overload]
        loader = plain_loader(
            data,
            batch_size=math.ceil(len(data) / batch_count(len(data), config.batch_size)),
            flip=config.flip,
            crop_padding=config.crop_padding,
            workers=plain_workers(device),
            device=device,
        )
        steps = len(loader)  # per epoch
        rates = [learning_rate(config, step / steps) for step in range(config.epochs * steps + 1)]
        started = perf_counter()
        fit(model, loader, config.model_dump() | {"lr_of_step": rates}, device)  # waits for the device
        seconds = perf_counter() - started
    test_image = normalised(data.test.image_NHWC, np.array(data.mean), np.array(data.std))
    return _accuracy(logits(model, test_image, device), data), seconds


def _accuracy(test_NC: np.ndarray, data: Dataset) -> float:
    return float((test_NC.argmax(1) == data.test.label_N).mean())


def accuracy_table(record: Mapping[str, Any]) -> str:
    """Markdown table of a record: test accuracy both ways and seconds per model, medians."""
    lines = [
        "| recipe | precision | models | ours | plain loop | difference | seconds, ours | plain loop |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        means = [interval_text(row["accuracy"][way], SHARE, ".4f") for way in (OURS, PLAIN)]
        difference = interval_text(row["difference"], DIFFERENCE, "+.4f")
        seconds = [f"{median(row['seconds'][way]):.3g}" for way in (OURS, PLAIN)]
        name = f"{row['recipe']}, {row['examples']:,} examples, {row['epochs']} epochs"
        cells = [name, row["dtype"], f"{row['seeds']} each", *means, difference, *seconds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", taken(record)]) + "\n"


def main() -> None:
    """Measure, print, and on request save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", action="append", metavar="NAME", help="default: all that can run here")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--data", help="CIFAR-10, packed or as npz:FILE, for recipes that read it")
    parser.add_argument("--epochs", type=int, help="instead of the recipes' own")
    parser.add_argument(
        "--quick", action="store_true", help="few examples for one epoch, to see that it runs"
    )
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    recipes = list(UNPACKED)
    if arguments.data:
        recipes += PACKED + (FOR_A_GPU if pick_device().type == "cuda" else ())
    quick = arguments.quick
    record = measure(
        arguments.recipe or recipes,
        arguments.seeds,
        packed=arguments.data,
        epochs=1 if quick else arguments.epochs,
        quick=quick,
    )
    print(accuracy_table(record), end="")
    if arguments.save:
        write_json(arguments.save, record)


if __name__ == "__main__":
    main()
