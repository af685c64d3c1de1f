import pytest
import torch

from rumfast.algorithms import ALGORITHMS
from rumfast.algorithms.gradients import example_gradients
from rumfast.algorithms.ssd import SsdConfig, damping

SSD = ALGORITHMS["ssd"]


def test_damping_by_hand():
    importance_S = torch.tensor([8.0, 3.0, 3.1, 0.0, 5.0, 1.0])
    importance_D = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 2.0])
    # Chosen where I_S > 3·I_D, strictly; nothing matters to nobody, and what matters to S alone goes.
    assert damping(importance_S, importance_D, 3.0, 1.0).tolist() == pytest.approx(
        [1 / 8, 1, 1 / 3.1, 1, 0, 1]
    )
    # A large λ never makes a weight grow.
    assert damping(importance_S, importance_D, 3.0, 4.0).tolist() == pytest.approx([0.5, 1, 1, 1, 0, 1])
    assert damping(importance_S, importance_D, 0.4, 1.0).tolist() == pytest.approx(
        [1 / 8, 1 / 3, 1 / 3.1, 1, 0, 1]
    )


@pytest.mark.parametrize("alpha, dampening", [(1.5, 1.0), (2.0, 0.3)])
def test_one_run_by_hand(learner, split, alpha, dampening):
    """The diagonal Fisher is the mean of each example's squared gradient, S's own beside that of S ∪ R."""
    forget, retain = (torch.from_numpy(ids) for ids in (split.forget, split.retain))
    squares = [torch.cat(list(example_gradients(learner, ids))).square() for ids in (forget, retain)]
    of_S, of_D = squares[0].mean(0), torch.cat(squares).mean(0)
    start = torch.cat([weight.detach().flatten() for weight in learner.model.parameters()])
    expected = start.clone()
    chosen = of_S > alpha * of_D
    expected[chosen] *= (dampening * of_D / of_S)[chosen].clamp(max=1)
    learner.examples = 0
    note = SSD.run(learner, forget, retain, SsdConfig(alpha=alpha, dampening=dampening), 0)
    found = torch.cat([weight.detach().flatten() for weight in learner.model.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert note == f"ssd dampened {int(chosen.sum()):,} of 5,214 weights" and chosen.any()
    assert learner.examples == 270 and SSD.cost(40, 230, 64, SsdConfig()) == (0, 270)


def test_it_does_not_depend_on_the_batch_size(digits, recipe, original, split):
    from rumfast.training import Learner

    weights = []
    for size in (7, 64):
        learner = Learner(digits, recipe.model_copy(update={"batch_size": size}), "cpu")
        learner.model.load_state_dict(original.state_dict())
        SSD.run(learner, *map(torch.from_numpy, (split.forget, split.retain)), SsdConfig(alpha=2), 0)
        weights.append(torch.cat([weight.detach().flatten() for weight in learner.model.parameters()]))
    assert (weights[0] - weights[1]).norm() < 1e-2 * weights[0].norm()


def test_a_set_that_is_like_the_others_is_not_forgotten_and_the_note_says_so(learner, original, split):
    forget, retain = (torch.from_numpy(ids) for ids in (split.forget, split.retain))
    note = SSD.run(learner, forget, retain, SsdConfig(), 0)
    assert note == (
        "ssd dampened 0 of 5,214 weights, the model is the original: none is more than alpha=10 times as "
        "important to the forget set as to all data, and none can be more than 6.75 times"
    )
    for ours, theirs in zip(learner.model.parameters(), original.parameters(), strict=True):
        assert torch.equal(ours, theirs)
