import numpy as np
import pytest

from rumfast import Split, train
from rumfast.training import Learner


@pytest.fixture(scope="package")
def recipe():
    from rumfast import TrainConfig

    return TrainConfig(arch="resnet8", width=4, epochs=8, batch_size=64, precision="fp32")


@pytest.fixture(scope="package")
def original(digits, recipe):
    """A model trained on all 300 examples."""
    return train(digits, recipe, device="cpu")


@pytest.fixture(scope="package")
def split():
    """40 examples to forget, 230 to keep, and 30 in neither, as after an earlier request."""
    ids = np.random.default_rng(0).permutation(300)
    return Split(np.sort(ids[:40]), np.sort(ids[40:270]))


@pytest.fixture
def learner(digits, recipe, original):
    """Holds a copy of the original."""
    learner = Learner(digits, recipe, "cpu")
    learner.model.load_state_dict(original.state_dict())
    return learner
