"""Probes of a tiny run's populations: whose they are, and that they are done once."""

import numpy as np
import pytest

from rumfast.config import Recipe
from rumfast.errors import UsageError
from rumfast.pipeline import Run
from rumfast.pipeline.probing import SHARE, measure_probes, probe_of
from rumfast.sweeps import LocalEngine, Population

pytestmark = pytest.mark.slow

MEMBERS = range(2)


@pytest.fixture(scope="module")
def made(packed, tmp_path_factory):
    """A run whose originals know the forget set; its oracles have seen none of it."""
    recipe = Recipe.model_validate(
        {
            "data": {"path": str(packed), "train_examples": 200, "test_examples": 100},
            "train": {"arch": "resnet8", "width": 8, "epochs": 20, "batch_size": 32, "precision": "fp32"},
            "forget": {"request": "random:30", "refine": "none"},
            "plans": [{"name": "none", "steps": "none"}],
            "evaluate": {"seeds": 2, "oracles": 3, "mia_examples": 60},
        }
    )
    with LocalEngine(2, "cpu") as engine:
        run = Run(recipe, tmp_path_factory.mktemp("probing") / "run", engine, "cpu")
        run.pack()
        run.train()
        run.oracles()
        run.unlearn()
        yield run


@pytest.fixture(scope="module")
def populations(made):
    return {
        "original": made.originals,
        "oracle": made.oracle_population,
        "none": made.plan_population(made.recipe.plans[0]),
    }


@pytest.fixture(scope="module")
def found(made, populations):
    return measure_probes(made, populations, MEMBERS, fresh=2)


def folders(made):
    return {path.parent: path.parent.name for path in made.dir.root.glob("audit/probes/*/spec.json")}


def test_originals_and_fresh_models_are_the_anchors(found):
    assert list(found) == ["original", "oracle", "none", "fresh"]
    for arrays in found.values():
        assert {name: array.shape for name, array in arrays.items()} == {
            "entanglement": (2,),
            "relearning": (2,),
        }
        assert (arrays["entanglement"] > 0).all() and arrays["relearning"].dtype == np.int64
    assert found["original"]["relearning"].tolist() == [0, 0] and found["fresh"]["relearning"].min() > 20
    assert found["oracle"]["relearning"].max() < found["fresh"]["relearning"].min()
    assert found["original"]["entanglement"].tolist() != found["oracle"]["entanglement"].tolist()
    for name, array in found["original"].items():  # the plan "none" does nothing to them
        np.testing.assert_array_equal(found["none"][name], array)


def test_the_target_is_a_share_of_what_the_originals_know(made, found):
    forget, label_N = made.split.forget, made.data.train.label_N
    accuracies = [
        (made.originals.outputs(index)["train"].argmax(1) == label_N)[forget].mean() for index in MEMBERS
    ]
    specs = [Population.open(folder).spec for folder in folders(made)]
    assert len(specs) == 4 and all(spec.probe == probe_of(30, SHARE * np.mean(accuracies)) for spec in specs)
    assert all(spec.forget == tuple(forget) and spec.train.lr == 0.01 for spec in specs)
    assert not any(spec.train.flip or spec.train.crop_padding for spec in specs)


def test_asked_again_they_are_read(made, populations, found):
    stamps = {
        path: path.stat().st_mtime_ns for folder in folders(made) for path in folder.glob("members/*.json")
    }
    assert len(stamps) == 8
    again = measure_probes(made, populations, MEMBERS, fresh=2)
    for name, arrays in found.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(again[name][key], array)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_other_models_under_the_same_name_are_probed_anew(made, populations, found):
    before = folders(made)
    again = measure_probes(made, {"original": populations["oracle"]}, MEMBERS)
    assert len(folders(made)) == len(before) + 1  # the fresh ones are as they were
    for key, array in found["oracle"].items():
        np.testing.assert_array_equal(again["original"][key], array)


def test_the_anchors_name_is_taken(made, populations):
    with pytest.raises(UsageError, match="fresh is the name of the untrained models"):
        measure_probes(made, {"fresh": populations["oracle"]}, MEMBERS)


@pytest.mark.parametrize("size, every, most", [(1, 1, 200), (64, 1, 200), (513, 2, 270), (3000, 6, 1410)])
def test_looks_and_steps_grow_with_the_forget_set(size, every, most):
    probe = probe_of(size, 0.5)
    assert (probe.every, probe.most, probe.target) == (every, most, 0.5)
