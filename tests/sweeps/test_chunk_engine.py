"""What all cluster engines share: chunks, and watching the store."""

import pytest

from rumfast.errors import MismatchError, PartialError, StorageError
from rumfast.sweeps import Population
from rumfast.sweeps.engines.base import ATTEMPTS, ChunkEngine, Watch, chunks_of
from rumfast.sweeps.engines.slurm_cluster import SlurmEngine
from rumfast.sweeps.journal import Journal


@pytest.fixture
def population(tmp_path, spec):
    return Population.create(tmp_path / "sweep", spec)


@pytest.mark.parametrize(
    "members, workers, member_s, least_s, size",
    [
        (400, 16, None, 0, 7),  # four chunks per worker
        (400, 16, 1, 0, 7),
        (4000, 16, 600, 0, 3),  # of half an hour
        (4000, 16, 5000, 0, 1),
        (400, 64, 30, 1200, 40),  # of twenty minutes at least, though not all workers get one
        (4000, 16, 30, 1200, 60),
        (3, 16, 0.001, 1200, 3),
        (400, 64, 7200, 1200, 1),
    ],
)
def test_chunks_are_long_enough_to_pay_and_short_enough_to_share(members, workers, member_s, least_s, size):
    chunks = chunks_of(range(members), workers, member_s, least_s)
    assert [index for chunk in chunks for index in chunk] == list(range(members))
    assert {len(chunk) for chunk in chunks[:-1]} <= {size} and len(chunks[0]) == size


def test_times_of_members_are_taken_from_the_journals(population):
    journal = Journal(population.root)
    for index, wall_s in enumerate((900.0, 0.0, 900.0)):
        journal.write(index, "done", wall_s=wall_s)
    journal.close()
    engine = Idle(population)
    assert engine.chunks(range(40), population)[0] == [0, 1]
    engine.least_s = SlurmEngine.least_s
    assert engine.chunks(range(4), population)[0] == [0]


def test_a_failure_of_a_member_that_another_command_trains_is_not_ours(population):
    watch, other = Watch(population, range(3), lambda _: None), Journal(population.root)
    other.write(7, "failed", kind="MismatchError", message="other data")
    watch.look()
    other.write(1, "failed", kind="MismatchError", message="other data")
    with pytest.raises(MismatchError, match="member 1: other data"):
        watch.look()
    Watch(population, range(3), lambda _: None).look()  # what failed before may succeed now
    other.close()


class Idle(ChunkEngine):
    """A cluster whose chunks all vanish."""

    workers = 2
    poll_s = settle_s = 0.0

    def __init__(self, population):
        self.rounds, self.cancelled = 0, 0

    def submit(self, population, chunks):
        self.rounds += 1
        return self

    def alive(self):
        return 0

    def cancel(self):
        self.cancelled += 1


def test_a_cluster_that_does_nothing_is_given_up(population):
    engine = Idle(population)
    with pytest.raises(PartialError, match=f"3 of 3 members are missing after {ATTEMPTS} rounds"):
        engine.run(population, range(3))
    assert engine.rounds == engine.cancelled == ATTEMPTS


def test_a_store_that_cannot_be_written_is_found_before_anything_is_submitted(population, monkeypatch):
    engine = Idle(population)
    population.root = population.root / "spec.json"  # where no file can be made
    with pytest.raises(StorageError):
        engine.run(population, range(3))
    assert engine.rounds == 0
