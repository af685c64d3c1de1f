import copy
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rumfast import TrainConfig
from rumfast.algorithms import ALGORITHMS, SgdConfig
from rumfast.errors import UsageError
from rumfast.inference import predict
from rumfast.loaders import Batch
from rumfast.models import initialize_
from rumfast.runtime import exact_float32
from rumfast.stepping import WARM_UP, Stepper, Terms, map_tensors, signature, split, tensors
from rumfast.training import Learner

IN_PYTHON = ("none", "influence", "ssd")  # they take no SGD steps
RECORDED = ("retrain", "finetune", "neggrad_plus", "scrub", "salun", "cfk", "l1_sparse", "bad_teacher")


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


class Recorder:
    """Records as a CPU can: what is replayed is the Python step over the tensors that stay in place."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, step):
        self.recorded += 1

        def replay():
            self.replayed += 1
            return step()

        return replay


def recording_learner(data, config, device="cpu"):
    """A learner that records: on CUDA by graphs, elsewhere by one ``Recorder``, which is returned too."""
    learner, recorder = Learner(data, config, device), Recorder()
    if learner.device.type == "cpu":
        learner._recorder = lambda: recorder
    return learner, recorder


def test_recorded_members_are_the_same_and_recorded_once(digits, tiny_config):
    """137 examples in batches of 45 and 46: two shapes, in each of which training begins as without."""
    config = tiny_config.model_copy(update={"epochs": 5, "schedule": "cosine"})
    plain, (recording, recorder) = Learner(digits, config, "cpu"), recording_learner(digits, config)
    counts = []
    for seed in range(3):
        for learner in (plain, recording):
            learner.fit(torch.arange(seed, 137 + seed), seed)
        assert same(state(plain.model), state(recording.model)), seed
        counts.append((recorder.recorded, recorder.replayed))
    # Five epochs of one batch of 45 and two of 46: the first three of each shape go unrecorded.
    assert counts == [(2, 15 - 2 * WARM_UP), (2, 30 - 2 * WARM_UP), (2, 45 - 2 * WARM_UP)]
    assert plain.examples == recording.examples == 3 * 5 * 137


def test_an_observed_fit_is_recorded_and_sees_each_batch_before_its_step(digits, tiny_config):
    config, seen = tiny_config.model_copy(update={"epochs": 4, "micro_batches": 2}), []
    learner, recorder = recording_learner(digits, config)

    def observe(id_B, logits_BC, label_B):
        seen.append((id_B.clone(), logits_BC.clone(), label_B.clone()))

    learner.fit(torch.arange(128), 0, observe)
    assert recorder.recorded == 1 and recorder.replayed == 8 - WARM_UP
    observed = state(learner.model)
    ids = torch.cat([id_B for id_B, _, _ in seen]).view(4, 128)
    assert all(sorted(epoch.tolist()) == list(range(128)) for epoch in ids)
    assert all(torch.equal(label_B, learner.loader.label_N[id_B]) for id_B, _, label_B in seen)
    assert all(logits_BC.shape == (64, 10) for _, logits_BC, _ in seen)
    plain, losses = Learner(digits, config, "cpu"), []
    plain.fit(torch.arange(128), 0, lambda *one: losses.append(cross_entropy(one[1], one[2])))
    assert [cross_entropy(logits, label).item() for _, logits, label in seen] == [x.item() for x in losses]
    plain.fit(torch.arange(128), 0)
    assert same(observed, state(plain.model))


def test_constants_and_shapes_are_recorded_apart():
    recorder, seen = Recorder(), []
    weight = nn.Parameter(torch.zeros(()))

    def loss_of(fed):
        value, climbs = fed
        seen.append((len(value), climbs))
        return (-1 if climbs else 1) * weight * value.mean(), len(value)

    step = Stepper(torch.optim.SGD([weight], lr=1.0), loss_of, record=recorder)
    for size, climbs, times in ((3, True, 5), (3, False, 4), (2, True, 4)):
        for value in range(times):
            before = weight.item()
            assert step((torch.full((size,), float(value)), climbs))[1] == size
            assert weight.item() == before + (value if climbs else -value)
    assert (recorder.recorded, recorder.replayed) == (3, 5 + 4 + 4 - 3 * WARM_UP)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in IN_PYTHON])
@pytest.mark.parametrize("augments", [False, True])
def test_a_step_depends_on_what_it_is_given_alone(digits, tiny_config, name, augments, monkeypatch):
    """Asking for each loss twice changes nothing: else a recorded step would not be what Python would do."""
    algorithm, states, take = ALGORITHMS[name], [], Learner.take

    def asking_twice(self, batches, step, **options):
        loss_of = step._loss_of

        def twice(fed):
            kept = [buffer.clone() for buffer in self.model.buffers()]
            loss_of(fed)
            for buffer, before in zip(self.model.buffers(), kept, strict=True):
                buffer.copy_(before)
            return loss_of(fed)

        step._loss_of = twice
        result = take(self, batches, step, **options)
        step._loss_of = loss_of
        return result

    config = tiny_config.model_copy(update={"flip": augments})
    options = {"epochs": 2.5} if issubclass(algorithm.config, SgdConfig) else {}
    for taking in (take, asking_twice):
        learner = Learner(digits, config, "cpu")
        monkeypatch.setattr(Learner, "take", taking)
        learner.fit(torch.arange(0, 300, 2), 0)
        algorithm.run(learner, torch.arange(20), torch.arange(20, 300), algorithm.config(**options), 1)
        states.append((state(learner.model), learner.examples))
    assert same(states[0][0], states[1][0]) and states[0][1] == states[1][1]


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RECIPE = {"arch": "resnet8", "width": 8, "epochs": 8, "precision": "fp32", "lr": 0.02, "batch_size": 64}
# Relative distance of the weights. Float32 sums in another order are 1e-7 apart, and training moves them
# further; TF32, which cuDNN may or may not choose, is 5e-4 apart from the first product on: it is turned off.
NEAR = 0.01 if DEVICE == "cuda" else 0.0


def eager_and_recorded(data, run, **changes):
    """Weights after ``run(learner)``, by eager PyTorch and by recorded steps, and the recording learner."""
    config, weights = TrainConfig(**RECIPE | {"compile": "off"} | changes), []
    eager = Learner(data, config.model_copy(update={"cuda_graphs": "off", "compile": "off"}), DEVICE)
    recording, _ = recording_learner(data, config, DEVICE)
    with exact_float32():
        for learner in (eager, recording):
            run(learner)
            weights.append(torch.cat([weight.detach().flatten() for weight in learner.model.parameters()]))
    return *weights, recording


def assert_near(eager, recorded):
    assert (eager - recorded).norm() <= NEAR * eager.norm()


def unlearn(name, learner, ids, **options):
    algorithm = ALGORITHMS[name]
    if issubclass(algorithm.config, SgdConfig):
        options = {"epochs": 5.0} | options
    algorithm.run(learner, ids[:90], ids[90:], algorithm.config(**options), 1)


@pytest.mark.gpu
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_unlearning_is_what_eager_pytorch_does(digits, name):
    """On CUDA by graphs; elsewhere what is replayed is Python, and equal to the last bit."""
    ids = torch.arange(300, device=DEVICE)

    def run(learner):
        for seed in (1, 0):  # the second model trains by what the first recorded
            learner.fit(ids, seed)
        unlearn(name, learner, ids)

    *weights, recording = eager_and_recorded(digits, run)
    assert_near(*weights)
    assert recording._training.recorded


@pytest.mark.gpu
def test_layers_are_frozen_after_all_were_recorded(digits):
    """CF-k after fine-tuning, on a learner that was never fitted: no graph of fine-tuning is left by then,
    but gradients of frozen weights might be, in memory that the next graph is recorded into."""
    ids = torch.arange(300, device=DEVICE)

    def run(learner):
        for name, options in (("finetune", {}), ("cfk", {"k": 2}), ("euk", {"k": 1}), ("cfk", {"k": 1})):
            unlearn(name, learner, ids, **options)
            assert all(parameter.grad is None for parameter in learner.model.parameters())

    assert_near(*eager_and_recorded(digits, run)[:2])


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"micro_batches": 3}, {"flip": True, "crop_padding": 1}])
def test_two_shapes_in_one_fit_are_recorded_apart(digits, changes):
    """137 examples in batches of 45 and 46, whole and in parts of 15 and 16."""
    ids = torch.arange(137, device=DEVICE)
    *weights, recording = eager_and_recorded(digits, lambda learner: learner.fit(ids, 0), **changes)
    assert_near(*weights)
    assert len(recording._training.recorded) == 2


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="graphs of compiled steps need CUDA")
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_compiled_steps_are_recorded(digits, micro_batches):
    """Of two shapes: the second compiles for any."""
    ids = torch.arange(137, device=DEVICE)

    def run(learner):
        for seed in (1, 0):
            learner.fit(ids, seed)
        for name in ("finetune", "cfk"):
            unlearn(name, learner, ids)

    changes = {"compile": "on", "micro_batches": micro_batches}
    *weights, recording = eager_and_recorded(digits, run, **changes)
    assert_near(*weights)
    assert len(recording._training.recorded) == 2


@pytest.mark.gpu
def test_recorded_predictions_follow_the_weights(digits):
    """By graphs on CUDA; a learner's predictions are those of its model as it is now, of any examples."""
    learner = Learner(digits, TrainConfig(**RECIPE | {"epochs": 1, "compile": "off"}), DEVICE)
    some = np.array([3, 299, 0])
    for seed in range(WARM_UP + 2):
        initialize_(learner.model, seed)
        with exact_float32():
            found, expected = learner.predictor.predict(), predict(learner.model, digits)
        np.testing.assert_allclose(found.train_NC, expected.train_NC, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.test_NC, expected.test_NC, rtol=1e-4, atol=1e-4)
        logits = learner.predictor.logits("train", some)
        np.testing.assert_allclose(logits, expected.train_NC[some], rtol=1e-3, atol=1e-3)


