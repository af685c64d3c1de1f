"""Real Ray: three nodes on this machine, killed as machines are, and Ray that the engine starts itself."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from rumfast.errors import MismatchError, PartialError, UsageError
from rumfast.store import content_digest, remove_partial
from rumfast.sweeps import Population
from rumfast.sweeps.engines import ray_cluster
from rumfast.sweeps.engines.ray_cluster import RayEngine
from rumfast.sweeps.journal import read_history

pytestmark = [pytest.mark.ray, pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")]

TOKEN = "a token that is the cluster's own"
STORE = 80 << 20
HEALTH = {"period_ms": 300, "timeout_ms": 2000, "failure_threshold": 3, "initial_delay_ms": 0}

# A command line of one command: it trains members 0 to ``count`` - 1 of a population by Ray.
COMMAND = """
import sys
import typer
from rumfast.cli import entry
from rumfast.sweeps import Population
from rumfast.sweeps.engines.ray_cluster import RayEngine

def train(root: str, count: int, address: str | None = None):
    with RayEngine("cpu", address=address, poll_s=0.05, settle_s=1) as engine:
        engine.run(Population.open(root), range(count))

entry.app = typer.Typer()
entry.app.command()(train)
entry.main()
"""


class Nodes:
    """A head without CPUs and two workers with one each, of which the second also claims a GPU."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        health = {f"health_check_{key}": value for key, value in HEALTH.items()}
        self.cluster = Cluster()
        self._add(num_cpus=0, include_dashboard=False, _system_config=health)
        self.workers = []
        self.fill()

    def _add(self, **options):
        return self.cluster.add_node(object_store_memory=STORE, **options)

    def fill(self):
        """Put back what was killed."""
        gpus = {node.num_gpus for node in self.workers}
        for num_gpus in {0, 1} - gpus:
            node = self._add(num_cpus=1, num_gpus=num_gpus)
            node.num_gpus = num_gpus
            self.workers.append(node)

    def kill(self, node):
        """All its processes at once, as where a machine is lost."""
        kill_tree(pid_of(node, "raylet"))
        self.workers.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def of(self, pid):
        """The worker node whose raylet has started ``pid``."""
        raylet = parent_of(pid)
        return next(node for node in self.workers if pid_of(node, "raylet") == raylet)

    def kill_head(self):
        head = self.cluster.head_node
        if head.all_processes:
            kill_tree(pid_of(head, "raylet"))
            head.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)

    def close(self):
        for node in list(self.workers):
            self.kill(node)
        self.kill_head()


@pytest.fixture(scope="module")
def nodes():
    assert "ray" not in sys.modules, "an earlier test has imported Ray, which reads RAY_AUTH_MODE only then"
    handler, hook = signal.getsignal(signal.SIGTERM), sys.excepthook
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-") as folder:
        patch.setenv("RAY_TMPDIR", folder)  # where Ray also writes which cluster "auto" is
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found = Nodes()
        try:
            yield found
        finally:
            found.close()
            signal.signal(signal.SIGTERM, handler)
            sys.excepthook = hook


@pytest.fixture(scope="module")
def engine(nodes):
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "3")  # after which it gives up a lost head
            found = RayEngine("cpu", address=nodes.cluster.address, poll_s=0.05, settle_s=0.5)
            stack.enter_context(found)
        yield found


@pytest.fixture
def population(tmp_path, spec):
    return Population.create(tmp_path / "sweep", spec)


@pytest.fixture
def command():
    """Starts the command line in a TMPDIR of its own; kills what the test has left of it."""
    started, folder = [], tempfile.TemporaryDirectory()  # not below tmp_path: names of sockets are short

    def start(population, count, address=None):
        arguments = [str(population.root), str(count)] + (["--address", address] if address else [])
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": folder.name},
            start_new_session=True,
        )
        started.append(process)
        return process, Path(folder.name)

    yield start
    for process in started:
        kill_tree(process.pid)
        process.communicate()
    folder.cleanup()


