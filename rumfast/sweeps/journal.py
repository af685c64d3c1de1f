"""What workers say of their work: one file of JSON lines for each, beside the members it tells of.

The journal is for people and estimates. What is done is known from the members alone: lines may be missing,
cut short or repeated, and the folder may be deleted at any time.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rumfast.errors import StorageError

HEARTBEAT_S = 10.0  # between two signs of life of a worker
SILENCE_S = 90.0  # without one, after which a worker counts as gone; clocks and caches of nodes may differ


class Journal:
    """The file that this process writes about one population."""

    def __init__(self, root: Path) -> None:
        name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.jsonl"
        self.path = root / "journal" / name
        self._stopped = threading.Event()

    def write(self, index: int, event: str, **fields: Any) -> None:
        """Append one line.

        Raises:
            StorageError: it cannot be written, so no member could be either.
        """
        line = json.dumps({"index": index, "event": event, "at": time.time(), **fields})
        try:
            started = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise StorageError(f"{self.path}: cannot write: {error.strerror or error}") from error
        if started:
            threading.Thread(target=self._beat, daemon=True).start()

    def close(self) -> None:
        """End the signs of life."""
        self._stopped.set()

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            try:
                os.utime(self.path)
            except OSError:
                return  # the folder was deleted, or the disk fails, which the next write will say


@dataclass(frozen=True, order=True)
class Failure:
    """A member that ended in an error."""

    at: float  # seconds since 1970
    index: int
    kind: str  # name of the error's class
    message: str


@dataclass
class History:
    """What the journals of a population tell.

    Attributes:
        seconds: wall time of each member that was finished, by index; the last one where several were.
        failures: oldest first.
        running: members that a worker with recent signs of life has begun and not ended.
        repeated: members that were trained although another worker had, or was about to, finish them.
        spent_s: wall time of all finished members, repeated ones too.
        finished_at: when each member was finished, sorted, in seconds since 1970.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    running: set[int] = field(default_factory=set)
    repeated: int = 0
    spent_s: float = 0.0
    finished_at: list[float] = field(default_factory=list)


def read_history(root: Path) -> History:
    """Read the journals below a population's folder."""
    history = History()
    for path in sorted((root / "journal").glob("*.jsonl")):
        begun: int | None = None
        for line in _lines(path):
            index, event = line["index"], line["event"]
            begun = index if event == "begun" else None
            if event in ("done", "diverged", "repeated"):
                history.seconds[index] = line.get("wall_s", 0.0)
                history.spent_s += history.seconds[index]
                history.finished_at.append(line["at"])
                history.repeated += event == "repeated"
            elif event == "failed":
                failure = Failure(line["at"], index, line.get("kind", ""), line.get("message", ""))
                history.failures.append(failure)
        if begun is not None and _alive(path):
            history.running.add(begun)
    history.failures.sort()
    history.finished_at.sort()
    return history


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            content = json.loads(line)
            content["index"], content["event"], content["at"]
        except (ValueError, KeyError, TypeError):
            continue  # the writer was killed
        yield content


def _alive(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < SILENCE_S
    except OSError:
        return False
