"""A real Slurm cluster on loopback: munged, slurmctld and two slurmd, with all their files in one folder."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin"  # which not all users search
LACKING = [
    name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name, path=PATH) is None
]
NODES = ("node0", "node1")

# No accounting and no cgroups. Dead nodes are noticed, and lost jobs queued again, in seconds, not minutes;
# KillWait is as everywhere. While the file `drained` exists, no job can be launched.
CONFIG = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmctldPidFile={root}/slurmctld.pid
SlurmdSpoolDir={root}/%n
SlurmdPidFile={root}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
Prolog={root}/prolog
ReturnToService=2
SlurmdTimeout=6
MessageTimeout=5
KillWait=30
NodeName=node0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=60 State=UP
"""


class Cluster:
    """The daemons, and ways to question and to hurt them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.drained = root / "drained"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Return when both nodes are idle."""
        self.root.chmod(0o755)  # munge's socket must be open to all
        for folder in ("state", *NODES):
            (self.root / folder).mkdir()
        host, user = socket.gethostname().split(".")[0], getpass.getuser()
        text = CONFIG.format(root=self.root, host=host, user=user, ports=free_ports(3))
        (self.root / "slurm.conf").write_text(text)
        (self.root / "prolog").write_text(f"#!/bin/sh\ntest ! -e {self.drained}\n")
        (self.root / "prolog").chmod(0o755)
        key = self.root / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
        places = [f"--{name}={self.root}/munge.{suffix}" for name, suffix in files.items()]
        self.spawn("munged", "munged", "--foreground", "--force", *places)
        until((self.root / "munge.socket").exists)
        self.start_controller()
        for node in NODES:
            self.start_node(node)

    def start_controller(self) -> None:
        """Start slurmctld, anew or where it stopped."""
        self.spawn("slurmctld", "slurmctld", "-D")

    def start_node(self, name: str) -> None:
        """Start a node's slurmd and return when all nodes are idle."""
        self.spawn(name, "slurmd", "-D", "-N", name)
        if len(self._daemons) == 2 + len(NODES):
            until(lambda: ask("sinfo", "--noheader", "--Node", "--format=%T") == ["idle"] * len(NODES))

    def spawn(self, name: str, *command: str) -> None:
        """Run a daemon in the foreground; what it says is in the file of its name."""
        with (self.root / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                command,
                executable=shutil.which(command[0], path=PATH),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop_daemon(self, name: str, kind: signal.Signals = signal.SIGTERM) -> None:
        """Signal a daemon and wait for its end."""
        self._daemons[name].send_signal(kind)
        self._daemons[name].wait(20)

    def kill_node(self, name: str) -> None:
        """End a node as a power cut would: slurmd, then what would report the tasks' ends, then the tasks."""
        self.stop_daemon(name, signal.SIGKILL)
        tasks = self._processes(f"SLURMD_NODENAME={name}")
        parents = {parent_of(pid) for pid in tasks}
        steps = [pid for pid in self._processes() if pid in parents and name_of(pid) == "slurmstepd"]
        for pid in [*steps, *tasks]:
            kill(pid)

    def stop(self) -> None:
        """End all daemons, jobs and tasks, and delete the folder."""
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait(20)
        while processes := self._processes():
            for pid in processes:
                kill(pid)
            time.sleep(0.05)
        shutil.rmtree(self.root, ignore_errors=True)

    def _processes(self, *variables: str) -> list[int]:
        """Those that were started with this cluster's environment, and with ``variables``."""
        wanted = {f"SLURM_CONF={self.root}/slurm.conf".encode(), *(text.encode() for text in variables)}
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if wanted <= set(path.read_bytes().split(b"\0")):
                    found.append(int(path.parent.name))
        return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def ask(*command: str) -> list[str]:
    """The lines that a command prints."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.splitlines()


def until(found: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Ask until the answer is true."""
    deadline = time.monotonic() + timeout_s
    while not (answer := found()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.0f} s")
        time.sleep(0.05)
    return answer


def kill(pid: int) -> None:
    """SIGKILL, unless it has ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def parent_of(pid: int) -> int:
    """Process id of the parent; 0 where the process has ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def name_of(pid: int) -> str:
    """Name of the program."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster that this process's Slurm commands speak to."""
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="slurm-")))  # short: a socket's path has 107 bytes at most
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = f"{cluster.root}/slurm.conf"
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
