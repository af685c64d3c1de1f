"""The sixteen odd inputs: a one-line error before any training, or a documented result."""

import numpy as np
import pytest

from rumfast.store import read_npz

N, CLASSES = 65, 3  # N mod batch size (64) is 1

RECIPE = """
[data]
path = "npz:{data}"
[train]
arch = "resnet8"
width = 4
epochs = 1
batch_size = 64
precision = "fp32"
[forget]
request = "{request}"
refine = "random"
[evaluate]
seeds = 1
oracles = 3
[[plans]]
name = "none"
steps = "none"
"""


def arrays(n=N):
    draw = np.random.default_rng(0)
    return {
        "train_images": draw.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8),
        "train_labels": np.arange(n) % CLASSES,
        "test_images": draw.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8),
        "test_labels": np.arange(9) % CLASSES,
        "classes": np.array(["a", "b", "c"]),
    }


def recipe_file(tmp_path, content, request):
    np.savez(tmp_path / "data.npz", **content)
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE.format(data=tmp_path / "data.npz", request=request))
    return file


def label_of(value, dtype):
    labels = (np.arange(N) % CLASSES).astype(dtype)
    labels[7] = value
    return labels


BAD_DATA = {
    "image shape": ({"train_images": np.zeros((N, 8, 8), np.uint8)}, "shape"),
    "image dtype": ({"train_images": np.zeros((N, 8, 8, 3), np.float32)}, "float32"),
    "no images": (
        {"train_images": np.zeros((0, 8, 8, 3), np.uint8), "train_labels": np.zeros(0, np.int64)},
        "none",
    ),
    "label -1": ({"train_labels": label_of(-1, np.int64)}, "-1"),
    "label C": ({"train_labels": label_of(CLASSES, np.int64)}, "found 3 in row 7"),
    "label float": ({"train_labels": label_of(0.5, np.float64)}, "float64"),
    "label NaN": ({"train_labels": label_of(np.nan, np.float64)}, "NaN"),
}

BAD_FORGET = {
    "empty": (np.array([], np.int64), "no ids"),
    "whole": (np.arange(N), "all 65"),
    "duplicated": (np.array([3, 4, 3]), "id 3 more than once"),
    "out of range": (np.array([1, N]), "id 65"),
    "boolean": (np.arange(N) < 5, "bool"),
}


def assert_one_line_error(outcome, *expected):
    assert outcome.code == 4
    assert outcome.stderr.count("\n") == 1 and outcome.stderr.startswith("rumfast: ")
    assert "Traceback" not in outcome.stderr
    for text in expected:
        assert text in outcome.stderr


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused_by_run_and_by_pack(case, rumfast, tmp_path):
    changed, expected = BAD_DATA[case]
    recipe = recipe_file(tmp_path, arrays() | changed, "random:9")
    outcome = rumfast("run", recipe, "--out", tmp_path / "run")
    assert_one_line_error(outcome, "train", expected)
    assert not (tmp_path / "run" / "original").exists()
    outcome = rumfast("data", "pack", f"npz:{tmp_path / 'data.npz'}", "--out", tmp_path / "packed")
    assert_one_line_error(outcome, "train", expected)
    assert not list(tmp_path.glob("packed/*"))


@pytest.mark.parametrize("case", BAD_FORGET)
def test_bad_forget_set_is_refused_before_training(case, rumfast, tmp_path):
    ids, expected = BAD_FORGET[case]
    np.save(tmp_path / "ids.npy", ids)
    recipe = recipe_file(tmp_path, arrays(), f"ids:{tmp_path / 'ids.npy'}")
    assert_one_line_error(rumfast("run", recipe, "--out", tmp_path / "run"), "forget set", expected)
    assert not (tmp_path / "run" / "original").exists()


def test_a_single_training_image_is_refused(rumfast, tmp_path):
    recipe = recipe_file(tmp_path, arrays(n=1), "class:0")
    assert_one_line_error(
        rumfast("run", recipe, "--out", tmp_path / "run"), "forget set", "all 1 training ids"
    )


@pytest.mark.slow
def test_whole_class_ragged_batch_and_absent_class_give_a_result(rumfast, tmp_path):
    """Class 2 is forgotten whole, so oracles never see it; 65 examples leave one over a batch of 64."""
    recipe = recipe_file(tmp_path, arrays(), "class:2")
    outcome = rumfast("evaluate", recipe, "--out", tmp_path / "run", "--workers", 1, "--json")
    assert outcome.code == 0, outcome.stderr
    assert read_npz(tmp_path / "run" / "forget" / "split.npz")["forget"].tolist() == list(range(2, N, 3))
    assert '"accuracy_forget"' in outcome.stdout
