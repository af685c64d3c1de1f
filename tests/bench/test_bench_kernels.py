"""Kernels' peers do the same work as ours, and a record says all that is needed to read it."""

import json
from dataclasses import replace
from functools import partial
from time import sleep

import pytest
import torch

from rumfast.bench import kernels, peers, record, timing, workloads
from rumfast.bench.record import take
from rumfast.bench.report import SCHEMA, table
from rumfast.bench.setting import Setting
from rumfast.bench.timing import CLEAR_REFS, interleave, peak_megabytes
from rumfast.kernels.linear_margins import linear_margins
from rumfast.kernels.margins import margins
from rumfast.kernels.neighbours import nearest
from rumfast.kernels.pairwise import mean_distance, mean_squared_distance, rbf_mean
from rumfast.scores import entanglement_score

CPU = torch.device("cpu")
TINY = Setting(CPU, quick=True, copy_gb_s=10.0, matmul_gflop_s={"float32": 10.0})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_variants_take_turns():
    order = []
    variants = {name: lambda name=name: order.append(name) for name in "ABC"}
    times = interleave(variants, 3, CPU, warmup=2)
    assert "".join(order) == "ABC" * 5
    assert {name: len(ms) for name, ms in times.items()} == {"A": 3, "B": 3, "C": 3}


