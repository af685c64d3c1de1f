"""Fault 1: workers are killed again and again, at random moments of their lives."""

import contextlib
import json
import random
import signal
import threading
import time
from collections import Counter

import pytest

from rumfast.errors import PartialError
from rumfast.sweeps import LocalEngine
from rumfast.sweeps.journal import read_history

MEMBERS, KILLS = 60, 200


class Killer(threading.Thread):
    """Kills ``KILLS`` live workers of an engine.

    A worker imports torch for seconds and then trains fifty of these members in one. So most kills come in
    the first fifth of a second of a worker's life; whenever the sweep lags behind the kills, workers are left
    alone until some members are done, and then all are killed within a hundredth of a second: in training,
    commit or journal.
    """

    def __init__(self, engine, population):
        super().__init__()
        self.engine, self.population, self.rng = engine, population, random.Random(0)
        self.kills, self.at_work, self.seen, self.stopped = 0, 0, {}, threading.Event()

    def run(self):
        while self.kills < KILLS and not self.stopped.is_set():
            done = self.look()
            if (done + 12) / MEMBERS > self.kills / KILLS:
                time.sleep(self.rng.uniform(0, 0.2))
                self.kill(self.rng.choice(self.engine.slots))
                continue
            enough = done + self.rng.randint(1, 8)
            while self.look() < enough and not self.stopped.is_set():
                time.sleep(0.002)
            for slot in self.engine.slots:
                time.sleep(self.rng.uniform(0, 0.01))
                self.kill(slot)

    def kill(self, slot):
        with slot._starting:  # so that no other kills, or starts, it just now
            process = slot._process
            if process is None or slot._closed or process.poll() is not None or self.kills == KILLS:
                return
            process.kill()
            assert process.wait() == -signal.SIGKILL
        self.kills += 1
        for path in (self.population.root / "journal").glob(f"*-{process.pid}-*"):
            self.at_work += '"begun"' in path.read_text().splitlines()[-1]

    def look(self) -> int:
        """Note each record's inode and time when it first appears; returns how many there are."""
        for index in self.population.done(range(MEMBERS)):
            if index not in self.seen:
                self.seen[index] = stamp(self.population, index)
        return len(self.seen)


def stamp(population, index):
    status = population.member(index).stat()
    return status.st_ino, status.st_mtime_ns


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_kills_change_nothing(population, assert_identical, journal):
    with LocalEngine(2, "cpu") as engine:
        killer = Killer(engine, population)
        killer.start()
        try:
            while len(population.done(range(MEMBERS))) < MEMBERS:
                with contextlib.suppress(PartialError):  # a member met three kills: run the same again
                    engine.run(population, range(MEMBERS))
        finally:
            killer.stopped.set()
            killer.join()
    assert killer.kills == KILLS and killer.at_work >= 8
    assert {index: stamp(population, index) for index in killer.seen} == killer.seen
    commits = Counter(json.loads(line)["index"] for line in journal(population) if '"done"' in line)
    assert set(commits.values()) == {1} and read_history(population.root).repeated == 0
    assert_identical(population, range(MEMBERS))
