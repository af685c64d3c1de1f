import numpy as np
import pytest
import torch

from rumfast.kernels import margins as module
from rumfast.kernels.margins import OUTPUTS, WIDEST, margins, reference


def truth(logits, label):
    """Margin, hard margin, loss and confidence of one example in 60 digits."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 60
    z = [mpmath.mpf(float(value)) for value in logits]
    others = [value for c, value in enumerate(z) if c != label]
    margin = z[label] - mpmath.log(mpmath.fsum(mpmath.exp(value) for value in others))
    total = mpmath.fsum(mpmath.exp(value) for value in z)
    p = mpmath.exp(z[label]) / total
    return margin, z[label] - max(others), -mpmath.log(p), p


def extreme_logits():
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
    for logits, label in extreme_logits():
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


def test_margin_of_a_memorized_example_keeps_all_its_digits(device):
    # p_y = 1 − 9e−35 rounds to 1: log(p/(1−p)), or lse_all − exp(z_y), would give infinity.
    logits = torch.full((1, 10), -40.0)
    logits[0, 4] = 40.0
    label = torch.tensor([4])
    for found in (margins(logits, label), margins(logits.to(device), label.to(device), backend="triton")):
        assert found.margin.item() == pytest.approx(80 - np.log(9), rel=1e-6)
        assert found.loss.item() == pytest.approx(9 * np.exp(-80), rel=1e-4, abs=0)


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
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[i, m], b, rtol=1e-6, atol=1e-6)


def test_bf16_logits_are_computed_in_float32():
    logits = (torch.randn(9, 5, generator=torch.Generator().manual_seed(2)) * 20).bfloat16()
    label = torch.arange(9) % 5
    assert all(
        torch.equal(a, b) for a, b in zip(margins(logits, label), margins(logits.float(), label), strict=True)
    )
    assert margins(logits, label).margin.dtype == torch.float32


def test_no_examples_and_one():
    assert margins(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).margin.shape == (0,)
    assert margins(torch.zeros(3, 0, 5), torch.zeros(0, dtype=torch.int64)).correct.shape == (3, 0)
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


def draw(*shape, scale=4.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    logits = (scale * torch.randn(*shape, generator=generator)).to(dtype)
    return logits, torch.randint(shape[-1], shape[-2:-1], generator=generator)


def with_infinities():
    logits, label = draw(6, 5)
    logits[0, (label[0] + 1) % 5] = -torch.inf  # a class that is ruled out
    logits[1] = torch.where(torch.arange(5) == label[1], 1.0, -torch.inf)  # all others are
    logits[2, label[2]] = -torch.inf  # the label is
    return logits, label


def ties():
    logits = torch.zeros(6, 4)
    logits[3:, 1:3] = 2.0
    return logits, torch.tensor([0, 1, 3, 1, 2, 0])


def wide_ties():
    logits = torch.zeros(3, WIDEST + 9)
    logits[:, [3, WIDEST + 2, WIDEST + 5]] = 2.0
    return logits, torch.tensor([3, WIDEST + 2, 4])


CASES = {
    "one row of two classes": lambda: draw(1, 2),
    "ragged last block of rows": lambda: draw(67, 10),
    "members": lambda: draw(3, 7, 10),
    "members of members": lambda: draw(2, 2, 5, 3),
    "ragged classes": lambda: draw(9, 37),
    "a power of two": lambda: draw(5, 64),
    "whole row in registers": lambda: draw(3, WIDEST),
    "one class more than fits": lambda: draw(2, WIDEST + 1),
    "three blocks of classes": lambda: draw(2, 3, 2 * WIDEST + 5),
    "a large vocabulary": lambda: draw(2, 262_144),
    "huge logits": lambda: draw(40, 10, scale=80.0),
    "far from zero": lambda: (draw(20, 10)[0] + 300, draw(20, 10)[1]),
    "overflowing sums": lambda: (draw(20, 10)[0] - 500, draw(20, 10)[1]),
    "infinite logits": with_infinities,
    "ties": ties,
    "ties between blocks of classes": wide_ties,
    "near-duplicate rows": lambda: (draw(1, 10)[0] + 1e-6 * draw(8, 10)[0], draw(8, 10)[1]),
    "bf16": lambda: draw(33, 10, dtype=torch.bfloat16),
    "fp16": lambda: draw(33, 100, dtype=torch.float16),
    "transposed": lambda: (draw(10, 33)[0].t(), draw(33, 10)[1]),
    "every other row and class": lambda: (draw(20, 22)[0][::2, ::2], draw(10, 11)[1]),
    "one row for all": lambda: (draw(1, 10)[0].expand(12, 10), draw(12, 10)[1]),
    "one member for all": lambda: (draw(6, 10)[0].expand(4, 6, 10), draw(6, 10)[1]),
    "empty": lambda: draw(0, 10),
}


@pytest.mark.parametrize("case", CASES)
def test_three_ways_agree(case, device):
    logits, label = CASES[case]()
    exact = reference(logits.double(), label)
    plain = reference(logits.float(), label)
    triton = margins(logits.to(device), label.to(device), backend="triton")
    for name, truth, slack, cpu, gpu in zip(
        OUTPUTS, exact, plain, margins(logits, label), triton, strict=True
    ):
        assert cpu.shape == gpu.shape == truth.shape == logits.shape[:-1]
        if name == "correct":
            assert torch.equal(cpu, truth) and torch.equal(gpu.cpu(), truth)
            continue
        own_error = (
            (slack.double() - truth).nan_to_num(posinf=0, neginf=0).abs().max() if label.numel() else 0
        )
        for found in (cpu, gpu.cpu()):
            torch.testing.assert_close(
                found.double(), truth, rtol=1e-6, atol=2 * float(own_error) + 4e-7, equal_nan=True, msg=name
            )


@pytest.mark.parametrize("name", OUTPUTS)
def test_any_subset_is_that_part_of_the_whole(name, device):
    logits, label = draw(50, 10)
    logits[7] *= 40  # a row whose sum of exponentials needs its maximum subtracted
    whole = margins(logits, label)
    for found in (
        margins(logits, label, (name,)),
        margins(logits.to(device), label.to(device), (name,), backend="triton"),
        margins(logits, label, (name,), backend="torch"),
    ):
        assert [value is not None for value in found] == [other == name for other in OUTPUTS]
        slack = {"rtol": 1e-5, "atol": 4e-6}
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(whole, name), **slack)


LAYOUTS = {
    "packed": lambda members, rows, classes: (members, rows, classes),
    "gaps between rows": lambda members, rows, classes: (members, rows, classes + 3),
    "rows outermost": lambda members, rows, classes: (rows, members, classes),
    "classes outermost": lambda members, rows, classes: (classes, members, rows),
    "one row for all": lambda members, rows, classes: (members, 1, classes),
}
VIEWS = {
    "gaps between rows": lambda stored, classes: stored[..., :classes],
    "rows outermost": lambda stored, classes: stored.transpose(0, 1),
    "classes outermost": lambda stored, classes: stored.permute(1, 2, 0),
    "one row for all": lambda stored, classes: stored.expand(-1, 5, -1),
}


def laid_out(layout, members, rows, classes, device):
    """Whole numbers, so that many logits tie; some infinite, one NaN; and labels."""
    logits, _ = draw(*LAYOUTS[layout](members, rows, classes), scale=1.5)
    logits = logits.round().to(device)
    if logits.numel() > 20:
        logits.view(-1)[::17], logits.view(-1)[9] = -torch.inf, torch.nan
    view = VIEWS.get(layout, lambda stored, classes: stored)(logits, classes)
    assert view.shape == (members, rows, classes)
    return view, (torch.arange(rows, device=device) * 7 + classes - 1) % classes


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [2, 3, 10, 31, 32, 33, 64, 100, 255, 256])
def test_every_width_and_layout_agrees_with_float64(classes, layout, device):
    logits, label = laid_out(layout, 2, 5, classes, device)
    exact = reference(logits.double(), label)
    found = margins(logits, label, backend="triton")
    for name, truth, ours in zip(OUTPUTS, exact, found, strict=True):
        lost = exact.margin.isnan()
        if name == "correct":
            assert torch.equal(ours, truth)
            continue
        assert torch.equal(ours.isnan(), lost), name
        torch.testing.assert_close(ours[~lost].double(), truth[~lost], rtol=2e-6, atol=4e-6, msg=name)


@pytest.mark.parametrize("classes", [10, 100, 300])
def test_few_or_no_rows_of_few_or_no_members(classes, device):
    for members, rows in ((0, 5), (1, 0), (1, 1), (3, 1)):
        logits, label = draw(members, rows, classes)
        found = margins(logits.to(device), label.to(device), backend="triton")
        expected = margins(logits, label)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.shape == (members, rows)
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=2e-6)


def test_more_members_than_a_grid_has_room_for(device, monkeypatch):
    logits, label = draw(5, 3, 10)
    whole = margins(logits.to(device), label.to(device), backend="triton")
    monkeypatch.setattr(module, "MOST_MEMBERS", 2)
    parts = margins(logits.view(1, 5, 3, 10).to(device), label.to(device), backend="triton")
    for ours, theirs in zip(parts, whole, strict=True):
        assert torch.equal(ours[0], theirs)


def test_a_thread_takes_up_to_32_classes_and_packed_rows_four_at_a_time():
    blocks = {classes: module.meta(classes, packed=True) for classes in (10, 12, 32, 33, 100, 255, 256)}
    threads = {c: 128 // one["BLOCK_N"] for c, one in blocks.items()}
    assert [threads[c] for c in (10, 12, 32, 33, 100, 255)] == [1, 1, 1, 2, 4, 8]
    assert [blocks[c]["BLOCK_C"] // threads[c] for c in (10, 12, 33, 100)] == [2, 4, 1, 4]
    assert module.meta(12, packed=False)["BLOCK_C"] == 1 and blocks[256]["BLOCK_C"] == 256


@pytest.mark.parametrize("classes", [4, 40, 300])
def test_labels_out_of_range_give_nan_on_a_gpu_and_are_not_correct(classes, device):
    label = torch.tensor([-1, classes, 2**32 + 1, 2])  # the third is 1 in its lower half
    found = margins(torch.zeros(4, classes).to(device), label.to(device), backend="triton")
    assert found.margin.isnan().tolist() == [True, True, True, False]
    assert found.correct.tolist() == [False] * 4


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_row_with_nan_is_nan_throughout_and_not_correct(name, device):
    logits = torch.tensor([[torch.nan, 1.0, 2.0], [3.0, torch.nan, 1.0], [1.0, 0.0, 0.0]])
    label = torch.tensor([0, 0, 0])
    for found in (
        margins(logits, label, (name,)),
        margins(logits, label, OUTPUTS),
        margins(logits.to(device), label.to(device), backend="triton"),
    ):
        lost = ~getattr(found, name) if name == "correct" else getattr(found, name).isnan()
        assert lost.tolist() == [True, True, False]


def test_blocks_of_a_chunked_pass_meet(monkeypatch):
    logits, label = draw(101, 10)
    whole = margins(logits, label)
    monkeypatch.setattr(module, "SCRATCH", 70)
    for a, b in zip(margins(logits, label), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_row_offsets_beyond_two_to_the_31(device, sparse):
    stride = 1 << 29
    logits = sparse(4 * stride + 3, torch.float16).as_strided((5, 3), (stride, 1))
    label = torch.arange(5, device=device) % 3
    logits.copy_(draw(5, 3)[0])
    found = margins(logits, label, ("margin",), backend="triton").margin
    torch.testing.assert_close(found, reference(logits.float(), label).margin)


def test_operator_keeps_its_promises(device):
    logits, label = (tensor.to(device) for tensor in draw(2, 5, 3))
    for outputs in (1, 0b1000001, 0b1111111):
        torch.library.opcheck(torch.ops.rumfast.margins.default, (logits, label, outputs))


def test_compiles_into_one_graph(device):
    logits, label = (tensor.to(device) for tensor in draw(5, 3))
    compiled = torch.compile(lambda z, y: margins(z, y).margin * 2, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, label), margins(logits, label).margin * 2)


def test_unknown_outputs_are_refused():
    with pytest.raises(ValueError, match=r"got \['margins'\], expected some of margin, hard_margin"):
        margins(torch.zeros(1, 2), torch.tensor([0]), ("margins",))
    with pytest.raises(ValueError, match=r"got \[\]"):
        margins(torch.zeros(1, 2), torch.tensor([0]), ())
