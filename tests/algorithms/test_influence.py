import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from rumfast.algorithms import ALGORITHMS
from rumfast.algorithms.gradients import example_gradients
from rumfast.algorithms.influence import InfluenceConfig, check_memory, inverse_fisher_product
from rumfast.errors import UsageError
from rumfast.runtime import generator

INFLUENCE = ALGORITHMS["influence"]


@pytest.fixture(scope="module")
def gradients_MP():
    """Gradients of 200 examples in a network of 50 weights, in float64."""
    draw = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2), torch.nn.Linear(2, 2)
    )
    weights = {
        name: torch.randn(weight.shape, generator=draw, dtype=torch.float64)
        for name, weight in model.named_parameters()
    }
    image, label = torch.randn(200, 4, generator=draw, dtype=torch.float64), torch.arange(200) % 2
    one = grad(lambda w, x, y: cross_entropy(functional_call(model, w, x), y))
    each = vmap(one, (None, 0, 0))(weights, image, label)
    flat = torch.cat([gradient.flatten(1) for gradient in each.values()], 1)
    assert flat.shape == (200, 50)
    return flat


def recursion(gradients_MP, vector_P, dampening):
    """Sherman and Morrison's, one example at a time, on the whole inverse."""
    inverse = torch.eye(len(vector_P), dtype=torch.float64) / dampening
    for g in gradients_MP:
        u = inverse @ g
        inverse = inverse - torch.outer(u, u) / (len(gradients_MP) + g @ u)
    return inverse @ vector_P


@pytest.mark.parametrize("dampening", [1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("sizes", [[200], [64, 64, 64, 8], [1] * 200])
def test_it_is_the_dense_inverse_fisher_of_a_network_of_50_weights(gradients_MP, dampening, sizes):
    vector = torch.linspace(-1, 1, 50, dtype=torch.float64)
    fisher = gradients_MP.T @ gradients_MP / 200 + dampening * torch.eye(50, dtype=torch.float64)
    dense = torch.linalg.solve(fisher, vector)
    found = inverse_fisher_product(gradients_MP.split(sizes), vector, dampening)
    torch.testing.assert_close(found, dense, rtol=1e-6, atol=1e-8 * dense.abs().max().item())
    if len(sizes) == 1:
        one_by_one = recursion(gradients_MP, vector, dampening)
        torch.testing.assert_close(found, one_by_one, rtol=1e-6, atol=1e-8 * dense.abs().max().item())


@pytest.mark.parametrize("dampening", [1e-3, 1.0])
def test_float32_is_enough(gradients_MP, dampening):
    vector = torch.linspace(-1, 1, 50, dtype=torch.float64)
    exact = inverse_fisher_product([gradients_MP], vector, dampening)
    single = inverse_fisher_product([gradients_MP.float()], vector.float(), dampening)
    assert single.dtype == torch.float32
    assert (single.double() - exact).norm() < 1e-3 * exact.norm()


def test_fewer_gradients_than_weights_and_none_in_some_directions():
    gradient = torch.zeros(1, 4, dtype=torch.float64)
    gradient[0, 1] = 3.0
    found = inverse_fisher_product([gradient], torch.ones(4, dtype=torch.float64), 0.5)
    assert found.tolist() == pytest.approx([2, 1 / 9.5, 2, 2])


@pytest.mark.parametrize("samples", [230, 60])
def test_one_step_by_hand(learner, original, split, samples):
    """θ + α·F̂⁻¹v in float64: v sums over all of R, F̂ over what was sampled of it."""
    forget, retain = (torch.from_numpy(ids) for ids in (split.forget, split.retain))
    g_S, g_R = (torch.cat(list(example_gradients(learner, ids))).double() for ids in (forget, retain))
    start = torch.cat([weight.detach().flatten() for weight in learner.model.parameters()])
    learner.examples = 0
    config = InfluenceConfig(alpha=0.3, samples=samples, dampening=0.05)
    assert INFLUENCE.run(learner, forget, retain, config, 0) is None
    moved = torch.cat([weight.detach().flatten() for weight in learner.model.parameters()]) - start
    v = g_S.sum(0) / 270 - g_R.sum(0) * 40 / (270 * 230)
    assert learner.examples == 270 and INFLUENCE.cost(40, 230, 64, config) == (0, 270)
    sampled = torch.randperm(230, generator=generator("fisher", 0))[:samples]
    expected = 0.3 * inverse_fisher_product([g_R[sampled]], v, 0.05)
    assert (moved - expected).norm() < 1e-3 * expected.norm()
    for ours, theirs in zip(learner.model.buffers(), original.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_that_do_not_fit_are_refused_before_they_are_taken():
    check_memory(1000, 1_000_000, 4_000_000_000)
    with pytest.raises(
        UsageError, match=r"samples=1000 gradients of 11,000,000 weights need 44 GB, 8 GB are"
    ):
        check_memory(1000, 11_000_000, 8_000_000_000)


def test_defaults():
    assert (InfluenceConfig().alpha, InfluenceConfig().samples) == (0.2, 1000)
