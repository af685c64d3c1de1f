import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rumfast import TrainConfig
from rumfast.algorithms import ALGORITHMS, SgdConfig
from rumfast.errors import UsageError
from rumfast.loaders import Batch
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


def test_recorded_members_are_the_same_and_recorded_once(digits, tiny_config):
    """130 examples in batches of 43 and 44: two shapes, in each of which training begins as without."""
    config = tiny_config.model_copy(update={"epochs": 5, "schedule": "cosine"})
    plain, recording = Learner(digits, config, "cpu"), Learner(digits, config, "cpu")
    recording._record = recorder = Recorder()
    counts = []
    for seed in range(3):
        for learner in (plain, recording):
            learner.fit(torch.arange(seed, 130 + seed), seed)
        assert same(state(plain.model), state(recording.model)), seed
        counts.append((recorder.recorded, recorder.replayed))
    # Five epochs of one batch of 44 and two of 43: the first three of each shape go unrecorded.
    assert counts == [(2, 15 - 2 * WARM_UP), (2, 30 - 2 * WARM_UP), (2, 45 - 2 * WARM_UP)]
    assert plain.examples == recording.examples == 3 * 5 * 130


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
    algorithm, states, descend = ALGORITHMS[name], [], Learner._take_steps

    def asking_twice(self, batches, take, *rest):
        loss_of = take._loss_of

        def twice(fed):
            kept = [buffer.clone() for buffer in self.model.buffers()]
            loss_of(fed)
            for buffer, before in zip(self.model.buffers(), kept, strict=True):
                buffer.copy_(before)
            return loss_of(fed)

        take._loss_of = twice
        result = descend(self, batches, take, *rest)
        take._loss_of = loss_of
        return result

    config = tiny_config.model_copy(update={"flip": augments})
    options = {"epochs": 2.5} if issubclass(algorithm.config, SgdConfig) else {}
    for taking in (descend, asking_twice):
        learner = Learner(digits, config, "cpu")
        monkeypatch.setattr(Learner, "_take_steps", taking)
        learner.fit(torch.arange(0, 300, 2), 0)
        algorithm.run(learner, torch.arange(20), torch.arange(20, 300), algorithm.config(**options), 1)
        states.append((state(learner.model), learner.examples))
    assert same(states[0][0], states[1][0]) and states[0][1] == states[1][1]


@pytest.mark.gpu
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_unlearning_is_what_eager_pytorch_does(digits, name):
    """On CUDA by graphs; elsewhere what is replayed is Python, and equal to the last bit."""
    recipe = {"arch": "resnet8", "width": 8, "epochs": 8, "precision": "fp32", "lr": 0.02, "compile": "off"}
    algorithm, weights, device = ALGORITHMS[name], [], "cuda" if torch.cuda.is_available() else "cpu"
    options = {"epochs": 5.0} if issubclass(algorithm.config, SgdConfig) else {}
    ids = torch.arange(300, device=device)
    for graphs in ("off", "auto"):
        learner = Learner(digits, TrainConfig(**recipe, batch_size=64, cuda_graphs=graphs), device)
        if device == "cpu" and graphs == "auto":
            learner._record = Recorder()
        for seed in (1, 0):  # the second model trains by what the first recorded
            learner.fit(ids, seed)
        assert bool(learner._training._recorded) == (graphs == "auto")
        algorithm.run(learner, ids[:90], ids[90:], algorithm.config(**options), 1)
        weights.append(torch.cat([weight.detach().flatten() for weight in learner.model.parameters()]))
    apart = (weights[0] - weights[1]).norm() / weights[0].norm()
    assert apart == 0 if device == "cpu" else apart < 0.02


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
    loss, examples = step(Batch(image, label, torch.arange(len(label))))
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
        loss, examples = step(Terms(((image, label, 0.9), (other, theirs, -0.1))))
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


def test_two_compilations_serve_all_batch_sizes(digits, tiny_config, monkeypatch):
    """One of the first batch's shape, and one of any: forget and retain sets come in many sizes."""
    torch._dynamo.reset()
    compiled = []

    def backend(graph, inputs):
        compiled.append(tuple(inputs[0].shape) if inputs else ())
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    learner = Learner(digits, tiny_config.model_copy(update={"compile": "on", "epochs": 1}), "cpu")
    plain = Learner(digits, tiny_config.model_copy(update={"epochs": 1}), "cpu")
    for size in (64, 64, 60, 51, 40, 33, 25, 17):
        for one in (learner, plain):
            one.fit(torch.arange(size), 0)
        assert same(state(learner.model), state(plain.model))
    assert len(compiled) == 2
    torch._dynamo.reset()


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
