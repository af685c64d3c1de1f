"""Peers do the same work as ours: otherwise a ratio means nothing."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from rumfast.algorithms import ALGORITHMS
from rumfast.bench import loader, sweep, train, unlearn
from rumfast.bench.member import train_member
from rumfast.bench.plain import normalised, plain_epoch
from rumfast.bench.setting import Setting, random_dataset
from rumfast.config import TrainConfig
from rumfast.data import Dataset, Split, load_dataset, write_beton
from rumfast.models import build_model, initialize_
from rumfast.sweeps.run import sweep_spec
from rumfast.training import Learner, learning_rate

CPU = torch.device("cpu")
TINY = Setting(CPU, quick=True, copy_gb_s=10.0, matmul_gflop_s={"float32": 10.0, "bfloat16": 40.0})


def grey_images(examples=20):
    """Images of one grey level each: no crop of up to 4 pixels and no flip can change their middle."""
    image = np.broadcast_to(np.arange(examples, dtype=np.uint8)[:, None, None, None], (examples, 12, 12, 3))
    label = np.arange(examples) % 3
    return Dataset.from_arrays(image, label, image, label, ["a", "b", "c"])


def middles(epochs):
    pixels = {}
    for image, label in epochs():
        assert image.dtype == torch.float32 and image.shape[1:] == (3, 12, 12)
        pixels |= {tuple(pixel.tolist()): int(y) for pixel, y in zip(image[:, :, 6, 6], label, strict=True)}
    return sorted(pixels.items())


def same_epochs(theirs, ours):
    assert len(ours) == len(theirs) == 20
    np.testing.assert_allclose([key for key, _ in theirs], [key for key, _ in ours], rtol=1e-5, atol=1e-5)
    assert [label for _, label in theirs] == [label for _, label in ours]


def test_plain_loader_gives_our_images():
    data = grey_images()
    theirs = loader.plain_epochs(data, CPU, 8)["DataLoader, 0 workers"]
    same_epochs(middles(theirs), middles(loader.resident_epochs(data, CPU, 8)))
    assert loader.drain(theirs) == 20


@pytest.mark.filterwarnings("ignore")
def test_loader_suite_tells_sizes_apart(monkeypatch):
    """Without FFCV, which compiles for half a minute; its peers have a test of their own."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ffcv" else find(name))
    sizes = [loader.Images(32, (20,) * 3, (8,) * 3), loader.Images(12, (7,) * 3, (4,) * 3)]
    monkeypatch.setattr(loader, "SIZES", sizes)
    measured = loader.cases(TINY)
    assert list(measured) == ["loaders", "loaders, 12×12"]
    found = {one["name"]: one for measure in measured.values() for one in measure()}
    assert set(found) == {"loader resident", "loader resident, 12×12"}
    assert found["loader resident, 12×12"]["shape"] == "[7, 12, 12, 3] uint8, batch 4, crop 4, flip"
    for one in found.values():
        assert one["peers"][loader.FFCV] == {"missing": "not installed"}
        assert set(one["ratio"]) == {"DataLoader, 0 workers", "DataLoader, 2 workers"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="needs ffcv")
@pytest.mark.filterwarnings("ignore")
def test_ffcv_gives_our_images_and_gives_the_threads_back(tmp_path):
    data, beton = grey_images(), tmp_path / "train.beton"
    write_beton(beton, data.train)
    threads = torch.get_num_threads()
    ours = middles(loader.resident_epochs(data, CPU, 8))
    same_epochs(middles(loader.ffcv_epochs(beton, data, CPU, 8)), ours)
    same_epochs(middles(loader.streaming_epochs(beton, data, CPU, 8)), ours)
    assert torch.get_num_threads() == threads


def test_plain_epoch_takes_the_steps_that_ours_takes():
    config = TrainConfig(arch="resnet8", width=4, batch_size=8, lr=0.05, precision="fp32", flip=True)
    learner = Learner(random_dataset(24, size=8), config, "cpu")
    ids = torch.arange(24)
    peer = build_model("resnet8", 10, width=4, seed=3).to(memory_format=torch.contiguous_format)
    initialize_(learner.model, 3)
    optimizer = learner.optimizer(config.lr, config.momentum, config.weight_decay)
    ours = learner.descend(learner.batches(ids, 1, 0), optimizer, learner.cross_entropy)
    theirs = plain_epoch(peer, train.plain_sgd(peer, config), train.pairs(learner, ids, 0))
    assert theirs == pytest.approx(ours, rel=1e-4)
    for mine, other in zip(learner.model.state_dict().values(), peer.state_dict().values(), strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-3, atol=1e-4)


