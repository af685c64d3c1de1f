import json
import subprocess
import sys

import numpy as np
import pytest

from rumfast.bench import SUITES, compare, fallen, run, table
from rumfast.bench.cases import case
from rumfast.bench.report import SCHEMA
from rumfast.errors import DataError, UsageError

ENVIRONMENT = {"gpu": None, "cpu": "a CPU, 2 cores", "torch": "2.11"}
TIMES = {"ours": [1.0, 2.0, 6.0], "loop": [3.0, 8.0, 12.0], "eager": [1.0, 1.0, 1.0]}


def record(*cases):
    return {
        "schema": SCHEMA,
        "quick": True,
        "date": "2030-01-01T00:00:00+00:00",
        "commit": "abc",
        "device": "cpu",
        "environment": ENVIRONMENT,
        "threads": 2,
        "cases": list(cases),
        "roofline": {"copy_gb_s": 12.0, "matmul_gflop_s": {"float32": 50.0}},
    }


def with_ratios(name="sum", shape="[4]", **ratio):
    """A case of which our median is 100 ms and a peer's that many times more."""
    samples = {"ours": [100.0]} | {peer: [100.0 * value] for peer, value in ratio.items()}
    return {"suite": "kernels"} | case(name, shape, "float32", samples)


def test_ratio_is_that_of_the_medians_and_spread_that_of_the_rounds():
    one = case("sum", "[4]", "float32", TIMES)
    assert one["ours"]["p50"] == 2.0 and one["rounds"] == 3
    assert one["ratio"] == {"loop": 4.0, "eager": 0.5}
    # The rounds' ratios are 3, 4 and 2; their 20th percentile lies 0.4 of the way from 2 to 3.
    np.testing.assert_allclose(one["spread"]["loop"], [2.4, 3.6])


def test_quantiles_are_ordered_whatever_the_samples():
    times = case("sum", "[4]", "float32", {"ours": [9.0, 1.0, 5.0, 3.0], "loop": [1.0] * 4})["ours"]
    assert times["p20"] < times["p50"] == 4.0 < times["p80"]


def test_throughput_is_per_second_of_the_median():
    one = case("sum", "[4]", "float32", TIMES, throughput=("images/s", 10))
    assert one["notes"]["images/s"] == {"ours": 5000.0, "loop": 1250.0, "eager": 10_000.0}


def test_a_case_goes_through_json_unchanged():
    one = case(
        "sum", "[4]", "float32", TIMES, missing={"ffcv": "not installed"}, notes={"error": {"ours": 1e-7}}
    )
    assert json.loads(json.dumps(one, allow_nan=False)) == one


def test_compare_names_exactly_what_fell():
    before = record(with_ratios(loop=4.0, eager=2.0, batch=10.0), with_ratios("mean", loop=1.0))
    now = record(with_ratios(loop=3.1, eager=9.0, batch=8.1), with_ratios("mean", loop=0.5))
    loop, mean = compare(now, before).values()
    assert loop.startswith("sum [4] float32 against loop: 3.1× now, 4× before")
    assert mean.startswith("mean [4] float32 against loop: 0.5× now, 1× before")
    assert len(compare(now, before, tolerance=0.18)) == 3
    assert compare(before, before) == {}


def test_compare_allows_what_is_just_within_the_tolerance():
    assert compare(record(with_ratios(loop=3.2)), record(with_ratios(loop=4.0))) == {}
    assert len(compare(record(with_ratios(loop=3.19)), record(with_ratios(loop=4.0)))) == 1


def test_compare_allows_for_the_spread_of_the_earlier_rounds():
    """Rounds of 2×, 4× and 6×: their p20 is 2.8×, a fifth below it 2.24×."""
    rounds = {"ours": [1.0, 1.0, 1.0], "loop": [2.0, 4.0, 6.0]}
    before = record({"suite": "kernels"} | case("sum", "[4]", "float32", rounds))
    assert compare(record(with_ratios(loop=2.25)), before) == {}
    assert len(compare(record(with_ratios(loop=2.23)), before)) == 1


