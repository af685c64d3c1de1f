import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from rumfast.errors import DataError, MismatchError, PartialError, UsageError
from rumfast.store import content_digest
from rumfast.sweeps import LocalEngine, Population, load_sweep
from rumfast.sweeps.engines.base import ATTEMPTS
from rumfast.sweeps.engines.local import Slot
from rumfast.sweeps.worker import Worker

# Answers as a worker does but trains nothing, and does to itself what its index says.
FAKE = """
import json, os, sys, time
from pathlib import Path
for line in sys.stdin:
    task = json.loads(line)
    index, root = task["index"], Path(task["population"])
    with open(root / "log", "a") as log:
        log.write(f"{index}\\n")
    if index == 66:
        os._exit(9)
    if index == 77:
        time.sleep(60)
    if index == 88:
        print(json.dumps({"status": "error", "kind": "MismatchError", "message": "other data"}), flush=True)
        continue
    if index == 99:
        print("no JSON", flush=True)
        continue
    path = root / "members" / f"{index:06d}.npz"
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    print(json.dumps({"status": "done", "wall_s": 0.5}), flush=True)
"""


class FakeSlot(Slot):
    def _start(self):
        return subprocess.Popen(
            [sys.executable, "-S", "-c", FAKE],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )


@pytest.fixture
def population(tmp_path, spec):
    return Population.create(tmp_path / "sweep", spec)


@pytest.fixture
def fake():
    with LocalEngine(2, "cpu") as engine:
        engine.slots = [FakeSlot("cpu"), FakeSlot("cpu")]
        yield engine


def log(population):
    return sorted(int(line) for line in (population.root / "log").read_text().split())


def assert_identical(population, reference, members):
    digests = [[content_digest(each.member(index)) for index in members] for each in (population, reference)]
    assert digests[0] == digests[1]
    ours, theirs = load_sweep(population, members), load_sweep(reference, members)
    for name in ("include_MN", "correct_MN", "margin_MN"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    leftovers = [path for path in population.root.rglob("*") if path.name.startswith(".")]
    assert not leftovers


@pytest.mark.parametrize("workers", [1, 2])
def test_records_are_bit_identical_for_any_number_of_workers_and_order(population, reference, workers):
    with LocalEngine(workers, "cpu") as engine:
        engine.run(population, [3, 1])
        assert population.done(range(6)) == [1, 3]
        engine.run(population, range(4))
    assert_identical(population, reference, range(4))


def test_a_worker_killed_before_its_task_is_replaced(population, fake):
    fake.run(population, [0, 1])
    for slot in fake.slots:
        slot._process.kill()
        slot._process.wait()
    fake.run(population, [2, 3])
    assert population.done(range(9)) == [0, 1, 2, 3] and log(population) == [0, 1, 2, 3]


def test_a_member_that_kills_its_worker_each_time_is_given_up_and_the_rest_is_kept(population, fake):
    with pytest.raises(
        PartialError, match=f"member 66: its worker died {ATTEMPTS} times .exit status 9.*resumes"
    ):
        fake.run(population, [0, 1, 2, 66])
    assert population.done(range(9)) == [0, 1, 2]
    assert log(population) == [0, 1, 2] + [66] * ATTEMPTS
    fake.run(population, [0, 1, 2, 3])
    assert population.done(range(9)) == [0, 1, 2, 3]


def test_only_missing_members_are_run_again(population, fake):
    answers = []
    fake.run(population, [0, 2, 4])
    fake.run(population, range(6), answers.append)
    assert log(population) == [0, 1, 2, 3, 4, 5]
    assert answers == [{"status": "done", "wall_s": 0.5}] * 3
    fake.run(population, range(6), answers.append)
    assert len(answers) == 3


def test_errors_keep_their_type_and_name_the_member(population, fake):
    with pytest.raises(MismatchError, match="sweep, member 88: other data"):
        fake.run(population, [0, 88])


def test_an_answer_that_cannot_be_read_is_an_error_and_not_a_wait(population, fake):
    with pytest.raises(PartialError, match="member 99: JSONDecodeError"):
        fake.run(population, [99])


def test_a_worker_that_cannot_start_is_an_error_and_not_a_wait(population, monkeypatch):
    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(Slot, "_start", refuse)
    with LocalEngine(2, "cpu") as engine, pytest.raises(PartialError, match="Cannot allocate memory"):
        engine.run(population, range(3))


def test_an_interruption_stops_at_once_and_starts_nothing_anew(population, fake):
    def interrupt(answer):
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fake.run(population, [0, 77], interrupt)
    assert time.monotonic() - started < 10  # member 77 would take a minute
    assert log(population).count(77) <= 1 and all(slot._process is None for slot in fake.slots)
    fake.run(population, [1])  # and the engine can go on
    assert population.done(range(3)) == [0, 1]


def test_leaving_the_engine_ends_its_workers(population):
    with LocalEngine(1, "cpu") as engine:
        engine.slots = [FakeSlot("cpu")]
        engine.run(population, [0])
        process = engine.slots[0]._process
    assert process.poll() == 0
    with pytest.raises(RuntimeError, match="elsewhere"), LocalEngine(1, "cpu") as engine:
        engine.slots = [FakeSlot("cpu")]
        engine.run(population, [1])
        process = engine.slots[0]._process
        raise RuntimeError("elsewhere")
    assert process.poll() == -9


def test_no_more_workers_start_than_there_are_members(population):
    with LocalEngine(4, "cpu") as engine:
        engine.slots = [FakeSlot("cpu") for _ in range(4)]
        engine.run(population, [0])
        assert [slot._process is not None for slot in engine.slots] == [True, False, False, False]


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_cannot_be_meant(workers):
    with pytest.raises(UsageError, match=f"workers: got {workers}, expected at least 1"):
        LocalEngine(workers, "cpu")


@pytest.mark.faults
def test_damaged_records_are_found_by_name_and_made_again(population, reference):
    shutil.copytree(reference.root / "members", population.root / "members")
    hurt = bytearray(population.member(2).read_bytes())
    hurt[len(hurt) // 3] ^= 16
    population.member(2).write_bytes(hurt)
    with pytest.raises(DataError, match="000002.npz: damaged"):
        load_sweep(population, range(6)).memorization()
    population.member(2).unlink()
    Worker("cpu").do(population.root, 2)
    assert_identical(population, reference, range(6))