def test_operations_of_a_network_with_a_known_count():
    # ResNet-9 at width 64: five stages of equal cost, the stem, whose images need no gradient, and the head.
    stage, stem, head = 64 * 128 * 9 * 32**2, 3 * 64 * 9 * 32**2, 512 * 10
    assert train.gflop_per_image("resnet9") == pytest.approx(2e-9 * (3 * 5 * stage + 2 * stem + 3 * head))


def test_plain_worker_follows_the_recipe(tmp_path):
    data = load_dataset("digits").take(60, 30)
    config = sweep.recipe(epochs=2)
    spec = sweep_spec(data, config, include=0.7, device="cpu")
    folder = sweep.prepare(tmp_path / "plain", data, spec, members=2)
    accuracy = train_member(folder, 1, CPU)
    with np.load(folder / "logits-1.npz") as logits:
        assert logits["train"].shape == (60, 10) and np.isfinite(logits["train"]).all()
        assert accuracy == pytest.approx((logits["test"].argmax(1) == data.test.label_N).mean())
    written = json.loads((folder / "recipe.json").read_text())
    assert written["lr_of_step"] == [learning_rate(config, float(epoch)) for epoch in range(3)]
    with np.load(folder / "arrays.npz") as arrays:
        assert np.array_equal(arrays["ids"][1], spec.subset(1, 60))


def test_every_algorithm_starts_from_the_same_model():
    data = load_dataset("digits").take(60, 30)
    learner = Learner(data, sweep.recipe(epochs=1), "cpu")
    calls = unlearn.algorithms(learner, Split.from_ids(range(6), 60))
    assert set(calls) == {unlearn.TRAIN, unlearn.RETRAIN, *ALGORITHMS} - {"none", "retrain"}
    timed = ", ".join(name.removeprefix("unlearn ") for name in unlearn.cases(TINY))
    assert timed.split(", ") == list(unlearn.TIMED)
    assert unlearn.spent(learner, calls[unlearn.TRAIN]) == unlearn.EPOCHS * 54
    assert unlearn.spent(learner, calls[unlearn.RETRAIN]) == 54
    assert unlearn.spent(learner, calls["finetune"]) == 540
    once = [parameter.clone() for parameter in learner.model.parameters()]
    calls["random_label"]()
    calls["finetune"]()
    assert all(torch.equal(*pair) for pair in zip(once, learner.model.parameters(), strict=True))


def test_time_per_gradient_is_divided_by_each_ones_own_gradients():
    learner = Learner(random_dataset(10, size=8), sweep.recipe(epochs=1), "cpu")
    samples = {"salun": [300.0], unlearn.TRAIN: [50.0], unlearn.RETRAIN: [900.0]}
    gradients = {"salun": 3000, unlearn.TRAIN: 1000, unlearn.RETRAIN: 9000}
    per_gradient, whole = unlearn._two_cases("salun", "tiny", learner, samples, gradients)
    assert per_gradient["ours"]["p50"] == 100.0 and per_gradient["ratio"] == {"training": 0.5}
    assert whole["ours"]["p50"] == 300.0 and whole["ratio"] == {"retraining": 3.0}


def test_train_suite_states_its_peers(monkeypatch):
    monkeypatch.setattr(Setting, "size", lambda self, quick, full, cuda: quick // 8)
    ((one,),) = (measure() for measure in train.cases(TINY).values())
    assert one["shape"] == "resnet8, [8, 32, 32, 3] uint8, batch 8"
    assert set(one["peers"]) == {train.PLAIN, train.HALF, train.COMPILED, train.REDUCED, train.FFCV}
    assert one["notes"]["images/s"]["ours"] == pytest.approx(8000 / one["ours"]["p50"])


@pytest.mark.slow
def test_sweep_suite_trains_the_same_members_in_three_ways(monkeypatch):
    monkeypatch.setattr(sweep, "load_dataset", lambda name: load_dataset(name).take(300, 200))
    monkeypatch.setattr(Setting, "size", lambda self, quick, full, cuda: quick // 2)
    (one,) = sweep.cases(TINY)["sweep"]()
    assert one["shape"] == "resnet8, digits, 210 of 300 examples, 2 epochs, members 1"
    assert set(one["ratio"]) == {sweep.ONE, sweep.MANY}
    accuracy = one["notes"]["test accuracy"]
    assert accuracy[sweep.ONE] == pytest.approx(accuracy[sweep.MANY], abs=0.1)
    assert all(0.2 < value <= 1 for value in accuracy.values())


def test_normalised_images_have_mean_0_and_deviation_1():
    data = random_dataset(50, size=8)
    image = normalised(data.train.image_NHWC, np.array(data.mean), np.array(data.std))
    assert image.shape == (50, 3, 8, 8) and image.dtype == torch.float32
    torch.testing.assert_close(image.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(image.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
