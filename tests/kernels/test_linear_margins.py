import pytest
import torch

from rumfast.kernels import linear_margins as module
from rumfast.kernels import margins as dense
from rumfast.kernels.linear_margins import linear_margins, reference
from rumfast.kernels.margins import OUTPUTS


def draw(examples, classes, width, members=(), weights=None, dtype=torch.float32, bias=True, scale=1.0):
    generator = torch.Generator().manual_seed(examples + classes + width)
    weights = members if weights is None else weights
    embedding = torch.randn(*members, examples, width, generator=generator)
    weight = scale * torch.randn(*weights, classes, width, generator=generator) / width**0.5
    shift = torch.randn(*weights, classes, generator=generator).to(dtype) if bias else None
    label = torch.randint(classes, (examples,), generator=generator)
    return embedding.to(dtype), weight.to(dtype), shift, label


def transposed():
    embedding, weight, bias, label = draw(20, 12, 24)
    return embedding.t().contiguous().t(), weight.t().contiguous().t(), bias, label


def strided():
    embedding, weight, bias, label = draw(20, 12, 24)
    return embedding[::2, ::3], weight[:, ::3], bias, label[::2]


def tied():
    embedding, weight, bias, label = draw(9, 6, 8, bias=False)
    weight[4] = weight[1]
    best = (embedding @ weight.t()).argmax(1)
    return embedding, weight, bias, torch.where(best == 1, torch.tensor(4), best)


CASES = {
    "one row": lambda: draw(1, 2, 1),
    "no bias": lambda: draw(5, 3, 16, bias=False),
    "ragged blocks of rows": lambda: draw(65, 10, 32),
    "ragged blocks of classes": lambda: draw(7, 70, 16),
    "ragged width": lambda: draw(7, 10, 37),
    "several blocks of all": lambda: draw(66, 130, 40),
    "members": lambda: draw(5, 7, 8, members=(3,)),
    "members of members": lambda: draw(4, 3, 8, members=(2, 2)),
    "one embedding for all heads": lambda: draw(6, 7, 8, weights=(3,)),
    "one head for all members": lambda: draw(6, 7, 8, members=(3,), weights=()),
    "classes beyond the CPU's block": lambda: draw(3, 5000, 16),
    "rows and classes beyond it": lambda: draw(70, 4200, 16),
    "huge logits": lambda: draw(30, 10, 16, scale=60.0),
    "bf16": lambda: draw(20, 12, 32, dtype=torch.bfloat16),
    "fp16 of ragged width": lambda: draw(20, 12, 20, dtype=torch.float16),
    "transposed": transposed,
    "strided": strided,
    "tied classes": tied,
    "one row for all": lambda: (draw(1, 5, 8)[0].expand(7, 8), *draw(7, 5, 8)[1:]),
    "empty": lambda: draw(0, 5, 8),
    "no examples of members": lambda: draw(0, 5, 8, members=(2,)),
}


def to(device, tensors):
    return [None if tensor is None else tensor.to(device) for tensor in tensors]


@pytest.mark.parametrize("case", CASES)
def test_three_ways_agree(case, device):
    inputs = CASES[case]()
    floats, label = inputs[:3], inputs[3]
    exact = reference(*(t if t is None else t.double() for t in floats), label)
    plain = reference(*(t if t is None else t.float() for t in floats), label)
    triton = linear_margins(*to(device, inputs), backend="triton")
    close = exact.hard_margin.abs() < 1e-5  # equal but for rounding: either class may win
    for name, truth, float32, cpu, gpu in zip(
        OUTPUTS, exact, plain, linear_margins(*inputs), triton, strict=True
    ):
        assert cpu.shape == gpu.shape == truth.shape
        for found in (cpu, gpu.cpu()):
            if name == "correct":
                assert torch.equal(found[~close], truth[~close])
            else:
                slack = 3 * float((float32 - truth).abs().amax()) + 1e-6 if truth.numel() else 0.0
                torch.testing.assert_close(found.double(), truth, rtol=2e-6, atol=slack)


@pytest.mark.parametrize("name", OUTPUTS)
def test_any_subset_is_that_part_of_the_whole(name, device):
    inputs = draw(20, 30, 16)
    whole = linear_margins(*inputs)
    for found in (
        linear_margins(*inputs, (name,)),
        linear_margins(*to(device, inputs), (name,), backend="triton"),
        linear_margins(*inputs, (name,), backend="torch"),
    ):
        assert [value is not None for value in found] == [other == name for other in OUTPUTS]
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(whole, name), rtol=1e-5, atol=2e-6)