def until(what, limit_s=90):
    deadline = time.monotonic() + limit_s
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def parent_of(pid):
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def below(pid):
    """All processes that ``pid`` has started, and those that they have."""
    parents = {int(path.name): parent_of(path.name) for path in Path("/proc").glob("[0-9]*")}
    family = [pid]
    for one in family:
        family += [child for child, parent in parents.items() if parent == one]
    return family[1:]


def kill_tree(pid):
    for one in [pid, *below(pid)]:
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def alive(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def pid_of(node, kind):
    return node.all_processes[kind][0].process.pid


def at_work(population):
    """Process and member of each journal that ends in a beginning, oldest first."""
    found = []
    for path in sorted((population.root / "journal").glob("*.jsonl"), key=os.path.getctime):
        last = re.search(r'"index": (\d+), "event": "begun"[^\n]*\n\Z', path.read_text())
        if last:
            found.append((int(path.name.split("-")[-2]), int(last[1])))
    return found


def assert_identical(population, reference, members):
    for index in members:
        assert content_digest(population.member(index)) == content_digest(reference.member(index))


@pytest.mark.faults
@pytest.mark.slow
def test_a_node_is_killed_mid_task_then_the_driver_and_resume_runs_only_what_is_missing(
    nodes, engine, population, reference, command
):
    count = 30  # at a fifth of a second each
    driver, _ = command(population, count, nodes.cluster.address)
    pid, member = until(lambda: at_work(population))[0]
    nodes.kill(nodes.of(pid))
    until(lambda: not alive(pid), 5)
    assert not population.member(member).exists()

    until(lambda: len(population.done(range(count))) >= 6)  # by the other node
    tasks = {pid for pid, _ in at_work(population)}
    helper = below(driver.pid)
    driver.kill()
    until(lambda: not any(map(alive, [*helper, *tasks])), 30)
    remove_partial(population.root)
    done = population.done(range(count))
    assert 6 <= len(done) < count
    stamps = {index: population.member(index).stat().st_mtime_ns for index in done}
    before = read_history(population.root)

    nodes.fill()
    answers = []
    engine.run(population, range(count), answers.append)
    assert population.done(range(count)) == list(range(count)) and len(answers) == count - len(done)
    after = read_history(population.root)
    assert len(after.finished_at) - len(before.finished_at) == count - len(done)
    assert after.repeated == 0 and not after.failures
    assert {index: population.member(index).stat().st_mtime_ns for index in done} == stamps
    assert_identical(population, reference, range(6))


def test_an_error_of_a_member_keeps_its_type(engine, tmp_path, spec):
    data = spec.data.model_copy(update={"fingerprint": "1" * 64})
    population = Population.create(tmp_path / "other", spec.model_copy(update={"data": data}))
    with pytest.raises(MismatchError, match="other, member 0: digits: content is"):
        engine.run(population, [0])


def test_an_error_that_no_journal_can_tell_of_is_told(engine, population):
    (population.root / "spec.json").unlink()  # as where a node does not share the store's disk
    with pytest.raises(PartialError, match="3 rounds without progress .DataError: .*spec.json: no such file"):
        engine.run(population, [0])


@pytest.mark.slow
def test_two_tasks_share_one_gpu(nodes, population, reference):
    whole = RayEngine("cpu", address="auto", cpus=0.5, gpus=1)
    halves = RayEngine("cpu", address="auto", cpus=0.5, gpus=0.5, poll_s=0.05)
    with whole, halves:
        assert (whole.workers, halves.workers) == (1, 2)
        halves.run(population, range(2))
    events = [re.findall('"at": ([0-9.]+)', path.read_text()) for path in population.root.glob("journal/*")]
    (begun, done), (other_begun, other_done) = [[float(at) for at in each] for each in events]
    assert begun < other_done and other_begun < done
    assert_identical(population, reference, range(2))


def gcs_address(pids):
    lines = (Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in pids)
    return next(found[1] for line in lines if (found := re.search(r"--gcs-address=([\d.:]+)", line)))


def listens(pid):
    """Local ports on which a process listens."""
    sockets = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    lines = [Path(f"/proc/net/{name}").read_text().splitlines() for name in ("tcp", "tcp6")]
    return [
        row[1] for row in map(str.split, sum(lines, [])) if row[3] == "0A" and f"socket:[{row[9]}]" in sockets
    ]


@pytest.mark.faults
@pytest.mark.slow
def test_ray_of_our_own_wants_a_token_has_no_dashboard_and_ends_with_the_command(
    population, reference, command, monkeypatch
):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    process, folder = command(population, 10_000)
    until(lambda: len(population.done(range(2))) == 2)
    family = below(process.pid)
    assert any(b"raylet" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family)

    dashboards = [pid for pid in family if b"dashboard.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert not any(map(listens, dashboards))
    address = gcs_address(family)
    environment = Path(f"/proc/{family[0]}/environ").read_bytes().decode().split("\0")
    token = next(line for line in environment if line.startswith("RAY_AUTH_TOKEN=")).partition("=")[2]
    monkeypatch.setattr(ray_cluster, "CONNECT_TRIES", "1")
    for setting in ({"RAY_AUTH_TOKEN": "wrong"}, {"RAY_AUTH_MODE": "disabled"}):
        with monkeypatch.context() as patch, pytest.raises(UsageError, match="address: cannot join Ray"):
            for name, value in setting.items():
                patch.setenv(name, value)
            RayEngine("cpu", address=address).__enter__()
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with RayEngine("cpu", address=address) as engine:
        assert engine.workers == len(os.sched_getaffinity(0))

    process.terminate()
    started = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and said == "rumfast: " + said.removeprefix("rumfast: ")
    assert "interrupted; finished work is kept" in said and said.count("\n") == 1
    until(lambda: not any(map(alive, family)), 30 - (time.monotonic() - started))
    assert not list(folder.iterdir())
    assert_identical(population, reference, range(2))


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # what an import finds where there is none
    with pytest.raises(UsageError, match=re.escape("pip install 'rumfast[ray]'")):
        RayEngine()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"address": "ray://head:10001"}, "address: got 'ray://head:10001', expected auto or HOST:PORT"),
        ({"address": "head"}, "address: got 'head'"),
        ({"cpus": 0}, "cpus: got 0"),
        ({"gpus": 2}, "gpus: got 2, expected a share of one GPU"),
        ({"device": "cuda:1"}, "device: got 'cuda:1', expected auto, cpu or cuda"),
    ],
)
def test_arguments_that_cannot_be_meant(arguments, message):
    with pytest.raises(UsageError, match=message):
        RayEngine(**arguments)


def test_an_address_where_nobody_answers_is_an_error_and_not_a_wait(monkeypatch):
    started = time.monotonic()
    with pytest.raises(UsageError, match="address: nothing answers at 127.0.0.1:1"):
        RayEngine(address="127.0.0.1:1").__enter__()
    monkeypatch.setattr(ray_cluster, "OPEN_S", 3.0)
    monkeypatch.setattr(ray_cluster, "CLOSE_S", 1.0)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"cannot join Ray at {address}: .* no answer within 3 s"):
            RayEngine(address=address).__enter__()
    assert time.monotonic() - started < 20


@pytest.mark.faults
def test_without_the_head_what_is_done_is_kept(nodes, engine, population):
    """Last of all, for the nodes do not survive it."""
    beheaded = []

    def behead(answer):
        if not beheaded:
            nodes.kill_head()
            beheaded.append(time.monotonic())

    with pytest.raises(PartialError, match="Ray.*; finished members are kept, the same command resumes"):
        engine.run(population, range(1000), behead)
    assert time.monotonic() - beheaded[0] < 40
    assert 0 < len(population.done(range(1000))) < 1000
