"""Members of kind "proxies": what they hold out, what they store, and that nothing changes it."""

import json
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rumfast import predict, train
from rumfast.errors import DataError
from rumfast.inference import logits_of
from rumfast.scores import ProxyTotals, symmetric_divergence
from rumfast.store import TEMPORARY, content_digest
from rumfast.sweeps import LocalEngine, Population
from rumfast.sweeps.proxy_models import HOLDOUT_EPOCHS, PATIENCE, curvatures, fit_holdout
from rumfast.sweeps.worker import Worker
from rumfast.training import Learner


@pytest.fixture(scope="module")
def proxy_spec(spec):
    changes = {"kind": "proxies", "include": None, "excluded": (7, 8)}
    return spec.model_copy(update=changes)


@pytest.fixture(scope="module")
def members(proxy_spec, tmp_path_factory):
    population = Population.create(tmp_path_factory.mktemp("proxies"), proxy_spec)
    for index in range(2):
        assert Worker("cpu").do(population.root, index)["status"] == "done"
    return population


def test_ten_members_hold_out_the_pool_between_them(proxy_spec):
    held = [proxy_spec.holdout(index, 300) for index in range(20)]
    for ten in (held[:10], held[10:]):
        assert sorted(np.concatenate(ten)) == np.setdiff1d(np.arange(300), [7, 8]).tolist()
    assert {len(ids) for ids in held} == {29, 30} and held[0].tolist() != held[10].tolist()
    other = proxy_spec.model_copy(update={"seed": 9})
    assert other.holdout(0, 300).tolist() != held[0].tolist()
    np.testing.assert_array_equal(proxy_spec.holdout(3, 300), held[3])


def test_scores_are_of_what_a_member_was_trained_on(members, proxy_spec):
    for index in range(2):
        scores, metrics = members.proxies(index), members.metrics(index)
        missing = [7, 8, *proxy_spec.holdout(index, 300)]
        for name in ("curvature", "holdout"):
            assert np.flatnonzero(np.isnan(scores[name])).tolist() == sorted(missing)
            assert np.nanmin(scores[name]) > 0
        assert all(metrics[f"{key}_s"] > 0 for key in ("train", "curvature", "holdout"))
        assert PATIENCE < metrics["holdout_epochs"] <= HOLDOUT_EPOCHS


def test_scores_are_those_of_the_definitions(members, proxy_spec, digits, recipe):
    held, seed = proxy_spec.holdout(0, 300), proxy_spec.member_seed(0)
    ids = np.setdiff1d(proxy_spec.pool(300), held)
    learner, measured = Learner(digits, recipe, "cpu"), []
    learner.fit(
        torch.from_numpy(ids),
        seed,
        after_epoch=lambda epoch: measured.append(curvatures(learner, digits, ids)),
    )
    assert len(measured) == recipe.epochs
    np.testing.assert_array_equal(members.proxies(0)["curvature"][ids], np.mean(measured, 0))
    plain = train(digits, recipe, ids, seed=seed, device="cpu")  # measuring changes nothing
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.state_dict().values(), learner.model.state_dict().values(), strict=True)
    )
    before_NC = logits_of(learner.model, digits, digits.train)
    fit_holdout(learner, torch.from_numpy(held), seed)
    after_NC = logits_of(learner.model, digits, digits.train)
    np.testing.assert_array_equal(
        members.proxies(0)["holdout"][ids], symmetric_divergence(before_NC, after_NC)[ids]
    )


def test_curvature_is_measured_in_eval_mode_and_leaves_train_mode_on(digits, recipe):
    learner, ids = Learner(digits, recipe, "cpu"), np.arange(40)
    learner.model.train()
    found = curvatures(learner, digits, ids)
    assert learner.model.training
    learner.model.eval()
    np.testing.assert_array_equal(curvatures(learner, digits, ids), found)
    one = curvatures(
        Learner(digits, recipe.model_copy(update={"batch_size": 7}), "cpu", model=learner.model), digits, ids
    )
    np.testing.assert_allclose(one, found, rtol=1e-3)


def test_curvature_is_that_of_pixels_before_they_are_normalised():
    # One pixel whose channels are the means, and logits w·x̂ and 0 of the normalised pixel, w = (3, −4, 0): in
    # pixels w' = w/std = (6, −16, 0), p = ½ and v = ±(1, −1, 0)/√2. A step of 0.01 moves the logit to
    # −0.01·22/√2 = −0.15556, where p = 0.46119, and the gradient by 0.03881·‖w'‖ = 0.03881·√292.
    linear = torch.nn.Linear(3, 2, bias=False)
    linear.weight.data = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0]])
    model = torch.nn.Sequential(torch.nn.Flatten(), linear)
    learner = SimpleNamespace(model=model, device="cpu", config=SimpleNamespace(batch_size=2))
    image_NHWC = np.array([51, 102, 153], np.uint8).reshape(1, 1, 1, 3)
    train = SimpleNamespace(image_NHWC=image_NHWC, label_N=np.array([0]))
    data = SimpleNamespace(train=train, mean=(0.2, 0.4, 0.6), std=(0.5, 0.25, 1.0))
    (found,) = curvatures(learner, data, np.array([0]))
    assert found == pytest.approx(0.03881 * 292**0.5, rel=1e-3)