@pytest.mark.parametrize("formula", [peers.softmax_margins, peers.masked_margins])
@pytest.mark.parametrize("classes", [2, 7])
def test_peers_of_all_outputs_agree_with_ours(formula, classes):
    logits, label = workloads.logits(*[(33, classes)] * 3)(TINY, generator(classes))
    for ours, theirs in zip(margins(logits / 4, label), formula(logits / 4, label), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("formula", [peers.softmax_margin, peers.masked_margin])
def test_margin_peers_agree_with_ours(formula):
    logits, label = workloads.logits(*[(33, 7)] * 3)(TINY, generator())
    torch.testing.assert_close(
        formula(logits / 4, label), margins(logits / 4, label).margin, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("formula", [peers.margin_of_members, peers.margin_by_member])
def test_members_peers_agree_with_ours(formula):
    logits, label = workloads.logits(*[(3, 5, 4)] * 3)(TINY, generator())
    torch.testing.assert_close(formula(logits, label), margins(logits, label).margin, rtol=1e-5, atol=1e-5)


def test_linear_margin_peer_agrees_with_ours():
    layer = workloads.layer(*[(9, 6, 5)] * 3)(TINY, generator())
    ours = linear_margins(*layer).margin
    torch.testing.assert_close(peers.linear_masked_margin(*layer), ours, rtol=1e-5, atol=1e-5)


TWO_SETS, ONE_SET = (2500, 6, 5), (70, 5)  # of the first, more rows than one block has


@pytest.mark.parametrize("shape", [TWO_SETS, ONE_SET])
@pytest.mark.parametrize("formula", [peers.cdist_mean, peers.expanded_mean, peers.cdist_in_rows])
def test_mean_distance_peers_agree_with_ours(formula, shape):
    sets = workloads.points(shape, shape, shape)(TINY, generator())
    assert float(formula(*sets)) == pytest.approx(float(mean_distance(*sets)), rel=1e-5)


def test_other_pairwise_peers_agree_with_ours():
    sets = workloads.points(TWO_SETS, TWO_SETS, TWO_SETS)(TINY, generator())
    squared = float(mean_squared_distance(*sets))
    for formula in (
        peers.cdist_squared,
        peers.expanded_squared,
        partial(peers.mean_in_rows, peers.cdist_squared),
    ):
        assert float(formula(*sets)) == pytest.approx(squared, rel=1e-5)
    sets = tuple(16 * points for points in sets)  # so that bandwidths tell the pairs apart
    kernel = rbf_mean(*sets, bandwidths=peers.BANDWIDTHS).float()
    assert kernel.diff().min() > 0.05
    for formula in (peers.cdist_rbf, partial(peers.mean_in_rows, peers.cdist_rbf)):
        torch.testing.assert_close(formula(*sets), kernel, rtol=1e-5, atol=1e-6)


def test_neighbour_peers_agree_with_ours():
    y, x = workloads.points(TWO_SETS, TWO_SETS, TWO_SETS)(TINY, generator())
    distance, index = nearest(x, y, k=peers.NEIGHBOURS)
    for formula in (peers.cdist_neighbours, peers.sklearn_neighbours):
        found = formula(x, y)
        torch.testing.assert_close(found[0].float(), distance, rtol=1e-4, atol=1e-4)
        assert torch.equal(found[1], index)
    x, y = y, torch.cat([x, y[:9]])  # more rows than one block has
    torch.testing.assert_close(
        peers.neighbours_in_rows(x, y), nearest(x, y, k=peers.NEIGHBOURS)[0], rtol=1e-3, atol=2e-3
    )


@pytest.mark.parametrize("formula", [peers.batched_entanglement, peers.whole_entanglement])
@pytest.mark.parametrize("shape", [(513, 7, 5), (256, 1, 5), (2, 300, 5)])
def test_entanglement_peers_agree_with_ours(formula, shape):
    retain, forget = workloads.points(shape, shape, shape)(TINY, generator())
    assert float(formula(retain, forget + 1)) == pytest.approx(
        entanglement_score(retain, forget + 1), rel=1e-4
    )


@pytest.mark.parametrize("name", ["augment", "augment to bfloat16", "normalise"])
def test_image_peers_agree_with_ours(name):
    kernel = workloads.CASES[name]
    shape = (20, 13)
    inputs = workloads.images(name != "normalise", shape, shape, shape)(TINY, generator())
    ours = kernel.ours(*inputs)
    assert ours.shape == (13, 3, 32, 32)
    for formula in kernel.peers.values():
        # Rounded in another order, a number may fall on the other side of a half in bfloat16.
        tolerance = (
            {"rtol": 1e-2, "atol": 1e-2} if ours.dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
        )
        torch.testing.assert_close(formula(*inputs), ours, **tolerance)
    if name != "normalise":
        crops = torch.stack([*inputs[2:4]])
        assert crops.min() < 3 and crops.max() > 5 and 0 < inputs[4].sum() < 13


def test_a_peer_that_would_not_fit_is_missing_with_what_it_needs():
    large = torch.zeros(1, 16).expand(50_000, 16)
    assert kernels.obstacle(peers.cdist_mean, CPU, (large, large)) == "needs 10 GB"
    assert kernels.obstacle(peers.cdist_mean, CPU, (large,)) == "needs 10 GB"
    assert kernels.obstacle(peers.cdist_mean, CPU, (large[:5000], large)) == ""
    assert kernels.obstacle(peers.cdist_in_rows, CPU, (large, large)) == ""
    cuda = torch.device("cuda")
    assert kernels.obstacle(peers.sklearn_neighbours, cuda, (large, large)) == "runs on a CPU alone"
    assert kernels.obstacle(partial(peers.single_crops, dtype=None), cuda, ()) == "runs on a CPU alone"


def test_peers_of_a_kernel_that_can_not_run_are_named(monkeypatch):
    kernel = workloads.CASES["mean distance"]
    inputs = torch.zeros(1, 1).expand(50_000, 1), torch.zeros(1, 1).expand(50_000, 1)
    functions, missing = kernels.variants(kernel, TINY, inputs)
    assert list(functions) == ["ours", "cdist in blocks"]
    assert missing == {"torch.cdist": "needs 10 GB", "torch.compile": "left out of quick runs"}
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    functions, missing = kernels.variants(kernel, replace(TINY, quick=False), (torch.zeros(3, 1),))
    assert missing == {"torch.compile": "no C++ compiler"}
    monkeypatch.undo()
    functions, missing = kernels.variants(kernel, replace(TINY, quick=False), (torch.zeros(3, 1),))
    assert list(functions) == ["ours", "torch.cdist", "cdist in blocks", "torch.compile"] and not missing


def test_a_peer_that_fails_is_missing_and_ours_may_not_fail():
    def fails(x):
        raise RuntimeError("out of memory\nand more")

    outputs, failed = kernels.first_outputs({"ours": torch.sum, "loop": fails}, (torch.ones(2),))
    assert outputs == {"ours": torch.tensor(2.0)} and failed == {"loop": "RuntimeError: out of memory"}
    with pytest.raises(RuntimeError, match="out of memory"):
        kernels.first_outputs({"ours": fails}, (torch.ones(2),))


def test_errors_are_relative_above_one_and_of_all_floating_outputs():
    truth = (torch.tensor([100.0, 0.5]).double(), torch.tensor([True]))
    found = (torch.tensor([101.0, 0.5]), torch.tensor([False]))
    assert kernels.largest_error(found, truth) == pytest.approx(0.01)
    assert kernels.largest_error((torch.tensor([100.0, 0.25]), truth[1]), truth) == pytest.approx(0.25)
    assert kernels.largest_error(0.75, torch.tensor(0.5)) == pytest.approx(0.25)


def test_roofline_is_the_slower_of_copy_and_products():
    setting = replace(TINY, copy_gb_s=1.0, matmul_gflop_s={"float32": 1.0, "bfloat16": 4.0})
    x, y = torch.zeros(100, 50), torch.zeros(200, 50)
    kernel = workloads.MEAN_DISTANCE
    assert kernels.roofline(kernel, setting, (x, y), 0.0) == ("float32 product rate", pytest.approx(2.0))
    assert kernels.roofline(kernel, setting, (x,), 0.0) == ("float32 product rate", pytest.approx(0.5))
    fast = kernel._replace(product="bfloat16")
    assert kernels.roofline(fast, setting, (x, y), 0.0) == ("bfloat16 product rate", pytest.approx(0.5))
    assert kernels.roofline(fast, TINY, (x, y), 0.0)[0] == "float32 product rate"
    read = kernel._replace(flop=lambda *inputs: 0)
    assert kernels.roofline(read, setting, (x, y), x) == ("copy rate", pytest.approx(0.08))


def test_rounds_end_after_their_time_but_for_the_first_three():
    calls = {"a": lambda: sleep(0.01), "b": lambda: None}
    assert len(interleave(calls, 5, CPU, seconds=0.0)["a"]) == 3
    assert len(interleave(calls, 2, CPU, seconds=0.0)["b"]) == 2
    assert len(interleave(calls, 5, CPU, seconds=60.0)["a"]) == 5
    assert 3 < len(interleave(calls, 1000, CPU, seconds=0.2)["b"]) < 22


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="Linux counts it")
def test_peak_memory_on_a_cpu_is_what_a_call_holds_at_once():
    one = torch.ones(10_000_000)  # 40 MB: what malloc always returns to the system
    calls = {
        "nothing": lambda: one.sum(),
        "one": lambda: one + 1,
        "two": lambda: (one + 1) + (one + 2),
        "one after another": lambda: [(one + step).sum() for step in range(4)],
    }
    for _ in range(2):  # what the calls before freed counts again
        peak = peak_megabytes(calls, CPU)
        expected = {"nothing": 0, "one": 40, "two": 120, "one after another": 40}
        assert peak == pytest.approx(expected, abs=4)


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="Linux counts it")
def test_peak_memory_counts_what_malloc_had_kept():
    def small():
        return [torch.ones(25_000) for _ in range(400)]  # 40 MB in pieces that malloc keeps when freed

    kept = small()[::40]  # between what is freed
    assert peak_megabytes({"small": small}, CPU)["small"] == pytest.approx(40, abs=4)
    assert len(kept) == 10


