"""Relearning: its two anchors, that it stops where it says, and that it sees the forget set alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from rumfast.data.dataset import Examples
from rumfast.inference import logits_of
from rumfast.models import initialize_
from rumfast.sweeps.relearning import relearn
from rumfast.training import Learner

SETTING = {"target": 0.95, "every": 1, "most": 200, "seed": 4}


@pytest.fixture(scope="module")
def forget():
    """40 of 300."""
    return np.arange(0, 120, 3)


@pytest.fixture(scope="module")
def learner(digits, recipe):
    return Learner(digits, recipe.model_copy(update={"batch_size": 16, "lr": 0.01}), "cpu")


@pytest.fixture(scope="module")
def weights(digits, recipe, forget):
    """Of an original and an oracle."""
    learner = Learner(digits, recipe.model_copy(update={"width": 8, "epochs": 15}), "cpu")
    found = {}
    for name, ids in {
        "original": np.arange(len(digits)),
        "oracle": np.setdiff1d(np.arange(len(digits)), forget),
    }.items():
        learner.fit(torch.from_numpy(ids), 1)
        found[name] = {key: tensor.clone() for key, tensor in learner.model.state_dict().items()}
    return found


@pytest.fixture
def trained(digits, recipe, weights):
    """Makes a learner that holds one of them, on wide models."""

    def make(name, **changes):
        config = recipe.model_copy(update={"width": 8, "batch_size": 16, "lr": 0.01, **changes})
        learner = Learner(digits, config, "cpu")
        learner.model.load_state_dict(weights[name])
        return learner

    return make


def test_an_original_needs_no_steps_and_stays_as_it_was(trained, digits, weights, forget):
    learner = trained("original")
    found = relearn(learner, digits, forget, **SETTING)
    assert found.steps == 0 and found.reached and len(found.accuracy) == 1 and found.accuracy[0] >= 0.95
    state = learner.model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in weights["original"].items())
    assert learner.examples == 0


def test_a_fresh_model_needs_many_and_an_oracle_fewer(trained, digits, forget):
    """Digits are so alike that an oracle knows nearly all of those it never saw; it has to learn the rest."""
    learner = trained("original")
    initialize_(learner.model, 0)
    oracle, fresh = (
        relearn(each, digits, forget, **SETTING | {"target": 1.0}) for each in (trained("oracle"), learner)
    )
    assert 0 < oracle.steps < fresh.steps and fresh.steps > 20 and oracle.reached and fresh.reached
    assert fresh.accuracy[0] < 0.3 < 0.9 < oracle.accuracy[0] < 1


def test_it_is_plain_sgd_on_the_forget_set_that_ends_where_the_target_is_first_seen(learner, digits, forget):
    """Against the steps written out, and against looks at every third step only."""
    initialize_(learner.model, 2)
    found = relearn(learner, digits, forget, **SETTING)
    initialize_(learner.model, 2)
    model, config = learner.model, learner.config
    plain = torch.optim.SGD(model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    inside = Examples(digits.train.image_NHWC[forget], digits.train.label_N[forget])
    accuracy, epoch = [], 0
    while len(accuracy) <= found.steps:
        for batch in learner.loader.epoch(forget, epoch, seed=4):
            assert len(batch.id) <= 16 and set(batch.id.tolist()) <= set(forget.tolist())
            accuracy.append((logits_of(model, digits, inside).argmax(1) == inside.label_N).mean())
            model.train()
            plain.zero_grad()
            cross_entropy(model(batch.image), batch.label).backward()
            plain.step()
        epoch += 1
    np.testing.assert_allclose(found.accuracy, accuracy[: found.steps + 1], atol=1 / len(forget) + 1e-9)
    assert max(found.accuracy[:-1]) < 0.95 <= found.accuracy[-1] and len(found.accuracy) == found.steps + 1

    initialize_(learner.model, 2)
    seldom = relearn(learner, digits, forget, **SETTING | {"every": 3})
    assert seldom.steps % 3 == 0 and seldom.accuracy[:-1] == found.accuracy[: seldom.steps : 3]
    assert seldom.steps - 3 < found.steps or max(found.accuracy[: seldom.steps : 3]) < 0.95


def test_it_ends_after_the_most_steps(learner, digits, forget):
    initialize_(learner.model, 2)
    before = learner.examples
    found = relearn(learner, digits, forget, **SETTING | {"every": 2, "most": 5})
    assert found.steps == 5 and not found.reached and len(found.accuracy) == 1 + 3
    assert learner.examples - before == (13 + 13 + 14) + (13 + 13)


def test_labels_beyond_the_forget_set_are_not_looked_at(learner, digits, forget):
    label_N = (digits.train.label_N + 1) % 10
    label_N[forget] = digits.train.label_N[forget]
    other = replace(digits, train=Examples(digits.train.image_NHWC, label_N))
    stranger = Learner(other, learner.config, "cpu")
    found = []
    for each, data in ((learner, digits), (stranger, other)):
        initialize_(each.model, 2)
        found.append(relearn(each, data, forget, **SETTING))
    assert found[0] == found[1]


def test_the_seed_is_of_the_order(learner, digits, forget):
    found = []
    for seed in (4, 4, 5):
        initialize_(learner.model, 2)
        found.append(relearn(learner, digits, forget, **SETTING | {"seed": seed}))
    assert found[0] == found[1] and found[0].accuracy != found[2].accuracy


def test_a_model_that_diverges_has_not_relearned(trained, digits, forget):
    found = relearn(trained("oracle", lr=1e30), digits, forget, **SETTING | {"target": 1.0})
    assert found.steps == 200 and not found.reached and len(found.accuracy) < 5


def test_one_example_is_a_forget_set(trained, digits):
    """A batch of one leaves batch norm the image's own pixels to average over."""
    found = relearn(trained("oracle"), digits, np.array([7]), **SETTING | {"target": 1.0})
    assert found.reached and found.accuracy[-1] == 1.0


def test_its_steps_are_made_once_for_all_looks(learner, digits, forget, monkeypatch):
    """Each look ends a run of steps; a GPU would record them anew if they were made anew."""
    made, stepper = [], Learner.stepper
    monkeypatch.setattr(Learner, "stepper", lambda *given: made.append(stepper(*given)) or made[-1])
    initialize_(learner.model, 0)
    found = relearn(learner, digits, forget, target=1.1, every=2, most=7, seed=0)
    assert len(found.accuracy) == 5 and len(made) == 1
