"""The script of the process that talks to Ray for ``RayEngine``; without torch it starts at once.

One JSON request per line on stdin ({"number": n, "do": method, ...}), one JSON answer per line on stdout.
When stdin ends, so do its tasks, and Ray itself where this process has started it.
"""

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rumfast.errors import PartialError, RumfastError, UsageError

RETRIES = 2  # times that Ray itself moves a chunk whose worker or node has died
OBJECT_STORE_BYTES = 80 << 20  # about the least that Ray takes; members travel through files
LOOK_S = 30.0  # between two looks at whether any node has room for a chunk
PATIENCE_S = 600.0  # for nodes that have it, which an autoscaler may be starting
ROUNDING = 1e-9  # 1 / 0.1 tasks are ten


def do_chunk(root: str, indices: Sequence[int], device: str) -> None:
    """What a task runs."""
    from rumfast.sweeps import worker

    worker.do_chunk(root, indices, device)


class Cluster:
    """A Ray cluster, and the chunks that were handed to it; each method answers one request."""

    def __init__(self) -> None:
        import ray  # here, so that tools can read this module where Ray is missing

        self._ray: Any = ray
        self._folder: tempfile.TemporaryDirectory[str] | None = (
            None  # of logs and sockets of Ray started here
        )
        self._task: Any = None
        self._cpus, self._gpus, self._device = 1.0, 0.0, "auto"
        self._waiting: list[Any] = []
        self._reason = ""
        self._room_at = 0.0

    def open(
        self, address: str | None, cores: int, cpus: float, gpus: float | None, device: str
    ) -> dict[str, Any]:
        """Join the cluster, or start one on ``cores`` of this machine."""
        if address is not None:
            try:
                self._ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # of many kinds; a wrong version is a RuntimeError
                raise UsageError(f"address: cannot join Ray at {address}: {_first_line(error)}") from error
        else:
            self._folder = tempfile.TemporaryDirectory(prefix="rumfast-ray-", ignore_cleanup_errors=True)
            self._ray.init(
                "local",  # even where RAY_ADDRESS names another
                num_cpus=cores,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=self._folder.name,
            )
        if gpus is None:
            on_gpu = device == "cuda" or (
                device == "auto" and self._ray.cluster_resources().get("GPU", 0) > 0
            )
            gpus = 1.0 if on_gpu else 0.0
        self._cpus, self._gpus, self._device = cpus, gpus, device
        self._task = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(do_chunk)
        if address is None and not self._room():
            raise UsageError(f"cpus, gpus: a task takes {self._share()}, more than this machine has")
        return {}

    def workers(self) -> dict[str, Any]:
        """How many chunks the nodes that are up can run at once."""
        return {"workers": self._room()}

    def submit(self, root: str, chunks: Sequence[list[int]]) -> dict[str, Any]:
        """Hand out chunks, after which Ray runs them wherever and whenever there is room."""
        self._reason, self._room_at = "", time.monotonic()
        self._waiting = [self._task.remote(root, chunk, self._device) for chunk in chunks]
        return {}

    def look(self) -> dict[str, Any]:
        """How many chunks have not ended, and why the last one that failed did."""
        if self._waiting:
            ended, self._waiting = self._ray.wait(
                self._waiting, num_returns=len(self._waiting), timeout=0, fetch_local=False
            )
            for chunk in ended:
                self._reason = self._failure(chunk) or self._reason
        if self._waiting:
            self._require_room()
        return {"alive": len(self._waiting), "reason": self._reason}

    def cancel(self) -> dict[str, Any]:
        """Take back what waits and kill what is at work."""
        for chunk in self._waiting:
            with suppress(self._ray.exceptions.RayError):  # its node is gone, say
                self._ray.cancel(chunk, force=True)
        self._waiting = []
        return {}

    def close(self) -> None:
        """Leave the cluster, and wait for those of Ray's processes that were started here."""
        self._ray.shutdown()
        with suppress(ChildProcessError):
            while True:
                os.wait()
        if self._folder is not None:
            self._folder.cleanup()

    def _require_room(self) -> None:
        """Ray itself would wait for ever for a node that is large enough."""
        now = time.monotonic()
        if now - self._room_at < LOOK_S:
            return
        if self._room():
            self._room_at = now
        elif now - self._room_at > PATIENCE_S:
            raise PartialError(
                f"no node of the Ray cluster has had room for a task ({self._share()}) for "
                f"{PATIENCE_S / 60:.0f} minutes; finished members are kept, the same command resumes"
            )

    def _room(self) -> int:
        total = 0
        for node in self._ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                tasks = int(has.get("CPU", 0) / self._cpus + ROUNDING)
                if self._gpus:  # a task's share is of one GPU
                    tasks = min(tasks, int(has.get("GPU", 0)) * int(1 / self._gpus + ROUNDING))
                total += tasks
        return total

    def _share(self) -> str:
        return f"{self._cpus:g} CPUs and {self._gpus:g} GPUs"

    def _failure(self, chunk: Any) -> str:
        """Why a chunk that has ended did so; empty where it succeeded."""
        try:
            self._ray.get(chunk, timeout=LOOK_S)
            return ""
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error  # of an error that the chunk itself has raised
            return f"{type(cause).__name__}: {_first_line(cause)}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def main() -> None:
    """Entry point: answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints must not come between the answers
    cluster = Cluster()
    try:
        for line in sys.stdin:
            request = json.loads(line)
            answer = {"number": request.pop("number")}
            try:
                answer |= getattr(cluster, request.pop("do"))(**request)
            except RumfastError as error:
                answer |= {"kind": type(error).__name__, "message": str(error)}
            except Exception as error:  # Ray's are of many kinds
                answer |= {"kind": "PartialError", "message": f"Ray: {_first_line(error)}"}
            print(json.dumps(answer), file=answers, flush=True)
    finally:
        cluster.close()


if __name__ == "__main__":
    main()
