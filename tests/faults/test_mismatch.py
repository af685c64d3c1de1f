"""Fault 12: resuming with one field changed is refused, and the difference is spelled out."""

import tomllib

import numpy as np
import pytest
import tomli_w

from rumfast.config import load_recipe
from rumfast.pipeline.stages import Run
from rumfast.sweeps import LocalEngine

CHANGES = {
    "data.train_examples": 90,
    "data.test_examples": 30,
    "data.seed": 1,
    "data.label_noise": 0.1,
    "train.arch": "resnet9",
    "train.width": 8,
    "train.stem_stride": 2,
    "train.epochs": 2,
    "train.batch_size": 32,
    "train.lr": 0.2,
    "train.momentum": 0.8,
    "train.weight_decay": 0.0,
    "train.schedule": "constant",
    "train.milestones": [1],
    "train.gamma": 0.5,
    "train.warmup_epochs": 0.5,
    "train.flip": True,
    "train.crop_padding": 1,
    "train.precision": "bf16",
    "train.seed": 7,
    "sweep.include": 0.6,
    "sweep.seed": 9,
    "forget.request": "random:10",
    "forget.refine": "none",
    "forget.groups": 4,
    "forget.seed": 2,
}


@pytest.fixture
def run_folder(recipe_file, tmp_path):
    """A run that has begun: configuration, originals' and sweep's specs."""
    run = Run(load_recipe(recipe_file), tmp_path / "run", LocalEngine(1, "cpu"), "cpu")
    run.pack()
    assert run.originals and run.sweep_population
    return tmp_path / "run"


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.faults
@pytest.mark.parametrize("command", [("run",), ("sweep", "run")])
def test_each_changed_field_is_named_with_both_values(command, run_folder, recipe_file, tmp_path, rumfast):
    original, before = tomllib.loads(recipe_file.read_text()), snapshot(run_folder)
    assert len(CHANGES) >= 20
    for field, value in CHANGES.items():
        section, key = field.split(".")
        changed = original | {section: original[section] | {key: value}}
        (tmp_path / "changed.toml").write_text(tomli_w.dumps(changed))
        outcome = rumfast(*command, tmp_path / "changed.toml", "--out", run_folder, "--device", "cpu")
        assert outcome.code == 3 and outcome.stderr.count("\n") == 1, outcome.stderr
        assert outcome.stderr.count(": there ") == 1 and f"{field}: there " in outcome.stderr
        here = str(value) if value != 0.0 else "0.0"
        assert f", here {here}" in outcome.stderr
        assert snapshot(run_folder) == before


@pytest.mark.faults
def test_two_changed_fields_are_both_named(run_folder, recipe_file, tmp_path, rumfast):
    text = recipe_file.read_text().replace("width = 4", "width = 8").replace("epochs = 1", "epochs = 3")
    (tmp_path / "changed.toml").write_text(text)
    outcome = rumfast("train", tmp_path / "changed.toml", "--out", run_folder, "--device", "cpu")
    assert outcome.code == 3
    assert "train.epochs: there 1, here 3; train.width: there 4, here 8" in outcome.stderr


@pytest.mark.faults
@pytest.mark.parametrize("array", ["train_images", "train_labels", "test_images", "classes"])
def test_changed_data_under_the_same_name_is_refused(array, data, recipe_file, tmp_path, rumfast):
    with np.load(data.location.removeprefix("npz:")) as stored:
        arrays = dict(stored)
    np.savez(tmp_path / "data.npz", **arrays)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_file.read_text().replace(data.location, f"npz:{tmp_path / 'data.npz'}"))
    out = tmp_path / "run"
    run = Run(load_recipe(recipe), out, LocalEngine(1, "cpu"), "cpu")
    run.pack()
    before = snapshot(run.originals.root)
    if array == "classes":
        arrays[array] = arrays[array][::-1]
    else:
        arrays[array].flat[0] ^= 1
    np.savez(tmp_path / "data.npz", **arrays)
    outcome = rumfast("train", recipe, "--out", out, "--device", "cpu")
    assert outcome.code == 3 and "data.fingerprint: there " in outcome.stderr
    assert snapshot(run.originals.root) == before


@pytest.mark.faults
@pytest.mark.parametrize("field, theirs", [("label_noise", 0.2), ("seed", 2), ("source", "npz:other.npz")])
def test_a_pack_made_with_other_settings_is_refused(field, theirs, packed, recipe_file, tmp_path, rumfast):
    """The pack that lies there: digits with a tenth of the labels flipped by seed 1."""
    said = {"source": "digits", "label_noise": 0.1, "seed": 1, field: theirs}
    lines = "\n".join(f"{key} = {value!r}" for key, value in said.items())
    recipe = recipe_file.read_text().split("[train]", 1)[1]
    (tmp_path / "recipe.toml").write_text(f'[data]\npath = "{packed}"\n{lines}\n[train]{recipe}')
    outcome = rumfast("train", tmp_path / "recipe.toml", "--out", tmp_path / "run", "--device", "cpu")
    assert outcome.code == 3 and f"packed with {field} " in outcome.stderr
    assert str(theirs) in outcome.stderr and not (tmp_path / "run" / "original").exists()
