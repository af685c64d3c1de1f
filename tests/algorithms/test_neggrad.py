from collections import Counter
from itertools import islice

import pytest
import torch
from torch.nn.functional import cross_entropy

from rumfast.algorithms import ALGORITHMS, SgdConfig
from rumfast.algorithms.neggrad import NegGradConfig, NegGradPlusConfig, _cycle
from rumfast.inference import predict

NEGGRAD, NEGGRAD_PLUS = ALGORITHMS["neggrad"], ALGORITHMS["neggrad_plus"]
RETAIN, FORGET = torch.arange(50), torch.arange(50, 80)  # one batch each


def test_neggrad_takes_finetunings_step_backwards_and_on_the_forget_set(learner, original):
    weights = list(learner.model.parameters())
    moved = []
    for name, retain, forget in (("neggrad", RETAIN, FORGET), ("finetune", FORGET, RETAIN)):
        learner.model.load_state_dict(original.state_dict())
        config = ALGORITHMS[name].config(lr=0.01, epochs=1, weight_decay=0)
        ALGORITHMS[name].run(learner, forget, retain, config, 0)
        moved.append(
            [new.detach() - old.detach() for new, old in zip(weights, original.parameters(), strict=True)]
        )
    for up, down in zip(*moved, strict=True):
        assert down.abs().max() > 0
        torch.testing.assert_close(up, -down, rtol=1e-3, atol=1e-7)


def test_neggrad_climbs(learner, digits, original, split):
    NEGGRAD.run(learner, torch.from_numpy(split.forget), RETAIN, NegGradConfig(lr=0.03, epochs=8), 0)
    before, after = (
        predict(model, digits).margins().loss[split.forget] for model in (original, learner.model)
    )
    assert after.mean() > before.mean() + 0.5
    assert (NegGradConfig().lr, NegGradConfig().epochs) == (1e-4, 5)
    assert learner.examples == 8 * 40 and NEGGRAD.cost(40, 230, 64, NegGradConfig()) == (40, 0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.97, 1.0])
def test_one_step_by_hand(learner, original, alpha):
    start = [parameter.detach().clone() for parameter in learner.model.parameters()]
    learner.model.train()
    losses = [
        cross_entropy(learner.model(batch.image), batch.label)
        for ids in (RETAIN, FORGET)
        for batch in learner.loader.epoch(ids, 0, shuffle=False)
    ]
    gradients = [torch.autograd.grad(loss, list(learner.model.parameters())) for loss in losses]
    learner.model.load_state_dict(original.state_dict())
    config = NegGradPlusConfig(lr=0.1, epochs=1, weight_decay=0.01, alpha=alpha)
    NEGGRAD_PLUS.run(learner, FORGET, RETAIN, config, 0)
    for old, down, up, new in zip(start, *gradients, learner.model.parameters(), strict=True):
        expected = old - 0.1 * (alpha * down - (1 - alpha) * up + 0.01 * old)
        torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-6)


def test_alpha_one_is_fine_tuning_but_for_batch_norm_statistics(learner, original):
    NEGGRAD_PLUS.run(learner, FORGET, RETAIN, NegGradPlusConfig(lr=0.05, epochs=3, alpha=1.0), 5)
    ours = [parameter.detach().clone() for parameter in learner.model.parameters()]
    learner.model.load_state_dict(original.state_dict())
    ALGORITHMS["finetune"].run(learner, FORGET, RETAIN, SgdConfig(lr=0.05, epochs=3), 5)
    for mine, theirs in zip(ours, learner.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_it_forgets_while_it_retains(learner, digits, original, split):
    config = NegGradPlusConfig(lr=0.05, epochs=5, alpha=0.7)
    NEGGRAD_PLUS.run(learner, torch.from_numpy(split.forget), torch.from_numpy(split.retain), config, 0)
    before, after = (predict(model, digits).margins().loss for model in (original, learner.model))
    assert after[split.forget].mean() > before[split.forget].mean() + 0.5
    assert after[split.retain].mean() < after[split.forget].mean() - 0.5


@pytest.mark.parametrize("forget", [1, 30, 64, 100])
def test_the_forget_set_is_cycled_evenly_and_reshuffled(learner, forget):
    ids = torch.arange(300)[-forget:]
    per_pass = -(-forget // 64)
    batches = list(islice(_cycle(learner, ids, seed=0), 4 * per_pass))
    counts = Counter(torch.cat([batch.id for batch in batches]).tolist())
    assert counts == dict.fromkeys(ids.tolist(), 4)
    assert forget == 1 or batches[0].id.tolist() != batches[per_pass].id.tolist()


def test_a_forget_set_larger_than_the_retain_set_is_not_cut_short(learner):
    config = NegGradPlusConfig(lr=1e-6, epochs=4.0)
    NEGGRAD_PLUS.run(learner, torch.arange(50, 300), RETAIN, config, 0)
    assert learner.examples == 4 * 50 + 62 + 63 + 62 + 63  # 250 in four batches
