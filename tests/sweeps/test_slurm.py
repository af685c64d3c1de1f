import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from slurm_daemons import PROGRAMS, ask, running_cluster, until

from rumfast.errors import MismatchError, PartialError, UsageError
from rumfast.store import content_digest, remove_partial
from rumfast.sweeps import Population
from rumfast.sweeps.engines import slurm_cluster, slurm_jobs
from rumfast.sweeps.engines.slurm_cluster import Chunk, SlurmEngine, joined, outside_of_jobs
from rumfast.sweeps.engines.slurm_jobs import ArrayJob
from rumfast.sweeps.journal import read_history
from rumfast.sweeps.worker import Worker

pytest.importorskip("submitit")
pytestmark = pytest.mark.slurm
LACKING = [program for program in PROGRAMS if shutil.which(program) is None]


@pytest.fixture(scope="module")
def cluster():
    if LACKING:
        pytest.skip(f"{', '.join(LACKING)} not installed (packages slurm-wlm and munge)")
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def idle(cluster):
    """The cluster, with an empty queue and no processes of jobs afterwards."""
    yield cluster
    ask("scancel", "--user", str(os.getuid()))
    until(lambda: not queue())


@pytest.fixture
def engine(idle):
    return SlurmEngine("cpu", slots=4, minutes=30, poll_s=0.2, settle_s=1)


@pytest.fixture
def population(tmp_path, spec):
    return Population.create(tmp_path / "sweep", spec)


@pytest.fixture(scope="module")
def long(tmp_path_factory, spec, recipe):
    """Three members that take seconds each, long enough to be hurt at work, trained in this process."""
    train = recipe.model_copy(update={"epochs": 60})
    population = Population.create(tmp_path_factory.mktemp("long"), spec.model_copy(update={"train": train}))
    worker = Worker("cpu")
    for index in range(3):
        worker.do(population.root, index)
    return population


def queue(*options):
    """A line ``task state reason`` of each task that Slurm knows and has not done with."""
    return ask("squeue", "--array", "--noheader", "--format=%i %T %r", *options)


def assert_identical(population, reference, members):
    assert population.done(members) == list(members)
    remove_partial(population.root)  # of killed tasks
    for index in members:
        assert content_digest(population.member(index)) == content_digest(reference.member(index)), index


def beginnings(population, index):
    """Process ids of the workers that began a member, in order."""
    found = []
    for path in (population.root / "journal").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            if f'"index": {index}, "event": "begun"' in line:
                found.append((float(line.rpartition(" ")[2].rstrip("}")), int(path.name.split("-")[-2])))
    return [pid for _, pid in sorted(found)]


def at_work(population, members):
    """Wait until all ``members`` are being trained; returns the id of the array."""
    until(lambda: read_history(population.root).running >= set(members))
    assert not population.done(members)
    return queue()[0].split("_")[0]


