"""What a worker does for each member, and what it keeps from one to the next."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rumfast.errors import DataError, MismatchError
from rumfast.models import build_model, initialize_
from rumfast.store import content_digest
from rumfast.sweeps import LocalEngine, Population, load_sweep
from rumfast.sweeps.journal import read_history
from rumfast.sweeps.run import sweep_spec
from rumfast.sweeps.sharing import SharedImages, with_shared_images
from rumfast.sweeps.worker import Worker, commit, do_chunk
from rumfast.training import Learner


@pytest.fixture
def population(tmp_path, spec):
    return Population.create(tmp_path / "sweep", spec)


def test_a_chunk_is_its_members_and_is_not_done_twice(population, reference):
    do_chunk(str(population.root), [2], "cpu")
    stamp = population.member(2).stat().st_mtime_ns
    answers = do_chunk(str(population.root), [1, 2], "cpu")
    assert [answer["status"] for answer in answers] == ["done", "done"] and answers[1]["wall_s"] == 0
    assert population.member(2).stat().st_mtime_ns == stamp
    for index in (1, 2):
        assert content_digest(population.member(index)) == content_digest(reference.member(index))
    history = read_history(population.root)
    assert set(history.seconds) == {1, 2} and history.repeated == 0 and len(history.finished_at) == 2


def test_failures_are_journalled_with_their_type(population, spec):
    wrong = spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": "0" * 64})})
    broken = Population.create(population.root.parent / "broken", wrong)
    with pytest.raises(MismatchError, match="the population was made with 000000000000"):
        Worker("cpu").do(broken.root, 4)
    (failure,) = read_history(broken.root).failures
    assert (failure.index, failure.kind) == (4, "MismatchError") and "made with" in failure.message


def test_events_come_with_the_record_and_change_nothing_else(population, digits, recipe, reference, tmp_path):
    spec = sweep_spec(digits, recipe, seed=3, device="cpu", events=True, margins="fp32")
    rich = Population.create(tmp_path / "rich", spec)
    worker = Worker("cpu")
    worker.do(rich.root, 1)
    plain, record = reference.record(1), rich.record(1)
    np.testing.assert_array_equal(record.correct_N, plain.correct_N)
    assert record.margin_N.dtype == np.float32
    np.testing.assert_array_equal(record.margin_N.astype(np.float16), plain.margin_N)
    assert record.learned_EN.shape == (recipe.epochs, len(digits))
    assert not record.learned_EN[:, ~record.include_N].any()
    # The share of epochs in which an example was right is one of the proxies.
    accuracy_N = record.proxies_KN[3]
    np.testing.assert_allclose(
        accuracy_N[record.include_N], record.learned_EN.mean(0)[record.include_N], rtol=1e-6
    )
    assert np.isnan(accuracy_N[~record.include_N]).all()


def test_on_a_gpu_the_same_member_may_differ_in_its_last_bits(population, reference):
    record = reference.record(1)
    assert commit(population, record, exact=True) and not commit(population, record, exact=True)
    other = replace(record, margin_N=record.margin_N + np.float16(0.5))
    with pytest.raises(MismatchError, match="exists with other content"):
        commit(population, other, exact=True)
    assert not commit(population, other, exact=False)
    with pytest.raises(MismatchError, match="exists with other content"):
        commit(population, replace(other, include_N=~record.include_N), exact=False)
    np.testing.assert_array_equal(population.record(1).margin_N, record.margin_N)


def test_margins_beyond_the_range_of_float16_saturate():
    from rumfast.sweeps.worker import _stored

    margin = torch.tensor([1e6, -1e6, 3.25])
    assert _stored(margin, np.float16).tolist() == [65504.0, -65504.0, 3.25]
    assert _stored(margin, np.float32).tolist() == [1e6, -1e6, 3.25]


def test_redrawn_in_place_weights_are_those_of_a_fresh_model(digits, recipe):
    learner = Learner(digits, recipe, "cpu")
    learner.fit(torch.arange(64), 1)
    initialize_(learner.model, 7)
    fresh = build_model(recipe.arch, len(digits.classes), width=recipe.width, seed=7)
    for (name, ours), theirs in zip(
        learner.model.state_dict().items(), fresh.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_a_compiled_member_is_compiled_once(digits, recipe, tmp_path, monkeypatch):
    from torch._dynamo.utils import counters

    # What is traced, and guarded against change, does not depend on the backend; inductor takes a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))

    spec = sweep_spec(digits, recipe.model_copy(update={"compile": "on"}), seed=3, device="cpu")
    population, worker = Population.create(tmp_path / "compiled", spec), Worker("cpu")
    counters.clear()
    worker.do(population.root, 0)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for index in (1, 2):
        worker.do(population.root, index)
    assert counters["stats"]["unique_graphs"] == graphs


# ---- one copy of the images for all workers ----------------------------------------------------------------


def test_shared_images_are_the_same_and_are_not_copied(digits, spec):
    shared = SharedImages()
    path = shared.path(spec.data)
    assert path == shared.path(spec.data)  # decoded once
    data = with_shared_images(digits, path)
    for ours, theirs in ((data.train, digits.train), (data.test, digits.test)):
        assert isinstance(ours.image_NHWC, np.memmap)
        np.testing.assert_array_equal(ours.image_NHWC, theirs.image_NHWC)
    loader_image = Learner(data, spec.train, "cpu").loader.image_NHWC
    assert loader_image.data_ptr() == data.train.image_NHWC.ctypes.data
    shared.close()
    np.testing.assert_array_equal(data.train.image_NHWC, digits.train.image_NHWC)  # who maps them keeps them


def test_workers_of_an_engine_map_its_images(population):
    with LocalEngine(2, "cpu") as engine:
        engine.run(population, [0, 1])
        for slot in engine.slots:
            maps = Path(f"/proc/{slot._process.pid}/maps").read_text()
            assert f"memfd:rumfast-{population.spec.data.fingerprint[:12]}" in maps


def test_other_data_are_refused_before_any_worker_starts(population, spec):
    wrong = spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": "0" * 64})})
    broken = Population.create(population.root.parent / "broken", wrong)
    with LocalEngine(2, "cpu") as engine:
        with pytest.raises(MismatchError, match="made with 000000000000"):
            engine.run(broken, range(3))
        assert all(slot._process is None for slot in engine.slots)


def test_the_reference_has_what_a_sweep_needs(reference):
    sweep = load_sweep(reference, range(6))
    assert sweep.diverged == 0 and sweep.correct_test_MT.shape == (6, 100)
    assert sweep.margin_test_MT.dtype == np.float16
    with pytest.raises(DataError, match="no such file"):
        reference.record(17)
    assert json.loads((reference.root / "spec.json").read_text())["design"] == "fixed"


@pytest.mark.parametrize("lost", [False, True])
def test_a_worker_that_lost_its_gpu_ends_and_any_other_error_is_answered(lost):
    code = (
        "import torch\n"
        "from rumfast.sweeps import worker\n"
        "def fail(*arguments): raise RuntimeError('an illegal memory access was encountered')\n"
        f"torch.cuda.is_initialized = lambda: {lost}\n"
        "torch.cuda.synchronize = worker.Worker.do = fail\n"
        "worker.serve('cpu')\n"
    )
    task = json.dumps({"population": "nowhere", "index": 0}) + "\n"
    done = subprocess.run([sys.executable, "-c", code], input=task, capture_output=True, text=True)
    if lost:
        assert done.returncode == 1 and not done.stdout and "illegal memory access" in done.stderr
    else:
        assert done.returncode == 0 and "illegal memory access" in json.loads(done.stdout)["message"]
