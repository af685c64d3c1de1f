import mpmath
import numpy as np
import pytest
import torch

from rumfast.kernels.margins import margins

mpmath.mp.dps = 60


def truth(logits, label):
    """Margin, hard margin, loss and confidence of one example in 60 digits."""
    z = [mpmath.mpf(float(value)) for value in logits]
    others = [value for c, value in enumerate(z) if c != label]
    margin = z[label] - mpmath.log(mpmath.fsum(mpmath.exp(value) for value in others))
    total = mpmath.fsum(mpmath.exp(value) for value in z)
    p = mpmath.exp(z[label]) / total
    return margin, z[label] - max(others), -mpmath.log(p), p


def cases():
    rng = np.random.default_rng(0)
    ends = np.array([80, -80, 1e-3, -1e-3], np.float32)
    for classes in (2, 3, 4, 10, 37, 100):
        yield rng.choice(ends, (8, classes)), rng.integers(0, classes, 8)
        yield rng.normal(0, 10, (8, classes)).astype(np.float32), rng.integers(0, classes, 8)
    # Memorized and mistaken examples: the label's logit stands alone, above or below.
    for own, other in ((80, 1e-3), (80, -80), (-80, 80), (1e-3, -1e-3), (-1e-3, 80)):
        logits = np.full((3, 7), other, np.float32)
        logits[[0, 1, 2], [0, 3, 6]] = own
        yield logits, np.array([0, 3, 6])


def test_all_quantities_agree_with_sixty_digits():
    for logits, label in cases():
        ours = margins(torch.from_numpy(logits), torch.from_numpy(label))
        for n in range(len(label)):
            margin, hard, loss, p = truth(logits[n], label[n])
            slack = 1e-6 * (
                1 + abs(float(logits[n, label[n]])) + abs(float(margin))
            )  # one rounding of z_y and lse
            assert abs(ours.margin[n].item() - float(margin)) < slack
            assert ours.hard_margin[n].item() == pytest.approx(float(hard), rel=1e-6, abs=1e-9)
            assert ours.loss[n].item() == pytest.approx(float(loss), rel=2 * slack + 1e-6)
            assert ours.confidence[n].item() == pytest.approx(float(p), rel=2 * slack + 1e-6)


def test_margin_of_a_memorized_example_keeps_all_its_digits():
    # p_y = 1 − 9e−35 rounds to 1: log(p/(1−p)), or lse_all − exp(z_y), would give infinity.
    logits = torch.full((1, 10), -40.0)
    logits[0, 4] = 40.0
    found = margins(logits, torch.tensor([4]))
    assert found.margin.item() == pytest.approx(80 - np.log(9), rel=1e-6)
    assert found.loss.item() == pytest.approx(9 * np.exp(-80), rel=1e-4)


def test_hand_worked():
    found = margins(torch.tensor([[1.0, 3.0, 0.0], [1.0, 3.0, 0.0]]), torch.tensor([1, 2]))
    np.testing.assert_allclose(found.margin, [3 - np.log(np.e + 1), -np.log(np.e + np.e**3)], rtol=1e-6)
    assert found.hard_margin.tolist() == [2.0, -3.0] and found.correct.tolist() == [True, False]


def test_margin_is_the_logit_of_the_confidence_and_the_loss_is_torchs():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 10, generator=draw) * 3
    label = torch.randint(0, 10, (64,), generator=draw)
    found = margins(logits, label)
    exact = torch.softmax(logits.double(), 1).gather(1, label[:, None])[:, 0]
    torch.testing.assert_close(found.margin.double(), torch.logit(exact), rtol=1e-5, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(logits.double(), label, reduction="none")
    torch.testing.assert_close(found.loss.double(), loss, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.confidence.double(), exact, rtol=1e-5, atol=0)


def test_two_classes_give_the_difference_of_logits_exactly():
    logits = torch.tensor([[0.1, 80.0], [-80.0, 1e-3]])
    found = margins(logits, torch.tensor([0, 1]))
    assert (
        found.margin.tolist()
        == found.hard_margin.tolist()
        == [(logits[0, 0] - logits[0, 1]).item(), (logits[1, 1] - logits[1, 0]).item()]
    )


def test_a_tie_goes_to_the_lowest_class():
    logits = torch.tensor([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [1.0, 1.0, 1.0]])
    assert margins(logits, torch.tensor([0, 1, 2])).correct.tolist() == [True, False, False]
    assert margins(logits, torch.tensor([0, 1, 2])).hard_margin.tolist() == [0.0, 0.0, 0.0]


def test_members_are_independent_rows():
    draw = torch.Generator().manual_seed(1)
    logits_MNC, label = torch.randn(2, 3, 5, 7, generator=draw), torch.tensor([0, 6, 2, 2, 1])
    together = margins(logits_MNC, label)
    assert together.margin.shape == (2, 3, 5)
    for i in range(2):
        for m in range(3):
            alone = margins(logits_MNC[i, m], label)
            assert all(torch.equal(a[i, m], b) for a, b in zip(together, alone, strict=True))


def test_bf16_logits_are_computed_in_float32():
    logits = (torch.randn(9, 5, generator=torch.Generator().manual_seed(2)) * 20).bfloat16()
    label = torch.arange(9) % 5
    assert all(
        torch.equal(a, b) for a, b in zip(margins(logits, label), margins(logits.float(), label), strict=True)
    )
    assert margins(logits, label).margin.dtype == torch.float32


def test_no_examples_and_one():
    assert margins(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).margin.shape == (0,)
    assert margins(torch.zeros(1, 2), torch.tensor([1])).margin.tolist() == [0.0]


def test_the_input_is_left_alone():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
    before = logits.clone()
    margins(logits, torch.tensor([0, 1, 2, 0]))
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    "shape, label, message",
    [
        ((4, 1), [0] * 4, "got 1 class, expected at least 2"),
        ((4,), [0] * 4, r"logits \[..., N, C\] and label \[N\] expected, got \(4,\) and \(4,\)"),
        ((4, 3), [0] * 3, r"got \(4, 3\) and \(3,\)"),
        ((4, 3), [[0]] * 4, r"got \(4, 3\) and \(4, 1\)"),
        ((4, 3), [0, 1, 2, 3], "labels span 0..3, expected 0..2"),
        ((4, 3), [0, -1, 2, 2], "labels span -1..2, expected 0..2"),
    ],
)
def test_what_cannot_be_meant(shape, label, message):
    with pytest.raises(ValueError, match=message):
        margins(torch.zeros(shape), torch.tensor(label))
