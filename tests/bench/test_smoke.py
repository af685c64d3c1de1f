"""A smoke test finds what is wrong, and tries everything there is."""

import dataclasses
from time import monotonic

import numpy as np
import pytest

from rumfast.algorithms import ALGORITHMS
from rumfast.bench import plans, smoke
from rumfast.bench.ledger import Rung
from rumfast.bench.plans import climb_plans, on_scores
from rumfast.bench.smoke import Scene, Wrong, at_least, at_most
from rumfast.bench.workloads import CASES
from rumfast.config import load_recipe
from rumfast.data import load_dataset
from rumfast.errors import UsageError
from rumfast.loaders import batch_bounds
from rumfast.score_files import write_scores


@pytest.fixture(scope="module")
def scene():
    return Scene(dry=True)


def test_every_kernel_and_algorithm_has_a_case():
    names = set(smoke.cases(dry=False))
    assert {f"kernel {name}" for name in CASES} <= names
    assert {f"algorithm {name}" for name in ALGORITHMS} - names == {"algorithm none", "algorithm retrain"}
    assert set(smoke.cases(dry=True)) < names


def test_a_wrong_kernel_is_found(scene):
    kernel = CASES["mean distance"]
    assert 0 < scene.kernel(kernel)["error"] < smoke.SINGLE
    with pytest.raises(Wrong, match="error 0.001"):
        scene.kernel(kernel._replace(ours=lambda *inputs: kernel.ours(*inputs) * 1.001))


def test_wrong_predictions_are_found(scene, monkeypatch):
    found = scene.predictions()
    assert max(found["error, plain"], found["error, recorded"]) < 1e-3
    predict = smoke.predict

    def shifted(model, data):
        found = predict(model, data)
        return dataclasses.replace(found, test_NC=np.roll(found.test_NC, 1, axis=1))

    monkeypatch.setattr(smoke, "predict", shifted)
    with pytest.raises(Wrong, match="changed, plain"):
        scene.predictions()


def test_batches_have_two_sizes(scene):
    for each in (scene, Scene(dry=False)):
        sizes = {stop - start for start, stop in batch_bounds(len(each.ids), 64)}
        assert len(sizes) == 2


def test_wrong_neighbours_are_found_and_ties_are_not(scene, monkeypatch):
    draw, nearest = smoke.normal, smoke.nearest
    assert scene.nearest()["distance"] < smoke.NEAR
    monkeypatch.setattr(smoke, "nearest", lambda x_ND, y_MD, k: (None, nearest(x_ND, y_MD, k + 1)[1][:, 1:]))
    with pytest.raises(Wrong, match="distance"):
        scene.nearest()
    # Each point is there twice, and the second one is named first.
    monkeypatch.setattr(smoke, "normal", lambda random, n, width: draw(random, n // 2, width).repeat(2, 1))
    monkeypatch.setattr(
        smoke, "nearest", lambda x_ND, y_MD, k: (None, nearest(x_ND, y_MD, k)[1].add(250).remainder(500))
    )
    assert scene.nearest()["distance"] < smoke.NEAR


def test_bounds_hold_for_every_number_and_not_for_nan():
    assert at_most({"a": 1.0}, 1.0) == at_least({"a": 1.0}, 1.0) == {"a": 1.0}
    for check, numbers in ((at_most, {"a": 0.0, "b": 2.0}), (at_least, {"a": 2.0, "b": 0.0})):
        with pytest.raises(Wrong, match="expected at"):
            check(numbers, 1.0)
        with pytest.raises(Wrong):
            check({"a": float("nan")}, 1.0)


@pytest.fixture
def scores(tmp_path):
    label_N = load_dataset("digits").train.label_N
    write_scores(tmp_path / "scores.npz", {"label": label_N, "memorization": np.linspace(0, 1, len(label_N))})
    return tmp_path / "scores.npz"


def test_a_recipe_on_scores_forgets_the_same_share(scores):
    recipe = load_recipe("cifar10-resnet18.toml")
    small = on_scores(recipe, "digits", scores)
    examples = len(load_dataset("digits"))
    assert small.forget.request == f"memorization:mixed:{3000 * examples // 45_000}"
    assert small.data.path == "digits" and small.data.train_examples == examples
    assert small.sweep.scores == str(scores) and small.evaluate.seeds == plans.SEEDS


def test_plans_are_evaluated_anew_on_other_scores(scores, tmp_path, monkeypatch):
    done, recipe = [], load_recipe("digits.toml")

    def advance(recipe, plans, *, until, folder, **_):
        done.append(until)
        if until != "evaluate":
            (folder / {"train": "original"}.get(until, until)).mkdir(parents=True)
        return until

    monkeypatch.setattr(plans, "advance", advance)

    def climb(path=scores):
        rung = Rung("plans", tmp_path, tmp_path / "work", monotonic() + 60)
        climb_plans(rung, recipe, "digits", path, tmp_path / "plans.json")

    climb()
    climb()
    assert done == ["train", "oracles"] + ["evaluate"] * len(recipe.plans)
    (tmp_path / "work").rename(tmp_path / "lost")  # as on another machine
    climb()
    assert done[2 + len(recipe.plans) :] == ["train", "oracles"]
    done.clear()
    (tmp_path / "plans.json").touch()
    label_N = load_dataset("digits").train.label_N
    write_scores(scores, {"label": label_N, "memorization": np.zeros(len(label_N))})
    climb()
    assert len(done) == 2 + len(recipe.plans) and not (tmp_path / "plans.json").exists()
    with pytest.raises(UsageError, match="climb the rung memorization first"):
        climb(tmp_path / "none.npz")
