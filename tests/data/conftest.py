import shutil

import numpy as np
import pytest

from rumfast.data import pack


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def npz_file(tmp_path_factory):
    """A source of 50 training and 12 test images of 4×4 pixels, three classes."""
    path = tmp_path_factory.mktemp("source") / "tiny.npz"
    labels = np.arange(50) % 3
    train = dict(train_images=images(50), train_labels=labels)
    test = dict(test_images=images(12, seed=1), test_labels=labels[:12])
    np.savez(path, **train, **test, classes=np.array(["cat", "dog", "owl"]))
    return path


@pytest.fixture(scope="session")
def packed_once(npz_file, tmp_path_factory):
    pytest.importorskip("ffcv")
    out = tmp_path_factory.mktemp("packed") / "tiny"
    pack(f"npz:{npz_file}", out, label_noise=0.1, seed=3)
    return out


@pytest.fixture
def packed(packed_once, tmp_path):
    """A copy of the packed source, with five flipped labels, that a test may damage."""
    return shutil.copytree(packed_once, tmp_path / "tiny")
