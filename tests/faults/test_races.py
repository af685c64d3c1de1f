"""Faults 3 and 4: several writers of one member, at the same moment or long after."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from rumfast.store import TEMPORARY, content_digest
from rumfast.sweeps import Population
from rumfast.sweeps.engines.local import Slot
from rumfast.sweeps.journal import read_history
from rumfast.sweeps.worker import Worker

RACERS, MEMBERS = 8, 20

# Imports torch and trains a member once, then forks eight workers, which begin every member together.
TRAIN = """
import multiprocessing, os, sys
from pathlib import Path
from rumfast.sweeps.worker import do_chunk, process_worker
root, racers, members = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
process_worker("cpu").do(Path(sys.argv[4]), members)
barrier = multiprocessing.Barrier(racers)
children = []
for _ in range(racers):
    children.append(os.fork())
    if children[-1] == 0:
        for index in range(members):
            barrier.wait(60)
            do_chunk(root, [index], "cpu")
        os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""

# The same, with records that differ in one margin; each racer ends with the code of its error.
DISAGREE = """
import multiprocessing, os, sys
from pathlib import Path
from rumfast.errors import RumfastError
from rumfast.sweeps import Population
population, racers, members = Population.open(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
theirs = Population.open(Path(sys.argv[4]))
barrier = multiprocessing.Barrier(racers)
for racer in range(racers):
    if os.fork() == 0:
        for index in range(members):
            record = theirs.record(index)
            record.margin_N[0] = racer
            barrier.wait(60)
            try:
                code = 0 if population.save_record(record) else 1
            except RumfastError as error:
                code = error.exit_code
            os.write(1, f"{index} {racer} {code}\\n".encode())
        os._exit(0)
for _ in range(racers):
    os.wait()
"""


def run(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ).stdout


def stamp(path):
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, content_digest(path)


@pytest.mark.faults
@pytest.mark.slow
def test_eight_workers_race_on_twenty_members(population, tmp_path, spec, assert_identical, journal):
    warm = Population.create(tmp_path / "warm", spec)
    run(TRAIN, population.root, RACERS, MEMBERS, warm.root)
    assert_identical(population, range(MEMBERS))
    lines = journal(population)
    done, repeated = (sum(f'"{event}"' in line for line in lines) for event in ("done", "repeated"))
    assert done == MEMBERS and repeated == read_history(population.root).repeated
    assert repeated > MEMBERS  # they did race


@pytest.mark.faults
def test_of_eight_that_disagree_the_first_is_kept_and_the_others_are_told(population, reference):
    lines = run(DISAGREE, population.root, RACERS, MEMBERS, reference.root).splitlines()
    outcomes = [tuple(map(int, line.split())) for line in lines]
    for index in range(MEMBERS):
        codes = {racer: code for member, racer, code in outcomes if member == index}
        winner = int(population.record(index).margin_N[0])
        assert codes == {racer: 0 if racer == winner else 3 for racer in range(RACERS)}
    assert population.done(range(99)) == [*range(MEMBERS)]
    assert not list(population.root.rglob(TEMPORARY + "*"))


# A worker that falls asleep once, when a record is written and synced, and not yet linked to its name.
SLEEPS_IN_COMMIT = """
import os, signal
from rumfast.store import commits
sync = commits.sync
def sleepy(path):
    sync(path)
    if path.name.startswith(commits.TEMPORARY):
        commits.sync = sync
        os.kill(os.getpid(), signal.SIGSTOP)
commits.sync = sleepy
from rumfast.sweeps.worker import serve
serve("cpu")
"""


class SleepySlot(Slot):
    def _start(self):
        return subprocess.Popen(
            [sys.executable, "-c", SLEEPS_IN_COMMIT],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )


def state_of(process):
    with open(f"/proc/{process.pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["training", "commit"])
def test_a_sleeper_finds_its_member_done_and_leaves_it_alone(
    moment, population, assert_identical, wait_until, journal
):
    """The worker sleeps in member 0, another does it meanwhile; then the first wakes and goes on."""
    slot, answers = (Slot if moment == "training" else SleepySlot)("cpu"), []

    def ask():
        for index in (0, 1):
            answers.append(slot.ask({"population": str(population.root), "index": index})["status"])

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        if moment == "training":
            wait_until(lambda: journal(population))  # it has begun
            slot._process.send_signal(signal.SIGSTOP)
        else:
            wait_until(lambda: list(population.root.rglob(TEMPORARY + "*")))
        wait_until(lambda: state_of(slot._process) == "T")
        assert population.done(range(2)) == []
        assert Worker("cpu").do(population.root, 0)["status"] == "done"
        before = stamp(population.member(0))
        slot._process.send_signal(signal.SIGCONT)
        asking.join(timeout=60)
    finally:
        slot.stop(kill=True)
    assert answers == ["done", "done"]
    assert stamp(population.member(0)) == before
    assert read_history(population.root).repeated == 1
    assert_identical(population, range(2))
