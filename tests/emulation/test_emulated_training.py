"""Training, unlearning and predictions obey CUDA's device rules; recorded steps compute what eager ones do.

Values come from CPU kernels on both sides, so whatever runs the same operations is equal to the last bit.
"""

import numpy as np
import pytest
import torch

from rumfast import predict
from rumfast.algorithms import ALGORITHMS, SgdConfig
from rumfast.inference import embeddings_of, logits_of
from rumfast.plans import bind, parse_plan, run_plan
from rumfast.refinement import Group
from rumfast.scores.proxies import ProxyTotals, TrainingEvents
from rumfast.sweeps.proxy_models import curvatures, fit_holdout
from rumfast.sweeps.relearning import relearn
from rumfast.training import Learner

DEVICES = ("cuda", "cpu")
BLOCKWISE = ("ssd", "influence")  # they sum gradients in blocks whose size depends on the device


def weights(model):
    """All weights and statistics as one vector on the CPU."""
    return torch.cat([tensor.double().flatten() for tensor in model.state_dict().values()]).cpu()


def on_both(few, recipe, act):
    """What ``act(learner, ids)`` gives on the emulated device and on the CPU, and both models' weights."""
    learners = [Learner(few, recipe, device) for device in DEVICES]
    results = [act(learner, torch.arange(40, device=learner.device)) for learner in learners]
    return results, [weights(learner.model) for learner in learners]


def test_a_recorded_fit_is_an_eager_one(cuda, few, trained):
    def fit(learner, ids):
        return [learner.fit(ids[seed:], seed) for seed in range(3)]

    losses, (there, here) = on_both(few, trained, fit)
    assert losses[0] == losses[1] and torch.equal(there, here)


OBSERVERS = {
    "totals": lambda few, recipe: ProxyTotals(len(few)),
    "events": lambda few, recipe: TrainingEvents(len(few), recipe.epochs),
}


@pytest.mark.parametrize("kind", OBSERVERS)
def test_an_observed_fit_sees_the_same(cuda, few, trained, kind):
    def fit(learner, ids):
        found = [OBSERVERS[kind](few, trained) for _ in range(2)]
        for seed, observer in enumerate(found):
            learner.fit(ids[3 * seed :], seed, observer.add)
        return found

    (there, here), (first, second) = on_both(few, trained, fit)
    assert torch.equal(first, second)
    for one, other in zip(there, here, strict=True):
        np.testing.assert_array_equal(np.stack(one.scores()), np.stack(other.scores()))
        if kind == "events":
            assert torch.equal(one.learned_EN.cpu(), other.learned_EN) and other.learned_EN.any()


def unlearn(name, learner, ids):
    algorithm = ALGORITHMS[name]
    options = {"epochs": 5.0} if issubclass(algorithm.config, SgdConfig) else {}
    if name == "ssd":
        options = {"alpha": 1.1, "dampening": 0.5}  # some weights are dampened
    return algorithm.run(learner, ids[:8], ids[8:24], algorithm.config(**options), 1)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_after_a_fit(cuda, few, trained, name):
    def act(learner, ids):
        learner.fit(ids[:32], 0)
        return unlearn(name, learner, ids)

    notes, (there, here) = on_both(few, trained, act)
    assert notes[0] == notes[1]
    if name in BLOCKWISE:
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(there, here)


@pytest.mark.parametrize("name", ["neggrad", "neggrad_plus", "scrub", "salun", "bad_teacher"])
def test_an_algorithm_on_one_example(cuda, few, trained, name):
    """Batches of one are recorded apart from the others, with statistics of their own."""

    def act(learner, ids):
        learner.fit(ids[:32], 0)
        algorithm = ALGORITHMS[name]
        algorithm.run(learner, ids[:1], ids[8:24], algorithm.config(epochs=6.0), 1)

    _, (there, here) = on_both(few, trained, act)
    assert torch.equal(there, here)


def test_all_algorithms_on_a_learner_that_fitted_nothing(cuda, few, trained):
    """One after another, so each finds the memory that those before it left."""
    learner = Learner(few, trained, "cuda")
    ids = torch.arange(40, device="cuda")
    for name in ALGORITHMS:
        if name != "retrain":
            unlearn(name, learner, ids)
    assert weights(learner.model).isfinite().all()


@pytest.mark.parametrize("name", ["cfk", "euk"])
def test_frozen_gradients_may_outlive_the_graphs_that_made_them(cuda, few, recipe, name):
    """The first algorithm's graphs are gone when the second records; gradients of frozen weights are not."""
    learner = Learner(few, recipe, "cuda")
    ids = torch.arange(40, device="cuda")
    for each in ("finetune", name):
        unlearn(each, learner, ids)


@pytest.mark.parametrize("mode", ["remaining", "final"])
def test_a_plan(cuda, few, trained, mode):
    groups = [Group(name, np.arange(start, start + 8)) for name, start in (("a", 0), ("b", 8), ("c", 16))]
    plan = parse_plan("a: none > b: salun(epochs=2) > c: cfk(epochs=2)")

    def act(learner, ids):
        learner.fit(ids, 0)
        seen = []
        found = run_plan(
            learner, bind(plan, groups), np.arange(24, 40), mode=mode, seed=2, after_step=seen.extend
        )
        return found.examples, len(seen)

    results, (there, here) = on_both(few, trained, act)
    assert results[0] == results[1] and torch.equal(there, here)


def test_relearning(cuda, few, trained):
    def act(learner, ids):
        return relearn(learner, few, np.arange(16), target=1.1, every=3, most=8, seed=0)

    (there, here), _ = on_both(few, trained, act)
    assert there == here and there.steps == 8


def test_proxies_that_need_a_model(cuda, few, trained, monkeypatch):
    monkeypatch.setattr("rumfast.sweeps.proxy_models.HOLDOUT_EPOCHS", 5)

    def act(learner, ids):
        found = []

        def measure(epoch):
            found.append(curvatures(learner, few, np.arange(20)))

        learner.fit(ids[8:], 0, after_epoch=measure)
        return np.stack(found), fit_holdout(learner, ids[:8], 0)

    (there, here), (first, second) = on_both(few, trained, act)
    np.testing.assert_array_equal(there[0], here[0])
    assert there[1] == here[1] and torch.equal(first, second)


def test_predictions(cuda, few, trained):
    """Of the learner's own predictor too, which records: by then at other weights than at first."""

    def act(learner, ids):
        found = []
        for _ in range(5):
            found.append(learner.predictor.predict())
            learner.fit(ids[:16], len(found))
        found.append(predict(learner.model, few))
        given = learner.model, few, few.test
        logits = [part for one in found for part in (one.train_NC, one.test_NC)]
        return [*logits, logits_of(*given), embeddings_of(*given).cpu()]

    (there, here), _ = on_both(few, trained, act)
    for first, second in zip(there, here, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("observed", [False, True])
def test_the_host_waits_as_often_for_eight_steps_an_epoch_as_for_four(cuda, digits, recipe, observed):
    counts = []
    for steps in (4, 8):
        learner = Learner(digits, recipe.model_copy(update={"batch_size": 8, "epochs": 2}), "cuda")
        ids, totals = torch.arange(8 * steps, device="cuda"), ProxyTotals(len(digits))
        for seed in range(2):  # what is cached and recorded once is there by the second
            cuda.waits.clear()
            learner.fit(ids, seed, totals.add if observed else None)
        counts.append(dict(cuda.waits))
    assert counts[0] == counts[1]
