"""Both ways to train reach the same accuracy, and the record says how well that is known."""

import json
import sys

import numpy as np
import pytest
import torch

from rumfast.bench import accuracy
from rumfast.bench.accuracy import OURS, PLAIN
from rumfast.bench.plain import normalised, plain_loader
from rumfast.config import DataConfig, TrainConfig
from rumfast.data import Dataset, dataset_from_source
from rumfast.evaluation import t_interval
from rumfast.loaders import batch_bounds

TOML = """
[data]
source = "digits"
label_noise = 0.1
train_examples = 400
test_examples = 200

[train]
arch = "resnet8"
width = 8
epochs = 6
batch_size = 32
lr = 0.1
precision = "fp32"

[forget]
request = "random:10"

[[plans]]
name = "none"
steps = "none"
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    file = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    file.write_text(TOML)
    return str(file)


@pytest.fixture(scope="module")
def record(recipe):
    return accuracy.measure([recipe], seeds=2, device="cpu")


def test_both_ways_learn_equally_well(record):
    (row,) = record["rows"]
    for way in (OURS, PLAIN):
        assert min(row["accuracy"][way]["values"]) > 0.6  # a tenth by chance
    assert abs(row["difference"]["mean"]) < 0.15


def test_record_says_what_was_trained_and_how_well_it_is_known(record):
    (row,) = json.loads(json.dumps(record, allow_nan=False))["rows"]
    assert record["schema"] == accuracy.SCHEMA and record["environment"]["torch"] == torch.__version__
    found = {key: row[key] for key in ("examples", "test_examples", "epochs", "seeds", "arch", "dtype")}
    assert found == {
        "examples": 400, "test_examples": 200, "epochs": 6, "seeds": 2, "arch": "resnet8", "dtype": "float32"
    }  # fmt: skip
    values = {way: row["accuracy"][way]["values"] for way in (OURS, PLAIN)}
    assert row["difference"]["values"] == [a - b for a, b in zip(values[OURS], values[PLAIN], strict=True)]
    assert row["difference"]["low"] == t_interval(row["difference"]["values"], (-1, 1)).low
    assert all(len(row["seconds"][way]) == 2 and min(row["seconds"][way]) > 0 for way in (OURS, PLAIN))


def test_the_plain_way_follows_its_seed_and_leaves_the_global_generator(digits):
    config = TrainConfig(arch="resnet8", width=4, epochs=1, flip=True, crop_padding=1, precision="fp32")
    state = torch.get_rng_state()
    data, cpu = digits.take(64, 100), torch.device("cpu")
    once, again = (accuracy.train_plainly(data, config, 5, cpu)[0] for _ in range(2))
    assert once == again
    assert torch.equal(torch.get_rng_state(), state)


def test_the_plain_way_takes_batches_of_our_size(digits, monkeypatch):
    config = TrainConfig(arch="resnet8", width=4, epochs=1, batch_size=24, precision="fp32")
    asked, loader = [], accuracy.plain_loader
    monkeypatch.setattr(
        accuracy, "plain_loader", lambda *data, **options: asked.append(options) or loader(*data, **options)
    )
    accuracy.train_plainly(digits, config, 0, torch.device("cpu"))
    assert asked[0]["batch_size"] == 25 == batch_bounds(300, 24)[0][1]


@pytest.mark.parametrize("random", [{}, {"flip": True}, {"crop_padding": 3}])
def test_plain_images_change_only_where_the_recipe_says(digits, random):
    image_NHWC, label_N = digits.train.image_NHWC[:20], np.arange(20)
    data = Dataset.from_arrays(image_NHWC, label_N, image_NHWC, label_N, [str(label) for label in label_N])
    options = {"flip": False, "crop_padding": 0} | random
    loader = plain_loader(data, batch_size=7, workers=0, device=torch.device("cpu"), **options)
    image, label = (torch.cat(parts) for parts in zip(*loader, strict=True))
    expected = normalised(image_NHWC, np.array(data.mean), np.array(data.std))[label]
    same = torch.isclose(image, expected, atol=1e-5).flatten(1).all(1)
    assert bool(same.all()) == (not random)
    if "flip" in random:
        mirrored = torch.isclose(image, expected.flip(3), atol=1e-5).flatten(1).all(1)
        assert bool((same | mirrored).all())


def test_examples_are_those_that_a_run_would_train_on(packed):
    noisy = {"label_noise": 0.1, "seed": 1}
    unpacked = accuracy.load(DataConfig(source="digits", train_examples=90, **noisy))
    from_folder = accuracy.load(DataConfig(path="elsewhere", train_examples=90, seed=1), str(packed))
    assert unpacked.fingerprint == from_folder.fingerprint
    assert unpacked.fingerprint != dataset_from_source("digits").take(90, seed=1).fingerprint


def test_table_has_intervals_where_there_are_several_models():
    row = {
        "recipe": "tiny", "arch": "resnet8", "dtype": "bfloat16", "examples": 1400, "test_examples": 100,
        "epochs": 5, "seeds": 2,
        "accuracy": {OURS: {"mean": 0.9, "low": 0.85, "high": 0.95}, PLAIN: {"mean": 0.91, "low": None}},
        "difference": {"mean": -0.01, "low": -0.03, "high": 0.01},
        "seconds": {OURS: [2.0, 4.0], PLAIN: [10.0, 12.0]},
    }  # fmt: skip
    environment = {"gpu": None, "cpu": "a CPU", "torch": "2.11", "rumfast": "1", "commit": "abc"}
    lines = accuracy.accuracy_table({"rows": [row], "environment": environment}).splitlines()
    assert lines[2] == (
        "| tiny, 1,400 examples, 5 epochs | bfloat16 | 2 each | 0.9000 [0.8500, 0.9500] | 0.9100 "
        "| -0.0100 [-0.0300, +0.0100] | 3 | 11 |"
    )
    assert {line.count("|") for line in lines[:3]} == {9}


def test_command_writes_the_record(recipe, tmp_path, monkeypatch, capsys):
    out = tmp_path / "accuracy.json"
    words = ["accuracy", "--recipe", recipe, "--seeds", "1", "--quick", "--save", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    accuracy.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["epochs"], row["seeds"], row["difference"]["low"]) == (1, 1, None)
    assert "| run, 200 examples, 1 epochs |" in capsys.readouterr().out
