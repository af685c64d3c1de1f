import shutil

import numpy as np
import pytest

from rumfast.bench.ledger import Unfinished
from rumfast.bench.memorization import measure, unless_unfinished
from rumfast.config import load_recipe
from rumfast.data import load_dataset
from rumfast.errors import MismatchError
from rumfast.score_files import read_scores
from rumfast.store import read_npz
from rumfast.sweeps import Population, load_sweep


def none():
    return 0.0


def plenty():
    return 60.0


@pytest.fixture
def recipe():
    """The digits recipe at four channels and three epochs, on 200 images."""
    digits = load_recipe("digits.toml")
    train = digits.train.model_copy(update={"width": 4, "epochs": 3})
    data = digits.data.model_copy(update={"train_examples": 200, "test_examples": 100})
    return digits.model_copy(update={"train": train, "data": data})


def test_a_sweep_goes_on_where_it_ended(recipe, tmp_path):
    none_left = measure(recipe, "digits", tmp_path, members=6, left=none, device="cpu")
    # No time: only the members that start the workers.
    assert none_left["members"] == none_left["workers"] and none_left["members_per_hour"] is None
    whole = measure(recipe, "digits", tmp_path, members=6, left=plenty, device="cpu")
    assert whole["members"] == 6 and whole["examples_per_member"] == 140
    assert 0 < whole["start_up_s"] < whole["wall_s"] < 60
    trained = 6 - 2 * whole["workers"]
    expected = 3600 * trained / (whole["wall_s"] - whole["start_up_s"])
    assert whole["members_per_hour"] == pytest.approx(expected) and trained > 0
    assert 0.2 < whole["test_accuracy"]["mean"] < 1 and -1 <= whole["split_half"]["spearman"] <= 1
    done = measure(recipe, "digits", tmp_path, members=6, left=plenty, device="cpu")
    assert done["members"] == 6 and done["members_per_hour"] is None
    assert done["split_half"] == whole["split_half"]


def test_a_sweep_goes_on_from_its_votes_alone(recipe, tmp_path):
    files = {"votes": tmp_path / "votes.npz", "scores": tmp_path / "scores.npz"}
    first = measure(recipe, "digits", tmp_path / "one", members=4, left=plenty, device="cpu", **files)
    shutil.rmtree(tmp_path / "one")
    both = measure(recipe, "digits", tmp_path / "two", members=6, left=plenty, device="cpu", **files)
    assert (first["members"], both["members"]) == (4, 6)
    population = Population.open(tmp_path / "two")
    assert population.done(range(6)) == [4, 5]
    whole = measure(recipe, "digits", tmp_path / "whole", members=6, left=plenty, device="cpu")
    assert both["test_accuracy"] == whole["test_accuracy"] and both["split_half"] == whole["split_half"]
    sweep = load_sweep(Population.open(tmp_path / "whole"), range(6))
    found = read_scores(files["scores"], load_dataset("digits").take(200, 100).train.label_N)
    for ours, theirs in zip(found, sweep.memorization(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert sweep.reliability()._asdict() == both["split_half"]


def test_what_is_known_is_saved_after_each_round(recipe, tmp_path):
    scores, asked, saved = tmp_path / "scores.npz", [], []

    def save(record):
        columns = read_npz(scores)
        saved.append((record["members"], int((columns["included"] + columns["excluded"]).max())))

    def left():
        asked.append(1)
        return 60.0 if len(asked) == 1 else 0.0

    files = {"scores": scores, "save": save}
    measure(recipe, "digits", tmp_path / "one", members=7, left=left, device="cpu", workers=1, **files)
    assert saved == [(1, 1), (3, 3)] and len(asked) == 2


def test_no_round_begins_in_less_time_than_the_start_took(recipe, tmp_path):
    found = measure(recipe, "digits", tmp_path, members=4, left=lambda: 0.2, device="cpu", workers=1)
    assert found["members"] == 1 and found["start_up_s"] > 0.2


def test_votes_of_another_sweep_are_refused(recipe, tmp_path):
    votes = tmp_path / "votes.npz"
    measure(recipe, "digits", tmp_path / "one", members=2, left=none, device="cpu", votes=votes)
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 2})})
    with pytest.raises(MismatchError, match="votes of another population"):
        measure(other, "digits", tmp_path / "two", members=2, left=none, device="cpu", votes=votes)


def test_a_sweep_with_missing_members_is_unfinished():
    record = {"members": 3, "members_per_hour": None, "workers": 1, "test_accuracy": {"mean": 0.5, "sd": 0.1}}
    assert unless_unfinished(record, 3) == record
    with pytest.raises(Unfinished):
        unless_unfinished(record, 4)
