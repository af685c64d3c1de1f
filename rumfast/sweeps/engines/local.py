"""Worker processes on this machine."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable
from typing import Any

import torch

from rumfast.errors import UsageError
from rumfast.runtime import pick_device, usable_cores
from rumfast.store import remove_partial, require_writable
from rumfast.sweeps.engines.base import ATTEMPTS, OnDone, error_of, ignore
from rumfast.sweeps.engines.mps import MpsDaemon, MpsUnavailable, can_start
from rumfast.sweeps.population import Population
from rumfast.sweeps.sharing import SharedImages


class WorkerDied(Exception):
    """A worker process ended without an answer."""


class Slot:
    """One worker process with ``variables`` in its environment, restarted when it dies."""

    def __init__(self, device: str, **variables: str) -> None:
        self.device = device
        self.variables = variables
        self._process: subprocess.Popen[str] | None = None
        self._starting = threading.Lock()
        self._closed = False

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        """Send a task and wait for its answer.

        Raises:
            WorkerDied: the process ended instead, or the slot is being shut.
        """
        with self._starting:
            if self._closed:
                raise WorkerDied("stopped")
            if self._process is None or self._process.poll() is not None:
                self.stop()
                self._process = self._start()
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except (BrokenPipeError, ValueError) as error:
            raise WorkerDied(str(error)) from None
        if not answer.endswith("\n"):
            raise WorkerDied(f"exit status {self._process.wait()}")
        return json.loads(answer)

    def _start(self) -> subprocess.Popen[str]:
        # A session of its own: Ctrl-C reaches the engine alone, which then stops its workers in order.
        return subprocess.Popen(
            [sys.executable, "-m", "rumfast.sweeps.worker", "--device", self.device],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | self.variables,
        )

    def shut(self) -> None:
        """Kill the process and start no other, until :meth:`stop`: whoever waits in :meth:`ask` is let go."""
        with self._starting:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def stop(self, *, kill: bool = False) -> None:
        """Let the process finish what it does, or kill it."""
        self._closed = False
        if self._process is None:
            return
        if kill:
            self._process.kill()
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it is gone already
        self._process.wait()
        self._process.stdout.close()
        self._process = None


class LocalEngine:
    """Worker processes on this machine: one per core on a CPU, one per GPU otherwise.

    Use it as a context manager; workers start with the first task and serve every population after it, so
    that importing torch and loading the data set are paid once.

    Where there are more workers than GPUs, several share one: side by side under an MPS daemon that the
    engine starts, or in turn where MPS is missing, fails or is off. Each worker has a copy of the images on
    its GPU (CIFAR-10: 150 MB). A kernel that fails under MPS may cost all workers of its GPU their
    context: they end, and others take over.

    Args:
        workers: processes; None takes one per core or GPU.
        mps: start the daemon where workers share a GPU and the user runs none.
    """

    def __init__(self, workers: int | None = None, device: str = "auto", *, mps: bool = True) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"workers: got {workers}, expected at least 1")
        where = pick_device(device)
        if where.type == "cuda" and where.index is None:
            devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        else:
            devices = [str(where)] * (usable_cores() if where.type == "cpu" else 1)
        count = workers or len(devices)
        self.device = device
        self.slots = [
            Slot(devices[index % len(devices)], **_threads(where, count)) for index in range(count)
        ]
        self._images = SharedImages() if where.type == "cpu" and count > 1 else None
        self._wants_mps = mps and where.type == "cuda" and count > len(devices)
        self._mps: MpsDaemon | None = None

    @property
    def workers(self) -> int:
        """Members that are trained at the same time."""
        return len(self.slots)

    @property
    def devices(self) -> float:
        """Devices that they share; on a CPU a core each."""
        gpus = {slot.device for slot in self.slots if slot.device.startswith("cuda")}
        return len(gpus) or self.workers

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            for slot in self.slots:
                slot.stop(kill=kind is not None)
        finally:
            if self._mps is not None:
                self._mps.stop()
            if self._images is not None:
                self._images.close()

    def _start_mps(self) -> None:
        """Start MPS once, before the first worker; without it workers take turns."""
        if not self._wants_mps or not can_start():
            return
        self._wants_mps = False
        try:
            self._mps = MpsDaemon(torch.cuda.device_count())
        except MpsUnavailable as error:
            print(f"rumfast: workers take turns on a GPU; MPS did not start: {error}", file=sys.stderr)
            return
        for slot in self.slots:
            slot.variables |= self._mps.variables

    def run(self, population: Population, indices: Iterable[int], on_done: OnDone = ignore) -> None:
        """Train the members ``indices`` that the store lacks; ``on_done`` gets each one's status and wall_s.

        Raises:
            RumfastError: the first error a worker reported, as its own type; finished members are kept.
            PartialError: a member took down its worker three times.
            StorageError: the population's folder cannot be written to.
        """
        missing: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in sorted(set(indices) - set(population.done(indices))):
            missing.put(index)
        expected = missing.qsize()
        if not expected:
            return
        require_writable(population.root)
        self._start_mps()
        task: dict[str, Any] = {"population": str(population.root.resolve())}
        if self._images is not None:
            task["images"] = self._images.path(population.spec.data)
        answers: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        slots = self.slots[:expected]
        threads = [
            threading.Thread(target=_drain, args=(slot, task, missing, answers), daemon=True)
            for slot in slots
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(expected):
                index, answer = answers.get()
                if answer["status"] == "error":
                    raise error_of(population, index, answer["kind"], answer["message"])
                on_done(answer)
            for thread in threads:
                thread.join()
        except BaseException:
            self._abort(missing, slots, threads)
            raise
        finally:
            remove_partial(population.root)

    def _abort(
        self, missing: queue.SimpleQueue[int], slots: list[Slot], threads: list[threading.Thread]
    ) -> None:
        try:
            while True:
                missing.get_nowait()
        except queue.Empty:
            pass
        for slot in slots:
            slot.shut()
        for thread in threads:
            thread.join()
        for slot in slots:
            slot.stop()


def _threads(where: torch.device, workers: int) -> dict[str, str]:
    """Threads of a worker, in variables: one on a CPU; beside a GPU its share of the cores, or the user's."""
    if where.type == "cpu":
        return {"OMP_NUM_THREADS": "1"}
    share = str(max(1, usable_cores() // workers))
    names = ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
    return {name: share for name in names if workers > 1 and name not in os.environ}


def _drain(
    slot: Slot,
    task: dict[str, Any],
    missing: "queue.SimpleQueue[int]",
    answers: "queue.SimpleQueue[tuple[int, dict[str, Any]]]",
) -> None:
    """Work off the queue on one slot."""
    while True:
        try:
            index = missing.get_nowait()
        except queue.Empty:
            return
        try:
            answer = _attempt(slot, task | {"index": index})
        except Exception as error:  # a thread that ends without an answer would be waited for
            answer = {
                "status": "error",
                "kind": "PartialError",
                "message": f"{type(error).__name__}: {error}",
            }
        answers.put((index, answer))


def _attempt(slot: Slot, task: dict[str, Any]) -> dict[str, Any]:
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            return slot.ask(task)
        except WorkerDied as error:
            reason = str(error)
    return {
        "status": "error",
        "kind": "PartialError",
        "message": f"its worker died {ATTEMPTS} times ({reason}); finished members are kept, "
        "the same command resumes",
    }