def test_two_calls_give_the_same_bits(device):
    inputs = draw(40, 70, 32)
    for backend, tensors in (("auto", inputs), ("triton", to(device, inputs))):
        first, second = (linear_margins(*tensors, backend=backend) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_logits_are_never_stored(monkeypatch):
    largest = 0
    empty = torch.empty

    def measured(*shape, **options):
        nonlocal largest
        made = empty(*shape, **options)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(torch, "empty", measured)
    linear_margins(*draw(3000, 1000, 4))
    assert largest <= 2 * dense.SCRATCH < 3000 * 1000


@pytest.mark.parametrize("seed", range(3))
def test_blocks_of_classes_on_a_cpu_merge(seed, monkeypatch):
    monkeypatch.setattr(dense, "SCRATCH", 64)
    monkeypatch.setattr(module, "FEWEST", 8)  # rows, hence 8 classes per block
    embedding, weight, bias, _ = draw(53, 50, 5 + seed, scale=20.0)
    weight[33] = weight[7]  # classes that tie, four blocks apart
    label = torch.arange(53) % 50
    label[50:] = (embedding[50:] @ weight.t() + bias).argmax(1)
    label[label == 7] = 33
    bias[33] = bias[7]
    bias[:8] -= 300.0  # the first block's maximum does not last, where it is one at all
    if seed == 2:
        bias[:8] = -torch.inf
        bias[8:] -= 200.0
    truth = reference(*(t.double() for t in (embedding, weight, bias)), label)
    plain = reference(embedding, weight, bias, label)
    found = linear_margins(embedding, weight, bias, label)
    assert torch.equal(found.correct, truth.correct)
    for a, b, exact in zip(found[:-1], plain[:-1], truth[:-1], strict=True):
        seen = exact.isfinite()
        slack = 3 * float((b - exact)[seen].abs().max()) + 1e-6
        torch.testing.assert_close(a.double()[seen], exact[seen], rtol=2e-6, atol=slack)
        assert not a[~exact.isnan()].isnan().any()


def test_a_tie_between_blocks_of_classes_goes_to_the_lowest(monkeypatch):
    monkeypatch.setattr(dense, "SCRATCH", 64)
    monkeypatch.setattr(module, "FEWEST", 8)
    weight = torch.zeros(20, 2)
    weight[[3, 13]] = 1.0
    inputs = torch.ones(3, 2), weight, None, torch.tensor([3, 13, 5])
    assert linear_margins(*inputs, ("correct",)).correct.tolist() == [True, False, False]


def test_a_class_that_a_bias_rules_out(device):
    embedding, weight, bias, label = draw(6, 4, 8)
    bias[2] = -torch.inf
    label = torch.zeros(6, dtype=torch.int64)
    without = [tensor[[0, 1, 3]] for tensor in (weight, bias)]
    truth = reference(embedding, *without, label)
    for found in (
        linear_margins(embedding, weight, bias, label),
        linear_margins(*to(device, (embedding, weight, bias, label)), backend="triton"),
    ):
        for a, b in zip(found, truth, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-6)


def test_row_offsets_beyond_two_to_the_31(device, sparse):
    stride = 1 << 29
    embedding = sparse(4 * stride + 16, torch.float16).as_strided((5, 16), (stride, 1))
    source, weight, bias, label = draw(5, 3, 16, dtype=torch.float16)
    embedding.copy_(source)
    inputs = to(device, (weight, bias, label))
    found = linear_margins(embedding, *inputs, ("margin",), backend="triton").margin
    truth = reference(source.float(), weight.float(), bias.float(), label).margin
    torch.testing.assert_close(found.cpu(), truth, rtol=1e-4, atol=1e-4)


def test_operator_keeps_its_promises(device):
    for inputs in (draw(5, 3, 4, members=(2,)), draw(5, 3, 4, weights=(2,), bias=False)):
        given = (*to(device, inputs), 0b1000001)
        torch.library.opcheck(torch.ops.rumfast.linear_margins.default, given)


def test_compiles_into_one_graph(device):
    inputs = to(device, draw(5, 3, 8))
    compiled = torch.compile(lambda *t: linear_margins(*t).margin * 2, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), linear_margins(*inputs).margin * 2)


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((4,), (3, 2), (3,), 4), r"got \(4,\), \(3, 2\), \(3,\) and \(4,\)"),
        (((4, 2), (3, 5), (3,), 4), r"got \(4, 2\), \(3, 5\)"),
        (((4, 2), (3, 2), (2,), 4), r"\(2,\) and \(4,\)"),
        (((4, 2), (3, 2), (3,), 5), r"and \(5,\)"),
        (((4, 2), (1, 2), (1,), 4), "got 1 class, expected at least 2"),
    ],
)
def test_what_cannot_be_meant(shapes, message):
    *floats, examples = shapes
    with pytest.raises(ValueError, match=message):
        linear_margins(*map(torch.zeros, floats), torch.zeros(examples, dtype=torch.int64))


def test_mixed_dtypes_and_labels_out_of_range_are_refused():
    embedding, weight, bias, label = draw(4, 3, 2)
    with pytest.raises(ValueError, match="one dtype expected, got"):
        linear_margins(embedding, weight.half(), bias, label)
    with pytest.raises(ValueError, match=r"labels span -1..-1, expected 0..2"):
        linear_margins(embedding, weight, bias, torch.full((4,), -1))
    assert module.meta(2, 1, torch.float32)["BLOCK_D"] == 16  # the least that tl.dot takes
