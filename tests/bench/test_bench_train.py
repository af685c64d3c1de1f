"""A step is taken apart where it says, and every way to train does the same work."""

import json
import math
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from rumfast.bench import breakdown, timing, train
from rumfast.bench.breakdown import PHASES, REST, phase_ms, shares
from rumfast.bench.cases import OURS
from rumfast.bench.readme import render
from rumfast.bench.report import SCHEMA, SHARE_OF_EPOCH, epochs_table, table
from rumfast.bench.setting import Setting, random_dataset
from rumfast.config import TrainConfig, load_recipe
from rumfast.training import Learner

CPU = torch.device("cpu")
RATES = {"float32": 50.0, "bfloat16": 400.0}  # GFLOP/s
QUICK = Setting(CPU, quick=True, copy_gb_s=10.0, matmul_gflop_s=RATES)
FULL = Setting(CPU, quick=False, copy_gb_s=10.0, matmul_gflop_s=RATES)
TINY = TrainConfig(
    arch="resnet8", width=8, batch_size=8, lr=0.01, precision="fp32", flip=True, crop_padding=2
)
BATCHES = 3  # of an epoch


@pytest.fixture
def loop():
    return train.learner_loop(Learner(random_dataset(8 * BATCHES, size=8), TINY, "cpu"))


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self, monkeypatch):
        self.seconds = 0.0
        for module in (breakdown, timing):
            monkeypatch.setattr(module, "perf_counter", lambda: self.seconds)

    def wait(self, seconds, value=None):
        self.seconds += seconds
        return value


@pytest.fixture
def timed(loop, monkeypatch):
    """The loop with steps of 1 s for data, 2 forward, 3 backward, 4 for the optimizer; and the clock."""
    clock = Clock(monkeypatch)
    batches, loss_of = loop.batches, loop.loss_of

    def late_loss(fed):
        loss = loss_of(fed)
        loss.register_hook(lambda gradient: clock.wait(3, gradient))
        return clock.wait(2, loss)

    loop.optimizer.register_step_pre_hook(lambda *_: clock.wait(4))
    return loop._replace(batches=lambda: (clock.wait(1, fed) for fed in batches()), loss_of=late_loss), clock


def test_each_phase_has_its_own_time(timed):
    assert phase_ms(timed[0], CPU) == {"data": 3000, "forward": 6000, "backward": 9000, "optimizer": 12_000}


def test_the_rest_is_what_an_epoch_takes_beyond_its_phases(timed):
    loop, clock = timed
    # An epoch takes 15 s besides its phases, 45 s in all.
    whole = loop._replace(epoch=lambda: [clock.wait(15), phase_ms(loop, CPU)])
    expected = {"data": 3, "forward": 6, "backward": 9, "optimizer": 12, REST: 15}
    assert shares(whole, CPU) == pytest.approx({part: seconds / 45 for part, seconds in expected.items()})


def test_an_epoch_may_be_faster_than_its_phases(timed):
    loop, clock = timed
    assert shares(loop._replace(epoch=lambda: clock.wait(24)), CPU)[REST] == pytest.approx(1 - 30 / 24)


def test_an_epoch_is_mostly_forward_and_backward(loop):
    part = shares(loop, CPU)
    assert set(part) == {*PHASES, REST} and all(math.isfinite(share) for share in part.values())
    assert part["forward"] + part["backward"] > part["data"] + part["optimizer"]
    assert min(part[phase] for phase in PHASES) > 0
    assert sum(part.values()) == pytest.approx(1)


def test_taking_a_step_apart_trains_as_the_whole_does():
    data, states = random_dataset(24, size=8), []
    for whole in (True, False):
        loop = train.learner_loop(Learner(data, TINY, "cpu"))
        loop.epoch() if whole else phase_ms(loop, CPU)
        states.append(loop.model.state_dict())
    assert all(torch.equal(*pair) for pair in zip(*(state.values() for state in states), strict=True))


def test_epochs_share_their_steps():
    """What a first call compiles, tunes and records, later calls need not."""
    learner, made = Learner(random_dataset(24, size=8), TINY, "cpu"), []
    make = learner.stepper
    learner.stepper = lambda *arguments: made.append(make(*arguments)) or made[-1]
    loop = train.learner_loop(learner)
    first = loop.epoch()
    assert math.isfinite(first) and loop.epoch() != first and len(made) == 1


def test_every_way_may_time_convolutions(monkeypatch):
    seen = []
    before = torch.backends.cudnn.benchmark
    monkeypatch.setattr(
        train, "interleave", lambda calls, *_: [seen.append(torch.backends.cudnn.benchmark), 1 / 0]
    )
    with pytest.raises(ZeroDivisionError):
        train.epoch_case("tiny", QUICK, TINY, steps=2)
    assert seen == [True] and torch.backends.cudnn.benchmark == before


def test_every_way_takes_each_example_once_and_equal_batches(tmp_path):
    data = random_dataset(24, size=8)
    loops, missing = train.ways(QUICK, Learner(data, TINY, "cpu"), data, tmp_path)
    assert {OURS, train.PLAIN} <= set(loops) and {*loops, *missing} == {
        OURS, train.PLAIN, train.HALF, train.COMPILED, train.REDUCED, train.FFCV
    }  # fmt: skip
    for loop in loops.values():
        labels = [fed[1] for fed in loop.batches()]  # of a pair, or of a Batch
        assert [len(label) for label in labels] == [8, 8, 8]
        assert torch.equal(
            torch.cat(labels).sort().values, torch.from_numpy(data.train.label_N).sort().values
        )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ffcv") is None, reason="needs ffcv")
