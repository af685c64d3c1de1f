"""What teachers say, and bad teacher, which is nothing else."""

import math

import pytest
import torch
from torch.nn.functional import kl_div, softmax

from rumfast.algorithms import ALGORITHMS
from rumfast.algorithms.bad_teacher import BadTeacherConfig
from rumfast.algorithms.distillation import divergence, teach
from rumfast.models import build_model, initialize_
from rumfast.runtime import derive_seed
from rumfast.training import Learner

BAD_TEACHER = ALGORITHMS["bad_teacher"]
FORGET, RETAIN = torch.arange(50, 60), torch.arange(50)  # one batch each, and together


def test_divergence_by_hand():
    # At T = 2 the teacher says (3/4, 1/4) and the student (1/2, 1/2)
    # of the second example both say the same.
    teacher = torch.tensor([[2 * math.log(3.0), 0.0], [1.0, 5.0]])
    student = torch.tensor([[7.0, 7.0], [0.0, 4.0]])
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert divergence(teacher, student, 2.0).item() == pytest.approx(4 * kl / 2, rel=1e-5)
    assert divergence(student, teacher, 2.0).item() == pytest.approx(
        4 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)) / 2, rel=1e-5
    )
    torch.testing.assert_close(
        divergence(teacher, student, 4.0),
        16 * kl_div((student / 4).log_softmax(1), softmax(teacher / 4, 1), reduction="sum") / 2,
    )


def test_impossible_answers_cost_nothing_and_stay_finite():
    teacher = torch.tensor([[0.0, -1e4]])
    assert divergence(teacher, torch.tensor([[0.0, -50.0]]), 1.0).item() == pytest.approx(0, abs=1e-6)
    assert divergence(teacher, torch.tensor([[-80.0, 0.0]]), 1.0).item() == pytest.approx(80)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_each_example_has_its_own_teacher(digits, recipe, original, passes, flip):
    """Asked in each batch, or once and looked up, where pictures stay the same: it must not matter."""
    learner = Learner(digits, recipe.model_copy(update={"flip": flip}), "cpu")
    teachers = [build_model("resnet8", 10, width=4, seed=seed) for seed in (1, 2)]
    taught = teach(learner, list(zip(teachers, (FORGET, RETAIN), strict=True)), passes)
    for batch in learner.loader.epoch(torch.cat([FORGET, RETAIN, torch.arange(60, 200)])[:60], 3, seed=5):
        said = taught(batch)
        for teacher, mine in ((teachers[0], batch.id >= 50), (teachers[1], batch.id < 50)):
            torch.testing.assert_close(said[mine], teacher.eval()(batch.image[mine]), rtol=1e-4, atol=1e-5)
        assert not said.requires_grad


def test_teachers_are_asked_once_only_where_that_saves_something(learner):
    asked = []
    model = build_model("resnet8", 10, width=4)
    model.register_forward_hook(lambda *_: asked.append(1))
    for passes, expected in ((1, 3), (2, 1)):
        asked.clear()
        taught = teach(learner, [(model, RETAIN)], passes)
        for batch in learner.batches(RETAIN, 3, 0):
            taught(batch)
        assert len(asked) == expected


def test_one_step_of_bad_teacher_by_hand(learner, original):
    batch = next(learner.loader.epoch(torch.arange(60), 0, shuffle=False))
    start = [parameter.detach().clone() for parameter in learner.model.parameters()]
    ignorant = build_model("resnet8", 10, width=4)
    initialize_(ignorant, derive_seed("incompetent", 11))
    with torch.no_grad():
        taught = torch.cat([original(batch.image[:50]), ignorant.eval()(batch.image[50:])])
    learner.model.train()
    log_q, p = learner.model(batch.image).div(3).log_softmax(1), taught.div(3).softmax(1)
    loss = 9 * (p * (p.log() - log_q)).sum(1).mean()
    gradients = torch.autograd.grad(loss, list(learner.model.parameters()))
    learner.model.load_state_dict(original.state_dict())
    config = BadTeacherConfig(lr=0.1, epochs=1, weight_decay=0.01, temperature=3)
    BAD_TEACHER.run(learner, FORGET, RETAIN, config, 11)
    for old, gradient, new in zip(start, gradients, learner.model.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * (gradient + 0.01 * old), rtol=1e-4, atol=1e-6)
