"""Everything once, against float64 or against itself: what a first run on a GPU must show to be right.

Each case returns the numbers that it looked at, and raises ``Wrong`` where one is out of bounds.
"""

import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rumfast.algorithms import ALGORITHMS, SgdConfig
from rumfast.bench.kernels import exact_output, largest_error
from rumfast.bench.plain import normalised
from rumfast.bench.setting import Setting
from rumfast.bench.workloads import CASES, Kernel, images, normal
from rumfast.config import TrainConfig
from rumfast.data import load_dataset
from rumfast.inference import predict
from rumfast.kernels.moments import moments, reference_moments
from rumfast.kernels.neighbours import nearest
from rumfast.runtime import pick_device
from rumfast.scores.proxies import TrainingEvents
from rumfast.stepping import WARM_UP
from rumfast.sweeps import run_sweep
from rumfast.training import Learner

Numbers = Mapping[str, float]
SINGLE, HALF = 1e-4, 1e-2  # largest errors of float32 and bfloat16 that kernels' tests allow too
LEAST_ACCURACY, BY_CHANCE = 0.5, 0.1  # of ten digits, after a few epochs
NEAR = 1e-5  # largest relative difference of distances that float32 may take for each other
CHANGED = 0.02  # largest share of predictions that may differ from float64's
REPEATED = 0.1  # largest difference in accuracy between two trainings from one seed: CUDA sums in any order


class Wrong(Exception):
    """A number is out of bounds."""


def cases(dry: bool) -> dict[str, Callable[[], Numbers]]:
    """Smoke cases in order; a dry run tries a few kernels and algorithms."""
    scene = Scene(dry)
    kernels, algorithms = list(CASES), [name for name in ALGORITHMS if name not in ("none", "retrain")]
    if dry:
        kernels, algorithms = kernels[:2], algorithms[:2]
    found: dict[str, Callable[[], Numbers]] = {
        f"kernel {name}": partial(scene.kernel, CASES[name]) for name in kernels
    }
    found |= {
        "augment equals the CPU's": scene.same_images,
        "moments in groups": scene.moments,
        "nearest equals float64's": scene.nearest,
        "fit, eager": partial(scene.fit, compile="off", cuda_graphs="off"),
        "fit, recorded": partial(scene.fit, compile="off"),
        "fit in micro-batches, recorded": partial(scene.fit, compile="off", micro_batches=3),
        "steps and predictions are recorded": scene.recorded,
        "predictions against float64": scene.predictions,
        "finetune > cfk on a learner without fit": scene.steps_without_fit,
        "observed fit": scene.observed,
    }
    found |= {f"algorithm {name}": partial(scene.algorithm, name) for name in algorithms}
    if not dry:  # compiling takes a minute on a CPU; worker processes are started by other rungs
        found |= {"fit, compiled and recorded": scene.fit, "a sweep by a worker process": scene.sweep}
    return found


