"""What every algorithm promises, run through ``rum`` as users run it."""

import copy
import math

import numpy as np
import pytest
import torch

from rumfast import rum
from rumfast.algorithms import ALGORITHMS, SgdConfig
from rumfast.data import Dataset
from rumfast.plans import parse_plan
from rumfast.refinement import Group

EPOCHS = 2.5
every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


def plan_of(name):
    return f"{name}(epochs={EPOCHS})" if issubclass(ALGORITHMS[name].config, SgdConfig) else name


@pytest.fixture
def unlearn(digits, recipe, original, split):
    def run(name, data=digits, seed=0, forget=split.forget, **options):
        return rum(
            original,
            data,
            split,
            (Group("all", forget),),
            plan_of(name),
            recipe,
            seed=seed,
            device="cpu",
            **options,
        )

    return run


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@every_algorithm
def test_the_original_is_untouched(name, unlearn, original):
    before = state(original)
    original.train()
    result = unlearn(name)
    assert same(before, state(original)) and original.training
    shared = {tensor.data_ptr() for tensor in original.state_dict().values()}
    assert not shared & {tensor.data_ptr() for tensor in result.model.state_dict().values()}
    original.eval()


@every_algorithm
def test_the_result_is_a_model_of_the_same_kind_in_eval_mode(name, unlearn, original):
    original.train()
    model = unlearn(name).model
    original.eval()
    assert type(model) is type(original) and not any(module.training for module in model.modules())
    for (key, ours), (other, theirs) in zip(
        model.state_dict().items(), original.state_dict().items(), strict=True
    ):
        assert key == other and (ours.dtype, ours.device, ours.shape) == (
            theirs.dtype,
            theirs.device,
            theirs.shape,
        )
        assert ours.isfinite().all()


@every_algorithm
def test_the_seed_decides(name, unlearn, original):
    torch.manual_seed(0)
    first = state(unlearn(name, seed=3).model)
    torch.manual_seed(1)
    assert same(first, state(unlearn(name, seed=3).model))
    assert same(first, state(unlearn(name, seed=4).model)) == (name == "none")
    assert same(first, state(original)) == (name == "none")


@every_algorithm
def test_examples_that_are_neither_forgotten_nor_retained_cannot_be_noticed(name, unlearn, digits, split):
    outside = np.setdiff1d(np.arange(300), np.concatenate([split.forget, split.retain]))
    base = state(unlearn(name).model)
    assert len(outside) == 30 and same(base, state(unlearn(name, data=altered(digits, outside)).model))
    if name != "none":
        assert not same(base, state(unlearn(name, data=altered(digits, split.retain[:5])).model))


@pytest.mark.parametrize("name", ["retrain", "finetune"])
def test_what_trains_on_the_retain_set_alone_never_sees_the_forget_set(name, unlearn, digits, split):
    base = state(unlearn(name).model)
    assert same(base, state(unlearn(name, data=altered(digits, split.forget)).model))


def altered(data, ids):
    """Other pixels and labels at ``ids``, under the old normalisation."""
    image_NHWC, label_N = data.train.image_NHWC.copy(), data.train.label_N.copy()
    image_NHWC[ids] = 255 - image_NHWC[ids]
    label_N[ids] = (label_N[ids] + 1) % 10
    other = Dataset.from_arrays(image_NHWC, label_N, data.test.image_NHWC, data.test.label_N, data.classes)
    object.__setattr__(other, "mean", data.mean)
    object.__setattr__(other, "std", data.std)
    return other


@every_algorithm
def test_the_declared_cost_is_what_it_takes(name, unlearn, recipe, split):
    for forget in (split.forget, split.forget[:7], np.concatenate([split.forget, np.arange(0)])):
        per_epoch, once = ALGORITHMS[name].cost(len(forget), len(split.retain), recipe.batch_size)
        declared = recipe.epochs * len(split.retain) if name == "retrain" else EPOCHS * per_epoch + once
        taken = unlearn(name, forget=forget).examples
        batches = 2 if name == "neggrad_plus" else 1
        assert declared <= taken + 1 and taken - declared <= batches * recipe.batch_size, (declared, taken)


@every_algorithm
def test_defaults_are_valid_and_sources_are_given(name):
    algorithm = ALGORITHMS[name]
    assert parse_plan(name)[0].config == algorithm.config() and algorithm.source


@every_algorithm
def test_results_do_not_depend_on_the_order_ids_are_given_in(name, unlearn, split):
    shuffled = np.random.default_rng(1).permutation(split.forget)
    assert same(state(unlearn(name).model), state(unlearn(name, forget=shuffled).model))


def test_retrain_equals_training_on_the_retain_set(unlearn, digits, recipe, split):
    from rumfast.runtime import derive_seed
    from rumfast.training import train

    expected = train(digits, recipe, split.retain, seed=derive_seed("step", 9, 0), device="cpu")
    assert same(state(expected), state(unlearn("retrain", seed=9).model))


def test_wall_time_and_steps_are_reported(unlearn):
    found = unlearn("finetune")
    assert found.steps == ("all: finetune(epochs=2.5)",) and 0 < found.wall_s < 60
    assert found.examples == pytest.approx(230 * EPOCHS, abs=64) and math.isfinite(found.examples)


def test_deep_copies_survive(original):
    assert same(state(copy.deepcopy(original)), state(original))
