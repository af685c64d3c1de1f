from itertools import groupby

import torch
from torch.nn.functional import cross_entropy

from rumfast.algorithms import ALGORITHMS, SgdConfig
from rumfast.algorithms.scrub import ScrubConfig, phases

SCRUB = ALGORITHMS["scrub"]
FORGET, RETAIN = torch.arange(200, 300), torch.arange(200)  # two batches and four


def runs(learner, **options):
    """(max step?, number of batches) of each phase in turn."""
    config = ScrubConfig(**options)
    signs = [leave for _, leave in phases(learner, FORGET, RETAIN, config, seed=0)]
    return [(leave, len(list(run))) for leave, run in groupby(signs)]


def test_the_first_msteps_epochs_leave_and_every_epoch_stays(learner):
    """Exactly msteps: the research code takes one more."""
    assert runs(learner, epochs=5, msteps=4) == [(True, 2), (False, 4)] * 3 + [(True, 2), (False, 8)]
    assert runs(learner, epochs=2, msteps=0) == [(False, 8)]
    assert runs(learner, epochs=2, msteps=2) == [(True, 2), (False, 4)] * 2
    assert runs(learner, epochs=2, msteps=9) == [(True, 2), (False, 4)] * 2


def test_fractions_end_with_whole_batches(learner):
    assert runs(learner, epochs=1.5, msteps=1.5) == [(True, 2), (False, 4), (True, 1), (False, 2)]
    assert runs(learner, epochs=2.3, msteps=0.3) == [(True, 1), (False, 4 + 4 + 2)]
    assert runs(learner, epochs=0.1, msteps=4) == [(True, 1), (False, 1)]


def test_each_pass_sees_its_own_set_once(learner):
    seen = {True: [], False: []}
    for batch, leave in phases(learner, FORGET, RETAIN, ScrubConfig(epochs=2, msteps=1), seed=0):
        seen[leave].append(batch.id)
    assert torch.cat(seen[True]).sort().values.equal(FORGET)
    assert torch.cat(seen[False][:4]).sort().values.equal(RETAIN)
    assert torch.cat(seen[False][4:]).sort().values.equal(RETAIN)


def test_a_max_step_and_a_min_step_by_hand(learner, original):
    """The first min step comes after the one max step, and both share one momentum."""
    forget, retain = torch.arange(50, 80), torch.arange(50)  # one batch each
    batches = [next(learner.loader.epoch(ids, 0, shuffle=False)) for ids in (forget, retain)]
    weights = list(learner.model.parameters())
    with torch.no_grad():
        taught = [original(batch.image) for batch in batches]
    learner.model.train()
    speed = [torch.zeros_like(weight) for weight in weights]
    for batch, teacher, leave in zip(batches, taught, (True, False), strict=True):
        logits = learner.model(batch.image)
        p, log_q = (teacher / 4).softmax(1), (logits / 4).log_softmax(1)
        apart = 16 * (p * (p.log() - log_q)).sum() / len(batch.id)
        loss = -apart if leave else 0.7 * cross_entropy(logits, batch.label) + 0.2 * apart
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient, v in zip(weights, gradients, speed, strict=True):
                v.mul_(0.9).add_(gradient + 0.01 * weight)
                weight.sub_(0.02 * v)
    expected = [weight.detach().clone() for weight in weights]
    learner.model.load_state_dict(original.state_dict())
    config = ScrubConfig(lr=0.02, epochs=1, msteps=1, gamma=0.7, beta=0.2, weight_decay=0.01)
    SCRUB.run(learner, forget, retain, config, 0)
    for ours, theirs in zip(learner.model.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_without_max_steps_and_teacher_it_is_fine_tuning(learner, original):
    SCRUB.run(learner, FORGET, RETAIN, ScrubConfig(lr=0.05, epochs=1.5, msteps=0, gamma=1, beta=0), 3)
    ours = [weight.detach().clone() for weight in learner.model.parameters()]
    learner.model.load_state_dict(original.state_dict())
    ALGORITHMS["finetune"].run(learner, FORGET, RETAIN, SgdConfig(lr=0.05, epochs=1.5), 3)
    for mine, theirs in zip(ours, learner.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_a_budget_keeps_the_share_of_max_steps():
    config = ScrubConfig().scaled(0.5)
    assert (config.epochs, config.msteps) == (2.5, 2.0)
    assert SCRUB.cost(100, 200, 64, ScrubConfig()) == (200 + 100 * 4 / 5, 0)
    assert SCRUB.cost(100, 200, 64, ScrubConfig(epochs=2.0)) == (300, 0)
    assert (ScrubConfig().lr, ScrubConfig().epochs, ScrubConfig().temperature) == (5e-3, 5, 4)
