"""Each algorithm on digits of which some have wrong labels: it forgets those and keeps the others."""

import numpy as np
import pytest

import rumfast as rf
from rumfast.algorithms import ALGORITHMS
from rumfast.data import Dataset
from rumfast.refinement import Group

# Plan: the highest forget accuracy that counts as forgotten, and the least retain accuracy as kept.
FORGETTING = {
    "retrain": (0.2, 0.98),
    "finetune(lr=0.2)": (0.7, 0.98),
    "l1_sparse(lr=0.2, alpha=0.001)": (0.4, 0.95),
    "neggrad(lr=0.05)": (0.8, 0.85),
    "neggrad_plus(lr=0.03, alpha=0.9)": (0.2, 0.95),
    "random_label(lr=0.03)": (0.2, 0.98),
    "salun(lr=0.03)": (0.2, 0.98),
    "scrub(lr=0.02)": (0.5, 0.95),
    "influence(alpha=0.2)": (0.7, 0.9),
    "bad_teacher(lr=0.05)": (0.5, 0.95),
    "cfk(lr=0.2, k=3)": (0.8, 0.98),
    "euk(lr=0.1, k=3)": (0.2, 0.98),
}


@pytest.fixture(scope="module")
def recipe():
    return rf.TrainConfig(arch="resnet8", width=8, epochs=25, batch_size=32, lr=0.1, precision="fp32")


@pytest.fixture(scope="module")
def noisy():
    """400 digits, and the 30 of them whose labels are three too high."""
    data = rf.load_dataset("digits").take(400, 100)
    label_N, flipped = data.train.label_N.copy(), np.random.default_rng(3).choice(400, 30, replace=False)
    label_N[flipped] = (label_N[flipped] + 3) % 10
    images = data.train.image_NHWC, data.test.image_NHWC
    changed = Dataset.from_arrays(images[0], label_N, images[1], data.test.label_N, data.classes)
    return changed, np.sort(flipped)


@pytest.fixture(scope="module")
def original(noisy, recipe):
    return rf.train(noisy[0], recipe, device="cpu")


@pytest.fixture
def accuracies(noisy, recipe, original):
    """(forget, retain) accuracy after a plan, by the labels the original was trained on."""

    def after(plan, forget):
        data = noisy[0]
        split = rf.Split.from_ids(forget, len(data))
        result = rf.rum(original, data, split, (Group("all", forget),), plan, recipe, device="cpu")
        predictions = rf.predict(result.model, data)
        return [predictions.accuracy("train", ids) for ids in (split.forget, split.retain)]

    return after


def test_the_original_has_memorized_all(accuracies, noisy):
    assert accuracies("none", noisy[1]) == [1.0, 1.0]


@pytest.mark.parametrize("plan", FORGETTING)
def test_wrong_labels_are_forgotten(plan, accuracies, noisy):
    highest, least = FORGETTING[plan]
    forgotten, kept = accuracies(plan, noisy[1])
    assert forgotten <= highest and kept >= least


def test_ssd_forgets_a_class(accuracies, noisy):
    """Single examples share their important weights with all others; a class has some of its own."""
    threes = np.flatnonzero(noisy[0].train.label_N == 3)
    forgotten, kept = accuracies("ssd(alpha=9)", threes)
    assert forgotten <= 0.8 and kept >= 0.95


def test_every_algorithm_is_here():
    named = {plan.split("(")[0] for plan in FORGETTING}
    assert named == set(ALGORITHMS) - {"none", "ssd"}
