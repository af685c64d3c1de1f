import pytest

from rumfast.bench.memorization import measure
from rumfast.config import load_recipe


@pytest.fixture
def recipe():
    """The digits recipe at four channels and three epochs, on 200 images."""
    digits = load_recipe("digits.toml")
    train = digits.train.model_copy(update={"width": 4, "epochs": 3})
    data = digits.data.model_copy(update={"train_examples": 200, "test_examples": 100})
    return digits.model_copy(update={"train": train, "data": data})


def test_a_sweep_goes_on_where_it_ended(recipe, tmp_path):
    none_left = measure(recipe, "digits", tmp_path, members=6, seconds=0, device="cpu")
    # No time: only the members that start the workers.
    assert none_left["members"] == none_left["workers"] and none_left["members_per_hour"] is None
    whole = measure(recipe, "digits", tmp_path, members=6, seconds=60, device="cpu")
    assert whole["members"] == 6 and whole["examples_per_member"] == 140
    assert 0 < whole["start_up_s"] < whole["wall_s"] < 60
    trained = 6 - 2 * whole["workers"]
    expected = 3600 * trained / (whole["wall_s"] - whole["start_up_s"])
    assert whole["members_per_hour"] == pytest.approx(expected) and trained > 0
    assert 0.2 < whole["test_accuracy"]["mean"] < 1 and -1 <= whole["split_half"]["spearman"] <= 1
    done = measure(recipe, "digits", tmp_path, members=6, seconds=60, device="cpu")
    assert done["members"] == 6 and done["members_per_hour"] is None
    assert done["split_half"] == whole["split_half"]