def test_peak_memory_is_left_out_where_it_is_not_counted(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "CLEAR_REFS", tmp_path / "none")
    assert peak_megabytes({"ours": lambda: None}, CPU) == {}


def test_a_record_is_saved_after_each_case(rumfast, monkeypatch, tmp_path):
    """So that a time limit loses one."""
    one = {"name": "one", "shape": "[1]", "dtype": "float32", "notes": {}}
    path, seen = tmp_path / "record.json", []

    def second():
        seen.extend(json.loads(path.read_text())["cases"])
        raise KeyboardInterrupt

    monkeypatch.setattr(Setting, "measure", lambda quick: TINY)
    monkeypatch.setattr(record, "measurements", lambda name, setting: {"one": lambda: [one], "two": second})
    assert rumfast("bench", "kernels", "--quick", "--save", path).code == 130
    assert seen == [{"suite": "kernels"} | one]


def test_a_quick_kernels_record_is_complete_and_finite(monkeypatch):
    monkeypatch.setattr(Setting, "measure", lambda quick: TINY)
    monkeypatch.setattr(Setting, "size", lambda self, quick, *more: tuple(max(12, n // 64) for n in quick))
    taken = take(("kernels",), quick=True)
    assert json.loads(json.dumps(taken, allow_nan=False)) == taken
    assert taken["schema"] == SCHEMA and taken["device"] == "cpu" and taken["suites"] == ["kernels"]
    assert {"commit", "date", "environment", "load", "quick", "roofline", "threads"} <= taken.keys()
    assert [one["name"] for one in taken["cases"]] == list(workloads.CASES)
    for one in taken["cases"]:
        kernel = workloads.CASES[one["name"]]
        assert 0 < one["ours"]["p20"] <= one["ours"]["p50"] <= one["ours"]["p80"]
        half = "bfloat16" in (kernel.dtype, kernel.product)
        assert one["notes"]["error"]["ours"] < (1e-2 if half else 1e-4)
        if kernel.compiled:
            assert one["peers"]["torch.compile"] == {"missing": "left out of quick runs"}
        assert set(one["ratio"]) == set(kernel.peers)
        assert sum(note.startswith("share of ") for note in one["notes"]) == 1
        if CLEAR_REFS.exists():
            assert set(one["notes"]["peak MB"]) == {"ours", *kernel.peers}
        for peer, ratio in one["ratio"].items():
            assert ratio == pytest.approx(one["peers"][peer]["p50"] / one["ours"]["p50"])
    assert table(taken).count("\n| margins C=10 ") == 3