class Scene:
    """Digits, a learner for them, and the original model that algorithms start from."""

    def __init__(self, dry: bool) -> None:
        self.device = pick_device()
        examples, self.epochs = (270, 2) if dry else (600, 6)
        self.least = BY_CHANCE if dry else LEAST_ACCURACY
        self.data = load_dataset("digits").take(examples, 200)
        # 591 or 261, which no batch size near 64 divides: batches have two sizes, and steps two shapes.
        self.ids = torch.arange(examples - 9, device=self.device)
        # Quick shapes: on CUDA those that a CPU measures. Nothing here is timed, so that no rate is known.
        self.setting = Setting(self.device, True, 1.0, {"float32": 1.0})

    def draw(self) -> torch.Generator:
        """The same random numbers for each case."""
        return torch.Generator(self.device).manual_seed(0)

    def learner(self, **changes: Any) -> Learner:
        """A small network, and how its steps are taken."""
        config = TrainConfig(arch="resnet8", width=8, epochs=self.epochs, batch_size=64, lr=0.05, flip=True)
        return Learner(self.data, config.model_copy(update=changes), str(self.device))

    def accuracy(self, learner: Learner) -> float:
        """On the test set."""
        return learner.predictor.predict().accuracy("test")

    @torch.no_grad()
    def kernel(self, kernel: Kernel) -> Numbers:
        """Largest error of a kernel against its formula in float64."""
        inputs = kernel.inputs(self.setting, self.draw())
        error = largest_error(kernel.ours(*inputs), exact_output(kernel, inputs))
        half = "bfloat16" in (kernel.dtype, kernel.product)
        return at_most({"error": error}, HALF if half else SINGLE)

    def same_images(self) -> Numbers:
        """Crops and flips are the same bits on any device."""
        augment = CASES["augment to bfloat16"].ours
        inputs = images(True, *[(2000, 512)] * 3)(self.setting, self.draw())
        here, there = augment(*inputs), augment(*(tensor.cpu() for tensor in inputs))
        return at_most({"different pixels": float((here.cpu() != there).sum())}, 0)

    def moments(self) -> Numbers:
        """Means and scatter of three groups, relative to float64's."""
        x_ND = normal(self.draw(), 4500, 512) + 3
        group_N = torch.arange(4500, device=self.device) % 3
        found, exact = moments(x_ND, group_N, 3), reference_moments(x_ND.double(), group_N, 3)
        return at_most(
            {
                "mean": relative(found.mean_GD, exact.mean_GD),
                "scatter": relative(found.scatter_G, exact.scatter_G),
            },
            SINGLE,
        )

    def nearest(self) -> Numbers:
        """The ten nearest of each point are as near as those that float64 finds; near-ties may swap."""
        draw = self.draw()
        x_ND, y_MD = normal(draw, 300, 64), normal(draw, 500, 64)
        _, index_NK = nearest(x_ND, y_MD, k=10)
        distance_NM = torch.cdist(x_ND.double(), y_MD.double())
        exact_NK = distance_NM.topk(10, largest=False).values
        return at_most({"distance": relative(distance_NM.gather(1, index_NK), exact_NK)}, NEAR)

    def fit(self, **changes: Any) -> Numbers:
        """Train three models by one learner; the third, of the first one's seed, is as good as the first."""
        learner, found = self.learner(**changes), []
        for seed in (0, 1, 0):
            learner.fit(self.ids, seed)
            found.append(self.accuracy(learner))
        at_most({"difference of equal seeds": abs(found[0] - found[2])}, REPEATED)
        return at_least({"worst accuracy": min(found)}, self.least)

    @cached_property
    def original(self) -> tuple[Learner, dict[str, Tensor]]:
        """A learner and the weights of a trained model."""
        learner = self.learner(compile="off")
        learner.fit(self.ids, 0)
        return learner, {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}

    def recorded(self) -> Numbers:
        """Graphs that an epoch's steps and some predictions leave: at least one each on CUDA."""
        learner = self.learner(compile="off")
        stepper = learner.stepper(learner.optimizer(0.01, 0.9, 0.0), learner.cross_entropy)
        learner.take(learner.batches(self.ids, self.epochs, 0), stepper)
        for _ in range(WARM_UP + 1):
            learner.predictor.predict()
        found = {"of steps": stepper.recorded, "of predictions": learner.predictor.recorded}
        counts = {name: float(len(graphs)) for name, graphs in found.items()}
        return at_least(counts, 1.0 if self.device.type == "cuda" else 0.0)

    def predictions(self) -> Numbers:
        """Share of test images that float64 puts into another class, and the largest error of a logit."""
        learner, weights = self.original
        learner.model.load_state_dict(weights)
        ways = {"plain": predict(learner.model, self.data), "recorded": learner.predictor.predict()}
        test_image = normalised(self.data.test.image_NHWC, np.array(self.data.mean), np.array(self.data.std))
        with torch.no_grad():
            exact_NC = deepcopy(learner.model).double().cpu().eval()(test_image.double())
        changed, error = {}, {}
        for way, predictions in ways.items():
            found_NC = torch.from_numpy(predictions.test_NC).double()
            changed[f"changed, {way}"] = float((found_NC.argmax(1) != exact_NC.argmax(1)).double().mean())
            error[f"error, {way}"] = float((found_NC - exact_NC).abs().max())
        return at_most(changed, CHANGED) | error

    def steps_without_fit(self) -> Numbers:
        """Recorded steps of several algorithms in turn; frozen weights must not keep memory of old graphs."""
        learner = self.learner(compile="off")
        for name, layers in (("finetune", None), ("cfk", 2), ("euk", 1), ("cfk", 1)):
            options = {"epochs": 3.0} | ({} if layers is None else {"k": layers})
            algorithm = ALGORITHMS[name]
            algorithm.run(learner, self.ids[:100], self.ids[100:], algorithm.config(**options), 1)
        return at_least({"accuracy": self.accuracy(learner)}, 0.0)

    def observed(self) -> Numbers:
        """Train with an observer of every step; the share of examples that were learned at the end."""
        learner, events = self.learner(compile="off"), TrainingEvents(len(self.data), self.epochs)
        learner.fit(self.ids, 0, events.add)
        return at_least({"learned": float(events.learned_EN[-1].float().mean())}, self.least)

    def algorithm(self, name: str) -> Numbers:
        """Unlearn a sixth of the examples; the accuracy is told, and must be a number."""
        learner, weights = self.original
        learner.model.load_state_dict(weights)
        algorithm = ALGORITHMS[name]
        options: dict[str, Any] = {"epochs": 3.0} if issubclass(algorithm.config, SgdConfig) else {}
        if name == "influence":
            options = {"samples": 200}
        algorithm.run(learner, self.ids[:100], self.ids[100:], algorithm.config(**options), 1)
        return at_least({"accuracy": self.accuracy(learner)}, 0.0)

    def sweep(self) -> Numbers:
        """Train members in a worker process, and reduce them to scores."""
        config = self.learner(compile="off").config
        with tempfile.TemporaryDirectory() as folder:
            device = str(self.device)
            sweep = run_sweep(self.data, config, members=4, out=folder, device=device, workers=1)
            score_N = sweep.memorization().score_N
        return at_least({"mean score": float(np.nanmean(score_N))}, -1.0)


def relative(found: Tensor, exact: Tensor) -> float:
    """Largest error relative to the largest value."""
    return float((found.double() - exact).abs().max() / exact.abs().max())


def at_most(numbers: dict[str, float], bound: float) -> dict[str, float]:
    """The numbers, if none is above ``bound``; NaN is."""
    if not all(value <= bound for value in numbers.values()):
        raise Wrong(f"found {_text(numbers)}, expected at most {bound:g}")
    return numbers


def at_least(numbers: dict[str, float], bound: float) -> dict[str, float]:
    """The numbers, if none is below ``bound``; NaN is."""
    if not all(value >= bound for value in numbers.values()):
        raise Wrong(f"found {_text(numbers)}, expected at least {bound:g}")
    return numbers


def _text(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())