@pytest.fixture
def aside():
    """Runs a function in a thread; its result or error comes with ``result``."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda function, *args: pool.submit(function, *args)


def test_an_array_trains_what_one_process_does(engine, population, reference):
    answers = []
    with engine:
        engine.run(population, [2, 0], answers.append)
        engine.run(population, range(4), answers.append)
    assert_identical(population, reference, range(4))
    assert [answer["status"] for answer in answers] == ["done"] * 4
    assert all(0 < answer["wall_s"] < 60 for answer in answers)
    until(lambda: not queue(), 10)


@pytest.mark.faults
@pytest.mark.slow
def test_cancelled_killed_and_preempted_tasks_are_done_again(engine, tmp_path, long, aside):
    population = Population.create(tmp_path / "sweep", long.spec)
    run = aside(engine.run, population, range(3))
    job = at_work(population, range(3))
    ask("scancel", f"{job}_0")  # by an administrator, say
    os.kill(beginnings(population, 1)[0], signal.SIGKILL)  # as for want of memory
    ask("scancel", "--signal=USR2", f"{job}_2")  # Slurm's notice of a preemption or the end of time
    run.result(120)
    assert_identical(population, long, range(3))
    assert [len(beginnings(population, index)) for index in range(3)] == [2, 2, 2]
    assert "Requeued job" in (population.root / "slurm" / f"{job}_2_0_log.out").read_text()


@pytest.mark.faults
@pytest.mark.slow
def test_a_lost_node_is_not_waited_for(idle, tmp_path, long, aside):
    engine = SlurmEngine("cpu", slots=2, options={"exclusive": ""}, minutes=30, poll_s=0.2, settle_s=1)
    population = Population.create(tmp_path / "sweep", long.spec)
    run = aside(engine.run, population, range(2))
    at_work(population, range(2))
    idle.kill_node("node0")
    started = time.monotonic()
    try:
        run.result(120)
        # Six seconds until Slurm notes the loss, two until the task may start, the member twice, the import.
        assert time.monotonic() - started < 60
        assert_identical(population, long, range(2))
        assert sorted(len(beginnings(population, index)) for index in range(2)) == [1, 2]
    finally:
        idle.start_node("node0")


@pytest.mark.faults
@pytest.mark.slow
def test_a_controller_that_is_away_for_a_while_changes_nothing(
    engine, idle, tmp_path, long, aside, monkeypatch
):
    population = Population.create(tmp_path / "sweep", long.spec)
    run = aside(engine.run, population, range(2))
    job = ArrayJob(at_work(population, range(2)))
    assert job.alive() == 2
    idle.stop_daemon("slurmctld")
    try:
        assert job.alive() == 2 and not run.done()
        monkeypatch.setattr(slurm_jobs, "OUTAGE_S", 0.1)
        with pytest.raises(PartialError, match="Slurm has not answered for .* the same command resumes"):
            job.alive()
        monkeypatch.undo()
    finally:
        idle.start_controller()
    run.result(120)
    assert_identical(population, long, range(2))
    assert [len(beginnings(population, index)) for index in range(2)] == [1, 1]


@pytest.mark.faults
def test_an_interruption_leaves_nothing_in_the_queue(idle, population, reference):
    engine = SlurmEngine("cpu", slots=1, minutes=30, poll_s=0.1, settle_s=1)

    def interrupt(answer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run(population, range(3), interrupt)
    until(lambda: not queue(), 10)  # KillWait is three times as long
    done = population.done(range(3))
    assert done and len(done) < 3
    assert_identical(population, reference, done)


def test_a_members_error_keeps_its_type_and_ends_the_rest(idle, tmp_path, spec):
    elsewhere = spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": "0" * 64})})
    population = Population.create(tmp_path / "sweep", elsewhere)
    engine = SlurmEngine("cpu", slots=1, minutes=30, poll_s=0.2, settle_s=1)
    with pytest.raises(MismatchError, match="sweep, member 0: digits: content is"):
        engine.run(population, range(3))
    until(lambda: not queue(), 10)
    assert not beginnings(population, 2)


def test_a_launched_array_goes_on_alone(engine, population, reference):
    job = engine.launch(population, [1, 4])
    assert job.isdecimal() and len(queue("--jobs", job)) == 2
    until(lambda: population.done([1, 4]) == [1, 4])
    assert_identical(population, reference, [1, 4])
    assert engine.launch(population, [4, 1]) == ""


@pytest.mark.faults
def test_tasks_that_would_wait_for_ever_are_not_waited_for(idle):
    def submitted(*options):
        line = ask("sbatch", "--output=/dev/null", "--array=0-1", *options, "--wrap=sleep 60")
        return ArrayJob(line[0].split()[-1])

    held = submitted("--hold")
    assert len(queue()) == 2 and held.alive() == 0
    until(lambda: held.alive() == 0 and not queue(), 10)
    idle.drained.touch()
    try:
        broken = submitted("--nodelist=node1")
        until(lambda: any("launch failed" in line.replace("_", " ") for line in queue()), 20)
        until(lambda: broken.alive() < 2, 20)
    finally:
        idle.drained.unlink()
        ask("scancel", broken.job_id)
        ask("scontrol", "update", "nodename=node1", "state=resume")
    for options, reason in (("--time=120",), "PartitionTimeLimit"), (("--dependency=afterok:99999",), ""):
        job = submitted(*options)
        print(queue(), reason, job)


def test_options_that_the_cluster_refuses(idle, population):
    with pytest.raises(UsageError, match="engine slurm: .*invalid partition specified: nowhere"):
        SlurmEngine("cpu", options={"partition": "nowhere"}).launch(population, [0])
    with pytest.raises(UsageError, match="PartitionTimeLimit.: change the options or the minutes"):
        SlurmEngine("cpu", minutes=120, poll_s=0.2).run(population, [0])
    until(lambda: not queue(), 10)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"partitoin": "all"}, "'partitoin': sbatch has none of this name; did you mean 'partition'"),
        ({"": "all"}, "'': sbatch has none of this name"),
        ({"array": "0-3"}, "'array': rumfast sets it$"),
        ({"time": "1:00"}, "'time': rumfast sets it from minutes"),
    ],
)
def test_unknown_options(cluster, options, message):
    with pytest.raises(UsageError, match=f"slurm option {message}"):
        SlurmEngine("cpu", options=options)