def test_compare_misses_a_peer_that_a_case_has_lost():
    before = record(with_ratios(loop=4.0, eager=2.0), with_ratios("mean", loop=1.0))
    (message,) = compare(record(with_ratios(loop=4.0)), before).values()
    assert message == "sum [4] float32 against eager: not measured now, 2× before"


def test_compare_leaves_out_other_ways_of_ours():
    one = {"rumfast StreamingLoader": 4.0, "loop": 2.0}
    assert (
        compare(record(with_ratios(**one | {"rumfast StreamingLoader": 1.0})), record(with_ratios(**one)))
        == {}
    )


def test_compare_takes_no_other_shape_for_the_same_case():
    before = record(with_ratios(shape="[4]", loop=4.0), with_ratios(shape="[9]", loop=1.0))
    assert compare(record(with_ratios(shape="[9]", loop=1.0)), before) == {}
    with pytest.raises(UsageError, match="share no case"):
        compare(record(with_ratios(shape="[5]", loop=1.0)), before)


def test_compare_refuses_what_cannot_be_compared():
    good = record(with_ratios(loop=4.0))
    with pytest.raises(DataError, match="rumfast/bench/0"):
        compare(good, good | {"schema": "rumfast/bench/0"})
    with pytest.raises(UsageError, match="taken on an H100, this one on a CPU, 2 cores"):
        compare(good, good | {"environment": ENVIRONMENT | {"gpu": "an H100"}})
    with pytest.raises(UsageError, match="taken on another CPU, 2 cores"):
        compare(good, good | {"environment": ENVIRONMENT | {"cpu": "another CPU, 2 cores"}})


def test_a_ratio_has_to_fall_each_time(monkeypatch):
    """Suites with a fall are measured twice more; only what fell in all three is told, as last measured."""
    before = record(with_ratios(loop=4.0, eager=4.0), with_ratios("mean", loop=4.0) | {"suite": "loader"})
    first = record(with_ratios(loop=1.0, eager=2.0), with_ratios("mean", loop=4.0) | {"suite": "loader"})
    later = [record(with_ratios(loop=1.1, eager=3.9)), record(with_ratios(loop=1.2, eager=1.0))]
    measured = []

    def take(suites, quick):
        measured.append((list(suites), quick))
        return later[len(measured) - 1]

    monkeypatch.setattr("rumfast.bench.record.take", take)
    (message,) = fallen(first, before, quick=True)
    assert message.startswith("sum [4] float32 against loop: 1.2× now, 4× before (-70%)")
    assert measured == [(["kernels"], True)] * 2
    later[0] = record(with_ratios(loop=4.0, eager=4.0))
    measured.clear()
    assert fallen(first, before) == [] and measured == [(["kernels"], False)]
    assert fallen(before, before) == [] and len(measured) == 1


def test_table_has_a_row_for_each_peer():
    one = case(
        "sum",
        "[4]",
        "float32",
        TIMES,
        missing={"ffcv": "not installed"},
        notes={"error": {"ours": 1e-7, "loop": 0.25}},
    )
    text = table(record(one))
    rows = [line for line in text.splitlines() if line.startswith("| sum")]
    assert [row.split(" | ")[4] for row in rows] == ["loop", "eager", "ffcv"]
    assert "4× (2.4–3.6)" in rows[0] and "error 1e-07 vs 0.25" in rows[0]
    assert "not installed" in rows[2]
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert "commit abc" in text and "2 torch threads" in text and "12.0 GB/s" in text


def test_unknown_suite_is_refused():
    with pytest.raises(UsageError, match="kernels, loader, train, sweep, unlearn, all"):
        run("speed")
    assert len(SUITES) == 5


def test_import_takes_no_torch():
    check = "import sys, rumfast.bench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