def linear_step(micro_batches, image, label, record=None):
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.copy_(torch.arange(18).view(3, 6) / 18)
        model.bias.zero_()
    counted = []

    def loss_of(batch):
        counted.append(len(batch.id))
        return cross_entropy(model(batch.image), batch.label), len(batch.id)

    step = Stepper(torch.optim.SGD(model.parameters(), lr=0.5), loss_of, micro_batches, record)
    loss, examples, _ = step(Batch(image, label, torch.arange(len(label))))
    return loss, examples, model.weight.detach(), counted


@pytest.mark.parametrize("parts, sizes", [(2, [5, 6]), (3, [3, 4, 4]), (11, [1] * 11), (40, [1] * 11)])
def test_accumulated_gradients_are_the_whole_batch_s(parts, sizes):
    draw = torch.Generator().manual_seed(0)
    image, label = torch.randn(11, 6, generator=draw), torch.arange(11) % 3
    whole, accumulated = linear_step(1, image, label), linear_step(parts, image, label)
    torch.testing.assert_close(accumulated[:3], whole[:3], rtol=1e-6, atol=1e-7)
    assert accumulated[3] == sizes and whole[3] == [11] and not whole[0].requires_grad


@pytest.mark.parametrize("parts", [2, 3, 4, 40])
@pytest.mark.parametrize("forgotten", [1, 5, 11])
def test_accumulated_terms_are_those_of_whole_batches(parts, forgotten):
    """A descent on 11 examples and an ascent on fewer: each is split by itself, however unequal they are."""
    draw = torch.Generator().manual_seed(0)
    image, label = torch.randn(11, 6, generator=draw), torch.arange(11) % 3
    other, theirs = torch.randn(forgotten, 6, generator=draw), torch.arange(forgotten) % 3
    found = []
    for micro_batches in (1, parts):
        model = nn.Linear(6, 3)
        with torch.no_grad():
            model.weight.copy_(torch.arange(18).view(3, 6) / 18)
            model.bias.zero_()

        def loss_of(term, model=model):
            image, label, weight = term
            return weight * cross_entropy(model(image), label), len(label)

        step = Stepper(torch.optim.SGD(model.parameters(), lr=0.5), loss_of, micro_batches)
        loss, examples, _ = step(Terms(((image, label, 0.9), (other, theirs, -0.1))))
        assert examples == 11 + forgotten
        found.append((loss, model.weight.detach()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)
    by_hand = nn.Linear(6, 3)
    with torch.no_grad():
        by_hand.weight.copy_(torch.arange(18).view(3, 6) / 18)
        by_hand.bias.zero_()
    (0.9 * cross_entropy(by_hand(image), label) - 0.1 * cross_entropy(by_hand(other), theirs)).backward()
    torch.testing.assert_close(found[0][1], by_hand.weight.detach() - 0.5 * by_hand.weight.grad)


def test_micro_batches_train_and_count_each_example_once(digits, tiny_config):
    learner = Learner(digits, tiny_config.model_copy(update={"micro_batches": 3, "epochs": 6}), "cpu")
    first, last = learner.fit(torch.arange(200), 0), learner.examples
    assert last == 6 * 200 and first < 2.0
    ALGORITHMS["neggrad_plus"].run(
        learner, torch.arange(7), torch.arange(7, 200), ALGORITHMS["neggrad_plus"].config(epochs=1), 0
    )
    assert learner.examples == 6 * 200 + 193 + 4 * 7


def test_salience_does_not_depend_on_micro_batches(digits, tiny_config):
    from rumfast.algorithms.gradients import gradient_sum

    found = []
    for parts in (1, 5):
        learner = Learner(digits, tiny_config.model_copy(update={"micro_batches": parts}), "cpu")
        found.append(torch.cat([gradient.flatten() for gradient in gradient_sum(learner, torch.arange(90))]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_too_little_memory_is_an_error_that_says_what_to_do(digits, tiny_config):
    learner = Learner(digits, tiny_config, "cpu")

    def loss_of(batch):
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    with pytest.raises(UsageError, match="64 examples in 1 parts.*80 GiB.*raise micro_batches"):
        learner.descend(learner.batches(torch.arange(9), 1, 0), learner.optimizer(0.1, 0, 0), loss_of)


@pytest.fixture
def compiler(monkeypatch):
    """Counts the graphs that are compiled, and how often they run; they run as they are."""
    torch._dynamo.reset()
    counted = Counter()

    def backend(graph, inputs):
        counted["compiled"] += 1

        def run(*given):
            counted["run"] += 1
            return graph.forward(*given)

        return run

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield counted
    torch._dynamo.reset()


def test_two_compilations_serve_all_batch_sizes(digits, tiny_config, compiler):
    """One of the first batch's shape, and one of any: forget and retain sets come in many sizes."""
    learner = Learner(digits, tiny_config.model_copy(update={"compile": "on", "epochs": 1}), "cpu")
    plain = Learner(digits, tiny_config.model_copy(update={"epochs": 1}), "cpu")
    for size in (64, 64, 60, 51, 40, 33, 25, 17):
        for one in (learner, plain):
            one.fit(torch.arange(size), 0)
        assert same(state(learner.model), state(plain.model))
    assert compiler["compiled"] == 2


def test_a_compiled_batch_of_one_leaves_running_statistics_alone_and_others_do_not(
    digits, tiny_config, compiler
):
    learner = Learner(digits, tiny_config.model_copy(update={"compile": "on"}), "cpu")
    plain = Learner(digits, tiny_config, "cpu")
    optimizers = [each.optimizer(0.01, 0.9, 0.0) for each in (learner, plain)]
    for size in (1, 40, 1, 30, 1):
        counts = []
        for each, optimizer in zip((learner, plain), optimizers, strict=True):
            before = int(each.model.bn1.num_batches_tracked)
            each.descend(each.loader.epoch(torch.arange(size)), optimizer, each.cross_entropy)
            counts.append(int(each.model.bn1.num_batches_tracked) - before)
        assert counts == [size > 1] * 2 and same(state(learner.model), state(plain.model))
    assert compiler["compiled"] == 2 and compiler["run"] == 5  # of one image, and of any more


def test_a_search_over_several_networks_runs_compiled_to_its_end(digits, tiny_config, compiler):
    """Frozen layers and widths are variants of one network's code; torch alone would compile 8 of them."""
    steps = 0
    for changes in ({"width": 4}, {"width": 6}, {"arch": "resnet9"}):
        config = tiny_config.model_copy(update={"compile": "on", "epochs": 1} | changes)
        learner = Learner(digits, config, "cpu")
        for k in (1, 2, 3, 4):
            unlearn("cfk", learner, torch.arange(154), epochs=1.0, k=k)
            steps += 1
    assert 8 < compiler["compiled"] <= compiler["run"] == steps


def test_nesting_is_kept():
    batch = Batch(torch.zeros(4, 3, 2, 2), torch.arange(4), torch.arange(4))
    fed = (batch, (torch.tensor(0.5), True), None)
    doubled = map_tensors(lambda tensor: tensor * 2, fed)
    assert isinstance(doubled[0], Batch) and doubled[1][1] is True and doubled[2] is None
    assert [tensor.shape for tensor in tensors(doubled)] == [tensor.shape for tensor in tensors(fed)]
    halves = list(split(fed, 2))
    assert [half[0].id.tolist() for half in halves] == [[0, 1], [2, 3]]
    assert all(half[1][0] is fed[1][0] for half in halves)
    assert isinstance(map_tensors(torch.clone, Terms((batch, batch))), Terms)


def test_layout_is_part_of_the_signature():
    image = torch.zeros(4, 3, 2, 2)
    other = image.to(memory_format=torch.channels_last)
    assert signature((image, 1)) != signature((other, 1)) != signature((other, 2))
    assert signature(copy.deepcopy(image)) == signature(torch.ones(4, 3, 2, 2))


def test_how_float32_is_multiplied_is_recorded_apart():
    """A graph keeps the kernels it was recorded with, whatever is allowed when it is replayed."""
    recorder, weight = Recorder(), nn.Parameter(torch.zeros(()))
    step = Stepper(
        torch.optim.SGD([weight], lr=1.0), lambda fed: (weight * fed.mean(), len(fed)), record=recorder
    )
    for _ in range(WARM_UP + 1):
        step(torch.ones(2))
        with exact_float32():
            step(torch.ones(2))
    assert len(step.recorded) == recorder.recorded == 2
