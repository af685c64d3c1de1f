import torch
from torch.nn.functional import cross_entropy

from rumfast.algorithms import ALGORITHMS, SgdConfig
from rumfast.inference import predict

FINETUNE, NONE, RETRAIN = (ALGORITHMS[name] for name in ("finetune", "none", "retrain"))


def parameters(learner):
    return [parameter.detach().clone() for parameter in learner.model.parameters()]


def test_one_step_is_sgd_on_the_retain_set(learner, original):
    retain = torch.arange(50)  # one batch
    batch = next(learner.loader.epoch(retain, 0, shuffle=False))
    start = parameters(learner)
    learner.model.train()
    loss = cross_entropy(learner.model(batch.image), batch.label)
    gradients = torch.autograd.grad(loss, list(learner.model.parameters()))
    learner.model.load_state_dict(original.state_dict())
    FINETUNE.run(learner, torch.arange(50, 60), retain, SgdConfig(lr=0.1, epochs=1, weight_decay=0.01), 0)
    for old, gradient, new in zip(start, gradients, parameters(learner), strict=True):
        torch.testing.assert_close(new, old - 0.1 * (gradient + 0.01 * old), rtol=1e-4, atol=1e-6)


def test_the_rate_stays_constant(learner, monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1]
    )
    FINETUNE.run(learner, torch.arange(9), torch.arange(100, 300), SgdConfig(lr=0.03, epochs=2), 0)
    assert rates == [0.03] * 8


def test_it_starts_from_the_original_and_retrain_does_not(learner, digits, original):
    FINETUNE.run(
        learner, torch.arange(9), torch.arange(9, 300), SgdConfig(lr=1e-12, epochs=1, weight_decay=0), 0
    )
    for ours, theirs in zip(learner.model.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    RETRAIN.run(learner, torch.arange(9), torch.arange(9, 300), RETRAIN.config(), 0)
    assert (learner.model.fc.weight - original.fc.weight).abs().max() > 0.01


def test_none_takes_nothing(learner, original):
    NONE.run(learner, torch.arange(9), torch.arange(9, 300), NONE.config(), 0)
    assert learner.examples == 0
    assert all(
        torch.equal(a, b)
        for a, b in zip(learner.model.state_dict().values(), original.state_dict().values(), strict=True)
    )


def test_fine_tuning_improves_the_retain_set(learner, digits, original, split):
    retain = torch.from_numpy(split.retain)
    FINETUNE.run(learner, torch.from_numpy(split.forget), retain, SgdConfig(lr=0.05, epochs=12), 0)
    loss = [predict(model, digits).margins().loss[retain].mean() for model in (original, learner.model)]
    assert loss[1] < 0.5 * loss[0]
