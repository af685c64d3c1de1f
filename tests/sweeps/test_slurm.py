import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from slurm_daemons import LACKING, ask, running_cluster, until

from rumfast.errors import MismatchError, PartialError, UsageError
from rumfast.store import content_digest, remove_partial
from rumfast.sweeps import Population
from rumfast.sweeps.engines import slurm_cluster, slurm_jobs
from rumfast.sweeps.engines.slurm_cluster import Chunk, SlurmEngine, joined, outside_of_jobs
from rumfast.sweeps.engines.slurm_jobs import ArrayJob, tasks_of
from rumfast.sweeps.journal import read_history
from rumfast.sweeps.worker import Worker

pytest.importorskip("submitit")
pytestmark = pytest.mark.slurm


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
    cancel_all()
    until(lambda: not queue())


@pytest.fixture
def engine(idle):
    return SlurmEngine("cpu", slots=4, minutes=30, poll_s=0.2, settle_s=1)


@pytest.fixture
def population(tmp_path, spec):
    return Population.create(tmp_path / "sweep", spec)


@pytest.fixture
def aside(engine):
    """Runs the engine in a thread; what it raises comes with ``result``."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda *args: pool.submit(engine.run, *args)
        engine.submit = None  # a test that failed leaves it at work
        cancel_all()


@pytest.fixture(scope="module")
def long(tmp_path_factory, spec, recipe):
    """Three members that take more than a second each, time enough to be hurt at work."""
    train = recipe.model_copy(update={"epochs": 40})
    population = Population.create(tmp_path_factory.mktemp("long"), spec.model_copy(update={"train": train}))
    worker = Worker("cpu")
    for index in range(3):
        worker.do(population.root, index)
    return population


@pytest.fixture
def longs(tmp_path, long):
    return Population.create(tmp_path / "longs", long.spec)


def queue(form="%i %T %r"):
    """A line for each task that waits or is at work."""
    return ask("squeue", "--array", "--noheader", "--states=PENDING,RUNNING", f"--format={form}")


def cancel_all():
    ask("scancel", "--user", str(os.getuid()))


def beginnings(population, index):
    """Process ids of the workers that began a member, in order."""
    found = []
    for path in (population.root / "journal").glob("*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            if (line["index"], line["event"]) == (index, "begun"):
                found.append((line["at"], int(path.name.split("-")[-2])))
    return [pid for _, pid in sorted(found)]


def while_at_work(population, faults):
    """Do something to each member as soon as it is being trained for the first time."""
    faults = dict(faults)
    while faults:
        for index in until(lambda: read_history(population.root).running & set(faults)):
            assert not population.done([index])
            faults.pop(index)()


def assert_identical(population, reference, members):
    assert population.done(members) == list(members)
    remove_partial(population.root)  # of killed tasks
    for index in members:
        assert content_digest(population.member(index)) == content_digest(reference.member(index)), index


def test_an_array_trains_what_one_process_does_and_the_store_lacks(engine, population, reference):
    (population.root / "members").mkdir()
    shutil.copy(reference.member(1), population.root / "members")
    answers = []
    with engine:
        engine.run(population, range(3), answers.append)
    assert_identical(population, reference, range(3))
    assert [answer["status"] for answer in answers] == ["done"] * 2 and not beginnings(population, 1)
    until(lambda: not queue(), 10)


@pytest.mark.faults
def test_an_interruption_leaves_nothing_in_the_queue(idle, population, reference):
    engine = SlurmEngine("cpu", slots=1, minutes=30, poll_s=0.1, settle_s=1)

    def interrupt(answer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run(population, range(3), interrupt)
    until(lambda: not queue(), 10)
    done = population.done(range(3))
    assert done and len(done) < 3
    assert_identical(population, reference, done)


@pytest.mark.faults
@pytest.mark.slow
def test_cancelled_killed_and_preempted_tasks_are_done_again(aside, longs, long):
    run = aside(longs, range(3))
    job = until(lambda: queue("%F"))[0]

    def cancel():  # as an administrator may
        worker = Path("/proc", str(beginnings(longs, 0)[0]))
        ask("scancel", f"{job}_0")
        until(lambda: not worker.exists(), 10)  # it ends when told: KillWait is three times as long

    hurt = {
        0: cancel,
        1: lambda: os.kill(beginnings(longs, 1)[0], signal.SIGKILL),  # as for want of memory
        2: lambda: ask("scancel", "--signal=USR2", f"{job}_2"),  # as before a preemption, or the time limit
    }
    while_at_work(longs, hurt)
    run.result(120)
    assert_identical(longs, long, range(3))
    assert [len(beginnings(longs, index)) for index in range(3)] == [2, 2, 2]
    assert "Requeued job" in (longs.root / "slurm" / f"{job}_2_0_log.out").read_text()


@pytest.mark.faults
@pytest.mark.slow
def test_a_lost_node_is_not_waited_for(idle, aside, longs, long):
    run = aside(longs, [0])
    node = until(lambda: "".join(queue("%N")))
    while_at_work(longs, {0: lambda: idle.kill_node(node)})
    started = time.monotonic()
    try:
        run.result(120)
        # Six seconds or so until Slurm notes the loss, six until the task may start again, and its time.
        assert time.monotonic() - started < 60
        assert_identical(longs, long, [0])
        assert len(beginnings(longs, 0)) == 2
    finally:
        idle.start_node(node)


@pytest.mark.faults
@pytest.mark.slow
def test_a_controller_that_is_away_for_a_while_changes_nothing(idle, aside, longs, long, capsys):
    run = aside(longs, [0])
    job = ArrayJob(until(lambda: queue("%F"))[0])
    assert job.alive() == 1
    while_at_work(longs, {0: lambda: idle.stop_daemon("slurmctld")})
    try:
        job.cancel()
        assert f"Slurm job {job.job_id} may go on" in capsys.readouterr().err
        job._answered -= 601
        with pytest.raises(
            PartialError, match=f"not answered for 10 minutes about job {job.job_id}; .*resumes"
        ):
            job.alive()
    finally:
        idle.start_controller()
    run.result(120)
    assert_identical(longs, long, [0])
    assert len(beginnings(longs, 0)) == 1


def test_a_members_error_keeps_its_type_and_ends_the_rest(idle, tmp_path, spec):
    elsewhere = spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": "0" * 64})})
    population = Population.create(tmp_path / "sweep", elsewhere)
    engine = SlurmEngine("cpu", slots=1, minutes=30, poll_s=0.2, settle_s=1)
    with pytest.raises(MismatchError, match="sweep, member 0: digits: content is"):
        engine.run(population, range(3))
    until(lambda: not queue(), 10)
    assert not beginnings(population, 2)


def test_a_launched_job_goes_on_alone(engine, population, reference):
    job = engine.launch(population, [4])
    assert queue("%i") == [job]
    with pytest.raises(UsageError, match=f"an earlier --detach has tasks left .1.: wait, or scancel {job}"):
        engine.launch(population, [4, 5])
    assert queue("%i") == [job]
    until(lambda: population.done([4]))
    assert_identical(population, reference, [4])
    assert engine.launch(population, [4]) == ""
    assert oct((population.root / "slurm").stat().st_mode)[-3:] == "700"


def submitted(*options):
    lines = ask("sbatch", "--output=/dev/null", "--array=0-1", *options, "--wrap=sleep 60")
    return ArrayJob(lines[0].split()[-1])


@pytest.mark.faults
def test_tasks_that_never_start_are_not_waited_for(idle):
    held = submitted("--hold")
    waiting = submitted(f"--dependency=afterok:{held.job_id}")
    assert (held.alive(), waiting.alive()) == (0, 2)
    with pytest.raises(
        UsageError, match=r"would wait for ever .DependencyNeverSatisfied.: change the options"
    ):
        until(lambda: waiting.alive() < 2, 20)
    waiting.cancel()
    idle.drained.touch()
    try:
        broken = submitted("--nodelist=node1")
        until(lambda: any("launch failed" in line for line in queue()), 20)
        until(lambda: broken.alive() == 0, 20)
    finally:
        idle.drained.unlink()
        ask("scontrol", "update", "nodename=node1", "state=resume")
    until(lambda: not queue(), 10)


@pytest.mark.faults
def test_a_task_that_does_not_end_is_waited_for_only_so_long(idle, tmp_path, monkeypatch):
    script = f"trap '' TERM; sleep 60 & echo $$ > {tmp_path}/pid; wait; wait"
    job = ArrayJob(ask("sbatch", "--output=/dev/null", f"--wrap={script}")[0].split()[-1])
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    job.cancel()
    until(lambda: tasks_of(job.job_id) == [(job.job_id, "COMPLETING", "None")], 10)
    assert job.alive() == 1
    monkeypatch.setattr(slurm_jobs, "COMPLETING_S", 0.1)
    until(lambda: job.alive() == 0, 5)
    assert tasks_of(job.job_id)
    os.killpg(pid, signal.SIGKILL)  # Slurm would in 30 s


def test_what_the_cluster_refuses(idle, population):
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
def test_options_that_cannot_be_given(cluster, options, message):
    with pytest.raises(UsageError, match=f"slurm option {message}"):
        SlurmEngine("cpu", options=options)


def test_options_reach_sbatch_in_any_spelling(idle, population):
    engine = SlurmEngine("cpu", options={"cpus_per_task": "2", "--nice": "", "comment": "a b"}, minutes=7)
    job = engine.launch(population, [0])
    shown = " ".join(ask("scontrol", "show", "job", job))
    assert "CPUs/Task=2" in shown and "Nice=100" in shown and "Comment=a b" in shown
    assert "TimeLimit=00:07:00" in shown and "Requeue=1" in shown


def test_what_an_engine_needs(cluster, monkeypatch, tmp_path):
    for setting in ({"slots": 0}, {"minutes": 4}):
        with pytest.raises(UsageError, match=f"{next(iter(setting))}: got .*expected at least"):
            SlurmEngine("cpu", **setting)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no sbatch, squeue, scancel, srun here; .*slurm-client"):
        SlurmEngine("cpu")
    monkeypatch.setattr(slurm_cluster, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'rumfast\[slurm\]'"):
        SlurmEngine("cpu")


def test_a_time_limit_without_progress_is_an_error_and_with_some_is_not(population):
    chunk = Chunk(str(population.root), [0, 1], "cpu", minutes=5)
    chunk._started, chunk._before = time.monotonic() - 240, 0
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(PartialError, match="within the time limit of 5 minutes; raise it"):
            chunk.checkpoint()
        chunk._started = time.monotonic() - 10  # preempted
        assert chunk.checkpoint().function.indices == [0, 1]
        chunk._started, chunk._before = time.monotonic() - 240, -1
        assert chunk.checkpoint().function.indices == [0, 1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_no_array_has_more_tasks_than_slurm_takes():
    chunks = [[index] for index in range(2500)]
    assert joined(chunks[:1000]) == chunks[:1000]
    found = joined(chunks)
    assert len(found) <= 1000 and sum(found, []) == list(range(2500))


def test_a_job_that_submits_jobs_does_not_pass_on_its_own_limits(monkeypatch):
    values = {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "9", "SLURM_CONF": "/c", "SBATCH_ACCOUNT": "us"}
    for name, text in values.items():
        monkeypatch.setenv(name, text)
    with outside_of_jobs():
        inside = {name: os.environ.get(name) for name in values}
    assert inside == values | {"SLURM_JOB_ID": None, "SLURM_MEM_PER_NODE": None}
    assert {name: os.environ[name] for name in values} == values


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_the_same_24_members_on_local_ray_and_slurm(idle, recipe, tmp_path):
    from rumfast.bench.engines import measure

    record = measure(["local(workers=2)", "ray", "slurm(slots=2, minutes=30)"], tmp_path, 24, recipe)
    assert [row["same_records"] for row in record["rows"]] == [True] * 3
    assert [row["repeated"] for row in record["rows"]] == [0] * 3
    for number in range(3):
        assert Population.open(tmp_path / str(number)).done(range(24)) == list(range(24))
