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

    def add(self, line: dict[str, Any]) -> None:
        """Take in one line of a journal."""
        index, event = line["index"], line["event"]
        if event in ("done", "diverged", "repeated"):
            self.seconds[index] = line.get("wall_s", 0.0)
            self.spent_s += self.seconds[index]
            self.finished_at.append(line["at"])
            self.repeated += event == "repeated"
        elif event == "failed":
            failure = Failure(line["at"], index, line.get("kind", ""), line.get("message", ""))
            self.failures.append(failure)


class HistoryReader:
    """Reads the journals below a population's folder, and then only what was added to them."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "journal"
        self._offset: dict[Path, int] = {}
        self._begun: dict[Path, int | None] = {}
        self._history = History()

    def read(self) -> History:
        """What the journals tell by now."""
        history = self._history
        for path in sorted(self._folder.glob("*.jsonl")):
            for line in self._added(path):
                self._begun[path] = line["index"] if line["event"] == "begun" else None
                history.add(line)
        begun = {index: path for path, index in self._begun.items() if index is not None}
        history.running = {index for index, path in begun.items() if _alive(path)}
        history.failures.sort()
        history.finished_at.sort()
        return history

    def _added(self, path: Path) -> Iterator[dict[str, Any]]:
        known = self._offset.get(path, 0)
        try:
            if path.stat().st_size == known:
                return
            with path.open("rb") as file:
                file.seek(known)
                text = file.read()
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]  # the rest is being written, or its writer was killed
        self._offset[path] = known + len(whole)
        for line in whole.splitlines():
            try:
                content = json.loads(line)
                content["index"], content["event"], content["at"]
            except (ValueError, KeyError, TypeError):
                continue
            yield content


def read_history(root: Path) -> History:
    """What the journals below a population's folder tell."""
    return HistoryReader(root).read()


def _alive(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < SILENCE_S
    except OSError:
        return False
