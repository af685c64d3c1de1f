import pytest
import torch

from rumfast.config import TrainConfig
from rumfast.sweeps import Population
from rumfast.sweeps.run import sweep_spec
from rumfast.sweeps.worker import Worker


@pytest.fixture(scope="package")
def recipe():
    return TrainConfig(arch="resnet8", width=4, epochs=2, batch_size=64, precision="fp32")


@pytest.fixture(scope="package")
def spec(digits, recipe):
    return sweep_spec(digits, recipe, seed=3, device="cpu")


@pytest.fixture(scope="package")
def reference(spec, tmp_path_factory):
    """Six members trained one after another in this process: what every engine must arrive at."""
    torch.set_num_threads(1)
    population = Population.create(tmp_path_factory.mktemp("reference"), spec)
    worker = Worker("cpu")
    for index in range(6):
        assert worker.do(population.root, index)["status"] == "done"
    return population
