"""Fault 8: a loss that is not a number, at the first step, in the middle and at the last."""

import numpy as np
import pytest
import torch

from rumfast.errors import DivergedError
from rumfast.store import TEMPORARY, read_npz
from rumfast.sweeps import Population, load_sweep
from rumfast.sweeps.journal import read_history
from rumfast.sweeps.worker import Worker

STEPS = 5  # of a member: 70 examples in batches of 16
MOMENTS = {"first": 0, "middle": 2, "last": STEPS - 1}


def poisoned_worker(population, moment):
    """A worker whose model answers NaN in one training step of the next member."""
    worker, steps = Worker("cpu"), []

    def poison(model, _, logits):
        if model.training:
            steps.append(None)
            if len(steps) == MOMENTS[moment] + 1:
                return logits * torch.nan
        return logits

    worker._learner(population.spec).model.register_forward_hook(poison)
    return worker, steps


@pytest.mark.faults
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_member_is_marked_and_its_predictions_are_not_stored(moment, population, spec, reference):
    worker, steps = poisoned_worker(population, moment)
    assert worker.do(population.root, 0)["status"] == "diverged" and len(steps) == STEPS
    record = population.record(0)
    assert record.diverged and np.flatnonzero(record.include_N).tolist() == spec.subset(0, 100).tolist()
    arrays = read_npz(population.member(0))
    assert all(arrays[name].size == 0 for name in ("correct", "correct_test", "margin", "margin_test"))
    # The next member starts from new weights: none of the NaN is left.
    assert worker.do(population.root, 1)["status"] == "done"
    np.testing.assert_array_equal(population.record(1).margin_N, reference.record(1).margin_N)


@pytest.mark.faults
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_model_that_diverged_is_not_stored_at_all(moment, spec, tmp_path):
    original = Population.create(tmp_path, spec.model_copy(update={"kind": "original", "include": None}))
    worker, _ = poisoned_worker(original, moment)
    with pytest.raises(DivergedError, match="the loss is nan; lower lr"):
        worker.do(tmp_path, 0)
    assert original.done(range(3)) == [] and not list(tmp_path.rglob(TEMPORARY + "*"))
    assert [failure.kind for failure in read_history(tmp_path).failures] == ["DivergedError"]


@pytest.mark.faults
@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 1e30, "schedule": "constant"},  # infinite weights after the first step
        {"lr": 1e30, "schedule": "constant", "warmup_epochs": 0.5},  # the first step's lr is 0
        {"lr": 1e38, "schedule": "constant", "warmup_epochs": 1.0, "momentum": 0.0, "epochs": 1},
    ],
)
def test_a_recipe_that_does_not_train_marks_every_member(changes, spec, recipe, tmp_path):
    population = Population.create(
        tmp_path, spec.model_copy(update={"train": recipe.model_copy(update=changes)})
    )
    worker = Worker("cpu")
    assert [worker.do(tmp_path, index)["status"] for index in range(2)] == ["diverged"] * 2
    with pytest.raises(DivergedError, match="2 of 2 members diverged"):
        load_sweep(population, range(2)).memorization()


@pytest.mark.faults
def test_a_sweep_of_sixty_bears_one_diverged_member_and_not_two(copy, reference):
    for index, diverged in ((31, 1), (7, 2)):
        copy.member(index).unlink()
        poisoned_worker(copy, "middle")[0].do(copy.root, index)
        sweep = load_sweep(copy, range(60))
        if diverged == 1:
            assert sweep.diverged == 1 and sweep.correct_MN.shape == (59, 100)
            np.testing.assert_array_equal(sweep.margin_MN[31], reference.record(32).margin_N)
        else:
            with pytest.raises(DivergedError, match="2 of 60 members diverged, more than 2%") as error:
                sweep.memorization()
            assert error.value.exit_code == 6
