"""Loss curvature and holdout divergence against closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from rumfast.errors import DataError
from rumfast.models import build_model
from rumfast.scores import loss_curvature, symmetric_divergence


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_of_a_linear_softmax_it_is_the_hessian_times_the_direction():
    weight_CD, x_BD, label_B = draw(4, 7), draw(5, 7, seed=1), torch.tensor([0, 3, 1, 2, 2])
    p_BC = (x_BD @ weight_CD.T).softmax(1)
    gradient_BD = (p_BC - torch.eye(4, dtype=torch.float64)[label_B]) @ weight_CD
    v_BD = gradient_BD.sign() / 7**0.5
    for step, tolerance in ((0.01, 2e-2), (1e-5, 1e-4)):
        found_B = loss_curvature(lambda x: x @ weight_CD.T, x_BD, label_B, step)
        # Exactly, from gradients in closed form …
        q_BC = ((x_BD + step * v_BD) @ weight_CD.T).softmax(1)
        torch.testing.assert_close(found_B, ((q_BC - p_BC) @ weight_CD).norm(dim=1), rtol=1e-8, atol=0)
        # … and to first order from the Hessian Wᵀ(diag p − ppᵀ)W, h‖Hv‖.
        for row, p_C in enumerate(p_BC):
            hessian_DD = weight_CD.T @ (p_C.diag() - p_C.outer(p_C)) @ weight_CD
            assert found_B[row].item() == pytest.approx(
                step * (hessian_DD @ v_BD[row]).norm().item(), rel=tolerance
            )


def test_of_logistic_regression_by_hand():
    # z = (w·x, 0) with w = (3, −4), x = 0: p = ½, H = ¼wwᵀ, v = ±(1, −1)/√2, so h‖Hv‖ = ¼ · 7/√2 · 5 · h.
    weight_2D = torch.tensor([[3.0, -4.0], [0.0, 0.0]], dtype=torch.float64)
    x_12, label_1 = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])
    found_1 = loss_curvature(lambda x: x @ weight_2D.T, x_12, label_1, step=1e-4)
    assert found_1.item() == pytest.approx(1e-4 * 0.25 * 7 / 2**0.5 * 5, rel=1e-6)


def test_confident_examples_are_told_apart():
    weight_CD = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    x_B2 = torch.tensor([[10.0, 0.0], [12.0, 0.0], [20.0, 0.0], [35.0, 0.0]])  # p − 1 is 0 in float32
    found_B = loss_curvature(lambda x: x @ weight_CD.T, x_B2, torch.zeros(4, dtype=torch.int64))
    # exp(−2x) · (1 − exp(−2hv₀)) · √4: gradients are along the first axis alone, so v₀ = −1 here.
    expected_B = 2 * torch.exp(-2 * x_B2[:, 0].double()) * (np.exp(0.02) - 1)
    torch.testing.assert_close(found_B.double(), expected_B, rtol=1e-3, atol=0)


def test_examples_do_not_meet_and_the_model_is_untouched():
    model = build_model("resnet8", 10, width=4).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image_BCHW, label_B = draw(7, 3, 8, 8).float(), torch.arange(7)
    together_B = loss_curvature(model, image_BCHW, label_B)
    with torch.no_grad():  # gradients are taken there too
        alone_B = torch.cat(
            [loss_curvature(model, image_BCHW[i : i + 1], label_B[i : i + 1]) for i in range(7)]
        )
    torch.testing.assert_close(together_B, alone_B, rtol=1e-3, atol=0)
    assert (together_B > 0).all() and not together_B.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_and_flat_losses():
    assert loss_curvature(nn.Linear(3, 2), torch.empty(0, 3), torch.empty(0, dtype=torch.int64)).shape == (0,)
    flat = loss_curvature(
        lambda x: x.detach() @ torch.ones(3, 2) + 0 * x[:, :2], torch.ones(2, 3), torch.tensor([0, 1])
    )
    assert flat.tolist() == [0.0, 0.0]


def test_symmetric_divergence_by_hand():
    p, q = np.array([0.5, 0.5]), np.array([0.75, 0.25])
    by_hand = 0.5 * (p @ np.log(p / q) + q @ np.log(q / p))
    before, after = np.log(np.stack([p, p])), np.log(np.stack([q, p])) + 7.0  # logits may be shifted
    np.testing.assert_allclose(symmetric_divergence(before, after), [by_hand, 0.0], atol=1e-15)
    np.testing.assert_allclose(symmetric_divergence(after, before), [by_hand, 0.0], atol=1e-15)
    assert by_hand == pytest.approx(np.log(3) / 8)


def test_divergence_of_certain_outputs_is_finite():
    certain, other = np.array([[1000.0, 0.0]], np.float32), np.array([[0.0, 1000.0]], np.float32)
    # p = (1, e⁻¹⁰⁰⁰), q the other way round: ½ (1 · 1000 + 1 · 1000).
    np.testing.assert_allclose(symmetric_divergence(certain, other), [1000.0])


def test_other_shapes_are_refused():
    with pytest.raises(DataError, match=r"got logits \(2, 3\) and \(2, 4\)"):
        symmetric_divergence(np.zeros((2, 3)), np.zeros((2, 4)))