@pytest.mark.filterwarnings("ignore")
def test_ffcv_feeds_batches_of_the_recipes_size(tmp_path):
    loop = train.ffcv_loop(tmp_path / "train.beton", random_dataset(24, size=12), TINY, CPU)
    assert [tuple(image.shape) for image, _ in loop.batches()] == [(8, 3, 12, 12)] * 3
    assert math.isfinite(loop.epoch())


def test_what_is_left_out_has_its_reason(monkeypatch):
    monkeypatch.setattr(Setting, "native_bf16", True)
    reasons = train.obstacles(QUICK, TINY)
    assert reasons[train.COMPILED] == reasons[train.FFCV] == "left out of quick runs"
    assert reasons[train.HALF] == "" and reasons[train.REDUCED] == "for CUDA alone"
    assert train.obstacles(replace(FULL, device=torch.device("cuda")), TINY)[train.REDUCED] == ""
    assert train.obstacles(FULL, TINY.model_copy(update={"flip": False}))[train.FFCV] != ""
    monkeypatch.setattr(Setting, "native_bf16", False)
    emulated = train.obstacles(FULL, TINY)
    assert {peer for peer, reason in emulated.items() if "emulated" in reason} == {
        train.HALF, train.COMPILED, train.REDUCED, train.FFCV
    }  # fmt: skip
    monkeypatch.setattr(train.shutil, "which", lambda name: None)
    monkeypatch.setattr(Setting, "native_bf16", True)
    assert train.obstacles(FULL, TINY)[train.COMPILED] == "no C++ compiler"


def test_share_of_roofline_is_taken_in_each_ones_own_dtype():
    one = train.epoch_case("tiny", QUICK, TINY, steps=2)
    rate, share = one["notes"]["GFLOP/s at best"], one["notes"]["share of roofline"]
    assert set(rate) == set(share) == {OURS, *one["ratio"]}
    assert share[OURS] == pytest.approx(rate[OURS] / 50)  # TINY is in float32
    assert share[train.PLAIN] == pytest.approx(rate[train.PLAIN] / 50)
    if train.HALF in share:
        assert share[train.HALF] == pytest.approx(rate[train.HALF] / 400)
    parts = {key: values for key, values in one["notes"].items() if key.startswith(SHARE_OF_EPOCH)}
    assert len(parts) == 5 and all(set(values) == {OURS, train.PLAIN} for values in parts.values())


def test_operations_follow_width_and_stem():
    # ResNet-18 on 32×32 images: 0.556 · 10⁹ multiply-adds, each two operations, forward and twice backward.
    assert train.gflop_per_image("resnet18") == pytest.approx(3.34, rel=0.01)
    recipe = load_recipe(f"{train.RECIPE}.toml").train
    whole = train.gflop_per_image(recipe.arch)
    assert train.gflop_per_image(recipe.arch, stem_stride=2) == pytest.approx(whole / 4, rel=0.01)
    assert train.gflop_per_image(recipe.arch, width=32) == pytest.approx(4 * whole, rel=0.02)


PHASE_ROWS = [
    "| case | variant | data | rest |",
    "|---|---|---:|---:|",
    "| train epoch | ours | 2.1% | -0.4% |",
    "| train epoch | loop | 25.0% | 1.0% |",
]


@pytest.fixture
def record():
    notes = {
        "images/s": {OURS: 90.0, "loop": 30.0},
        f"{SHARE_OF_EPOCH}data": {OURS: 0.021, "loop": 0.25},
        f"{SHARE_OF_EPOCH}rest": {OURS: -0.004, "loop": 0.01},
    }
    times = {"p20": 1.0, "p50": 2.0, "p80": 3.0}
    one = {
        "name": "train epoch", "shape": "[4]", "dtype": "float32", "ours": times, "peers": {"loop": times},
        "ratio": {"loop": 1.0}, "spread": {"loop": [1.0, 1.0]}, "notes": notes,
    }  # fmt: skip
    return {
        "schema": SCHEMA, "date": "2030-01-01", "commit": "abc", "quick": True, "threads": 2,
        "cases": [one | {"name": "sum", "notes": {}}, one],
        "environment": {
            "gpu": None, "cpu": "a CPU, 2 cores", "torch": "2.11", "rumfast": "1", "commit": "abc",
        },
        "roofline": {"copy_gb_s": 12.0, "matmul_gflop_s": {"float32": 50.0}},
    }  # fmt: skip


def test_table_shows_epochs_by_phase_and_not_among_the_notes(record):
    head, _, parts = table(record).partition("Where an epoch's time goes:")
    assert "images/s 90 vs 30" in head and SHARE_OF_EPOCH not in head
    assert parts.splitlines()[2:] == PHASE_ROWS
    without = record | {"cases": record["cases"][:1]}
    assert "epoch's time" not in table(without) and epochs_table(without) == ""


def test_readme_shows_epochs_by_phase(record, tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps(record))
    page = render("<!-- record: bench.json epochs -->\n<!-- end -->", tmp_path)
    assert page.splitlines()[1:5] == PHASE_ROWS and "commit abc" in page
