"""What the faults are done to: sixty tiny members, and what they must still be afterwards."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rumfast import TrainConfig, load_dataset
from rumfast.store import TEMPORARY, content_digest
from rumfast.sweeps import Population, load_sweep
from rumfast.sweeps.run import sweep_spec
from rumfast.sweeps.worker import Worker

MEMBERS = 60
RECIPE = """
[data]
path = "{path}"
[train]
arch = "resnet8"
width = 4
epochs = 1
batch_size = 16
precision = "fp32"
[forget]
request = "memorization:high:10"
refine = "random"
[sweep]
members = 6
[evaluate]
seeds = 2
oracles = 3
[[plans]]
name = "none"
steps = "none"
"""


@pytest.fixture(scope="package")
def data(tmp_path_factory):
    """100 training and 40 test digits; workers need not import scikit-learn for them."""
    digits, file = load_dataset("digits").take(100, 40), tmp_path_factory.mktemp("data") / "digits.npz"
    parts = {"train": digits.train, "test": digits.test}
    arrays = {f"{name}_images": part.image_NHWC for name, part in parts.items()}
    arrays |= {f"{name}_labels": part.label_N for name, part in parts.items()}
    np.savez(file, classes=np.array(digits.classes), **arrays)
    return load_dataset(f"npz:{file}")


@pytest.fixture(scope="package")
def recipe():
    """Five steps on a member's 70 examples."""
    return TrainConfig(arch="resnet8", width=4, epochs=1, batch_size=16, precision="fp32")


@pytest.fixture(scope="package")
def spec(data, recipe):
    return sweep_spec(data, recipe, seed=3, device="cpu")


@pytest.fixture(scope="package")
def reference(spec, tmp_path_factory):
    """The unbroken run."""
    torch.set_num_threads(1)
    population = Population.create(tmp_path_factory.mktemp("reference"), spec)
    worker = Worker("cpu")
    for index in range(MEMBERS):
        assert worker.do(population.root, index)["status"] == "done"
    return population


@pytest.fixture
def population(tmp_path, spec):
    return Population.create(tmp_path / "sweep", spec)


@pytest.fixture(scope="package")
def recipe_file(data, tmp_path_factory):
    """The same training as a recipe for the command line, with a sweep of six members."""
    file = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    file.write_text(RECIPE.format(path=data.location))
    return file


@pytest.fixture
def copy(tmp_path, reference):
    """The unbroken run again, to be hurt."""
    shutil.copytree(reference.root, tmp_path / "copy")
    return Population.open(tmp_path / "copy")


@pytest.fixture
def assert_identical(reference):
    """Are members and merged arrays those of the unbroken run, and is nothing else there?"""

    def check(population, members):
        names = sorted(path.name for path in (population.root / "members").iterdir())
        assert names == [f"{index:06d}.npz" for index in members]
        for index in members:
            assert content_digest(population.member(index)) == content_digest(reference.member(index))
        ours, theirs = load_sweep(population, members), load_sweep(reference, members)
        for name in ("include_MN", "correct_MN", "margin_MN"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert not list(population.root.rglob(TEMPORARY + "*"))

    return check


@pytest.fixture
def wait_until():
    """Poll until ``happened()`` is true, and return what it was."""

    def wait(happened, seconds=60):
        deadline = time.monotonic() + seconds
        while not (found := happened()):
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.002)
        return found

    return wait


@pytest.fixture
def journal():
    """Lines of a population's journals."""

    def read(population: Population) -> list[str]:
        paths = Path(population.root, "journal").glob("*.jsonl")
        return [line for path in paths for line in path.read_text().splitlines()]

    return read