@pytest.mark.parametrize(
    "losses, epochs",
    [
        ([3.0, 2.0, 2.5, 2.5, 2.0, 2.2, 0.0], 6),  # four epochs without a better one; equal is not better
        ([3.0, 2.0, 2.5, 2.5, 2.5, 1.9, 2.0, 2.0, 2.0, 2.0, 0.0], 10),
        ([1 / (epoch + 1) for epoch in range(99)], HOLDOUT_EPOCHS),
    ],
)
def test_holdout_training_ends_when_its_loss_no_longer_falls(digits, recipe, monkeypatch, losses, epochs):
    from rumfast.sweeps import proxy_models

    monkeypatch.setattr(proxy_models, "_epoch_losses", lambda *arguments: iter(losses))
    assert fit_holdout(Learner(digits, recipe, "cpu"), torch.arange(20), 0) == epochs


def test_the_loss_of_an_epoch_is_over_its_examples(digits, recipe):
    """At rate 0 it is the mean training-mode loss of its batches, each by its size."""
    from rumfast.sweeps.proxy_models import _epoch_losses

    learner, ids = Learner(digits, recipe, "cpu"), torch.arange(90)  # batches of 45
    found = _epoch_losses(learner, ids, learner.optimizer(0.0, 0.0, 0.0), 5)
    for epoch in range(3):
        loss = next(found)
        learner.model.train()
        batches = list(learner.loader.epoch(ids, epoch, seed=5))
        with torch.no_grad():
            by_hand = sum(learner.cross_entropy(batch)[0].item() * len(batch.id) for batch in batches) / 90
        assert loss == pytest.approx(by_hand, rel=1e-6) and len(batches) == 2


def test_a_diverging_holdout_leaves_curvature_standing(digits, proxy_spec, tmp_path, monkeypatch):
    from rumfast.sweeps import proxy_models

    monkeypatch.setattr(proxy_models, "HOLDOUT_LR", 1e30)
    population = Population.create(tmp_path / "p", proxy_spec)
    assert Worker("cpu").do(population.root, 0)["status"] == "done"
    scores = population.proxies(0)
    assert np.isnan(scores["holdout"]).all() and np.isfinite(scores["curvature"]).sum() == 268
    assert population.metrics(0)["holdout_epochs"] == 0


@pytest.mark.slow
def test_killed_and_resumed_the_scores_are_the_same_bits(members, proxy_spec, tmp_path):
    """A worker is killed at work; the engine starts another, and a second engine finds nothing left to do."""
    population = Population.create(tmp_path / "killed", proxy_spec)
    with LocalEngine(1, "cpu") as engine:
        killed = threading.Event()

        def kill():
            while not killed.is_set():
                process = engine.slots[0]._process
                journals = list(population.root.glob("journal/*.jsonl"))
                if process is not None and any('"begun"' in path.read_text() for path in journals):
                    process.send_signal(signal.SIGKILL)
                    killed.set()
                time.sleep(0.001)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        engine.run(population, range(2))
        killer.join(30)
    assert killed.is_set() and len(list(population.root.glob("journal/*.jsonl"))) == 2
    for index in range(2):
        ours, theirs = (one.member(index) / "proxies.npz" for one in (population, members))
        assert content_digest(ours) == content_digest(theirs)
    assert not list(population.root.rglob(TEMPORARY + "*"))
    stamp = population.member(0).stat().st_mtime_ns
    with LocalEngine(1, "cpu") as engine:
        engine.run(population, range(2))
    assert population.member(0).stat().st_mtime_ns == stamp


def test_originals_store_the_proxies_of_their_training(spec, digits, recipe, tmp_path):
    population = Population.create(
        tmp_path / "original", spec.model_copy(update={"kind": "original", "include": None})
    )
    Worker("cpu").do(population.root, 0)
    totals = ProxyTotals(len(digits))
    model = train(digits, recipe, seed=population.spec.member_seed(0), device="cpu", observe=totals.add)
    for name, column_N in totals.scores().columns().items():
        np.testing.assert_array_equal(population.proxies(0)[name], column_N)
    np.testing.assert_array_equal(population.outputs(0)["train"], predict(model, digits).train_NC)
    metrics = population.metrics(0)
    assert 0 < metrics["observe_s"] < metrics["wall_s"]
    (population.member(0) / "proxies.npz").unlink()
    with pytest.raises(DataError, match="proxies.npz: no such file; delete the folder .*000 and run again"):
        population.proxies(0)
    assert json.loads((population.root / "spec.json").read_text())["kind"] == "original"
