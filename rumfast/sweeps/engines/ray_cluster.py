"""Tasks of a Ray cluster: one that is started on this machine, or a running one that it is part of.

Ray takes over the process that uses it: handlers of signals and exceptions, environment variables, and it
ends the process a minute after the cluster's head is gone. So a process of its own uses it (``ray_driver``),
and that one's end is an error as any other.
"""

import json
import os
import queue
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rumfast import errors
from rumfast.errors import PartialError, UsageError
from rumfast.runtime import usable_cores
from rumfast.sweeps.engines.base import ChunkEngine
from rumfast.sweeps.population import Population

OPEN_S = 120.0  # to start or join a cluster; seconds, unless the machine is very busy
ANSWER_S = 90.0  # longer than Ray itself waits for a lost head
CANCEL_S = 10.0  # to take back chunks; with the next, how long an interruption may take
CLOSE_S = 15.0  # to shut Ray down in order
KNOCK_S = 10.0  # to reach the head's port
CONNECT_TRIES = "5"  # a second each; by default Ray tries a wrong token for twenty


class DriverLost(Exception):
    """The process that talks to Ray has ended, or does not answer."""


class Driver:
    """The process that talks to Ray; one request at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile()
        # A session of its own: Ctrl-C reaches the engine alone, which then stops Ray in order.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("ray_driver.py"))],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            env=environment,
        )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._number = 0

    def ask(self, do: str, limit_s: float = ANSWER_S, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            RumfastError: the answer is an error.
            DriverLost: there is none; the process is killed, and Ray with it where it was started here.
        """
        assert self._process.stdin is not None
        self._number += 1
        deadline = time.monotonic() + limit_s
        try:
            self._process.stdin.write(json.dumps({"number": self._number, "do": do, **fields}) + "\n")
            self._process.stdin.flush()
            while True:
                line = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
                if line is None:
                    raise self._lost("ended")
                answer = json.loads(line)
                if answer["number"] == self._number:  # not of a request that was interrupted
                    break
        except queue.Empty:
            raise self._lost(f"gave no answer within {limit_s:.0f} s") from None
        except (OSError, ValueError):
            raise self._lost("ended") from None
        if "kind" in answer:
            raise getattr(errors, answer["kind"])(answer["message"])
        return answer

    def close(self) -> None:
        """End the process, its tasks, and Ray where it was started here; returns when they are gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            with suppress(OSError):
                self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_S)
        finally:  # also when interrupted again
            self._process.kill()
            self._process.wait()
            self._reader.join()
            self._process.stdout.close()
            self._log.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _lost(self, what: str) -> DriverLost:
        self._process.kill()
        self._process.wait()
        handle = self._log.fileno()
        end = os.fstat(handle).st_size
        lines = os.pread(handle, 4096, max(0, end - 4096)).decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        return DriverLost(f"Ray's driver {what}; it said last: {last[:300]}")


class RayJobs:
    """Chunks that were handed to Ray."""

    def __init__(self, engine: "RayEngine") -> None:
        self._engine = engine
        self._alive = 1
        self.reason = ""

    def alive(self) -> int:
        """Number of chunks that wait or are at work; 0 also where they are lost."""
        answer = self._engine.ask("look")
        self._alive, self.reason = answer["alive"], answer["reason"]
        return self._alive

    def cancel(self) -> None:
        """Take back what waits and stop what is at work."""
        if self._alive:
            with suppress(PartialError):  # a lost driver's tasks end with it
                self._engine.ask("cancel", CANCEL_S)


class RayEngine(ChunkEngine):
    """Workers of a Ray cluster, which need the same rumfast, the data and the store under the same paths.

    Ray gives the chunks to its nodes as they come and go, and moves those of nodes that are lost.

    Args:
        device: auto, cpu or cuda.
        address: None starts Ray on this machine and ends it on leaving; ``auto`` or ``HOST:PORT`` joins a
            running cluster, of which this machine must be a node.
        cpus: cores that a member at work takes.
        gpus: share of one GPU that it takes; None takes a whole one where the device is CUDA (``auto`` is
            where the cluster has GPUs), and none otherwise.
        poll_s: seconds between two looks at the store.
        settle_s: seconds after which a file that a node has written can be seen here.

    Ray's token authentication is on unless RAY_AUTH_MODE=disabled says otherwise of a cluster to be joined;
    the token is then found as Ray does (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token). Ray on this
    machine gets a token of its own, no dashboard, and reports to nobody.

    Raises:
        UsageError: Ray is not installed, an argument is wrong, or on entering: the cluster cannot be joined.
    """

    def __init__(
        self,
        device: str = "auto",
        *,
        address: str | None = None,
        cpus: float = 1.0,
        gpus: float | None = None,
        poll_s: float = 1.0,
        settle_s: float | None = None,
    ) -> None:
        if find_spec("ray") is None:
            raise UsageError("engine ray: Ray is not installed; pip install 'rumfast[ray]'")
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"device: got {device!r}, expected auto, cpu or cuda; Ray chooses which GPU")
        if not cpus > 0:
            raise UsageError(f"cpus: got {cpus}, expected a number above 0")
        if gpus is not None and not 0 <= gpus <= 1:
            raise UsageError(f"gpus: got {gpus}, expected a share of one GPU, from 0 to 1")
        self._head = None if address in (None, "auto") else _host_and_port(address)
        self.device, self.address, self.cpus, self.gpus = device, address, cpus, gpus
        self.poll_s = poll_s
        # Network file systems may show a folder as it was a minute ago.
        self.settle_s = settle_s if settle_s is not None else 1.0 if address is None else 60.0
        self._driver: Driver | None = None

    @property
    def workers(self) -> int:
        """Members that the nodes which are up now can train at the same time; 1 where none has room yet."""
        return max(1, self.ask("workers")["workers"])

    @property
    def devices(self) -> float:
        """Devices that they share."""
        return self.workers * (self.gpus or 1.0)

    def __enter__(self) -> "RayEngine":
        if self._head is not None:
            try:
                socket.create_connection(self._head, KNOCK_S).close()
            except OSError as error:
                raise UsageError(f"address: nothing answers at {self.address}: {error}") from None
        self._driver = Driver(self._environment())
        try:
            self._driver.ask(
                "open",
                OPEN_S,
                address=self.address,
                cores=usable_cores(),
                cpus=self.cpus,
                gpus=self.gpus,
                device=self.device,
            )
        except BaseException as error:
            self.__exit__(type(error))
            if isinstance(error, DriverLost):
                if self.address is None:
                    raise PartialError(f"Ray does not start on this machine: {error}") from None
                raise UsageError(f"address: cannot join Ray at {self.address}: {error}") from None
            raise
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def submit(self, population: Population, chunks: Sequence[list[int]]) -> RayJobs:
        """Hand out chunks; each becomes a task that calls ``worker.do_chunk``."""
        self.ask("submit", root=str(Path(population.root).resolve()), chunks=list(chunks))
        return RayJobs(self)

    def ask(self, do: str, limit_s: float = ANSWER_S, **fields: Any) -> dict[str, Any]:
        """Let the driver do something.

        Raises:
            RumfastError: it answers with one.
            PartialError: it is gone, with the cluster's head, say.
        """
        assert self._driver is not None, "RayEngine is a context manager"
        try:
            return self._driver.ask(do, limit_s, **fields)
        except DriverLost as error:
            raise PartialError(f"{error}; finished members are kept, the same command resumes") from None

    def _environment(self) -> dict[str, str]:
        settings = {"RAY_AUTH_MODE": "token", "RAY_task_oom_retries": "2"}  # for ever by default
        if self.address is not None:
            return settings | {"RAY_NUM_REDIS_GET_RETRIES": CONNECT_TRIES} | os.environ
        if not os.environ.get("RAY_AUTH_TOKEN") and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            settings["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        return os.environ | settings | {"RAY_USAGE_STATS_ENABLED": "0"}


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise UsageError(f"address: got {address!r}, expected auto or HOST:PORT of a Ray cluster's head")
    return host.strip("[]"), int(port)
