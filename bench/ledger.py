"""``rungs.json``: what climbs have measured, rung by rung and case by case. Imports no torch.

A case is ``ok``, ``failed`` (the next climb tries it again), ``missing`` (for want of a package), ``partial``
(it goes on) or ``again`` (measured, and asked for anew).
"""

import json
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from rumfast.store import read_json, write_json

FILE = "rungs.json"
SCHEMA = "rumfast/rungs/1"
ENDED = ("ok", "missing")
ERROR_LINES, ERROR_WIDTH = 3, 300


class Unfinished(Exception):
    """A case ended for lack of time; its argument is the result so far, and it goes on in the next climb."""


class DeviceLost(Exception):
    """After a failed case the GPU answers this process no more."""


class Ledger:
    """The file and its rungs, each a dict of ``planned``, ``seconds``, ``turns``, ``cases`` and more."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.rungs: dict[str, dict[str, Any]] = {}
        self.device: str | None = None  # the GPU's name, or that these are dry runs
        if self.path.exists():
            stored = read_json(self.path)
            self.rungs, self.device = stored["rungs"], stored["device"]

    def rung(self, name: str) -> dict[str, Any]:
        """The record of a rung; an untried one's is blank."""
        blank = {
            "state": "missing",
            "seconds": 0.0,
            "turns": 0,
            "running": None,
            "planned": [],
            "cases": {},
        }
        return self.rungs.setdefault(name, blank)

    def measured_in(self, climb: str, name: str) -> int:
        """Number of a rung's cases that ended in this climb."""
        return sum(found.get("climb") == climb for found in self.rung(name)["cases"].values())

    def write(self) -> None:
        """Commit everything; each rung's state follows from its cases."""
        for name, rung in self.rungs.items():
            rung["state"] = self.state(name)
        write_json(self.path, {"schema": SCHEMA, "device": self.device, "rungs": self.rungs})

    def state(self, name: str) -> str:
        """``missing``, ``partial`` (cases are left), ``failed`` (none is, some failed) or ``complete``."""
        rung = self.rungs.get(name)
        if rung is None or not rung["cases"]:
            return "missing"
        status = {case: found["status"] for case, found in rung["cases"].items()}
        if any(status.get(case) not in (*ENDED, "failed") for case in rung["planned"]):
            return "partial"
        return "failed" if "failed" in status.values() else "complete"

    def ask_again(self, name: str) -> None:
        """Have all cases of a rung measured anew; what they gave before stays until then."""
        for found in self.rung(name)["cases"].values():
            found["status"] = "again"
        self.rung(name).update(seconds=0.0, turns=0)
        self.write()

    def results(self, name: str) -> list[Any]:
        """Results of a rung's cases, in the order of its plan."""
        if name not in self.rungs:
            return []
        planned, cases = self.rungs[name]["planned"], self.rungs[name]["cases"]
        names = [*planned, *(case for case in cases if case not in planned)]
        found = [cases.get(case, {}) for case in names]
        return [one["result"] for one in found if "result" in one]


class Rung:
    """One rung of a climb: runs cases while there is time, and saves each as it is measured.

    Attributes:
        folder: where results go.
        work: folder for what need not come out; it may be lost.
        dry: take small shapes and few cases.

    Args:
        until: when it must have ended, by the system's monotonic clock.
        climb: names the climb; a case that failed in it is not tried again in it.
        stamp: what else each case is saved with.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        work: Path,
        until: float,
        *,
        dry: bool = False,
        climb: str = "",
        stamp: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.folder, self.work, self.dry = name, folder, work, dry
        self.ledger = Ledger(folder)
        self.record = self.ledger.rung(name)
        self._climb = climb
        self._until = until
        self._stamp = dict(stamp or {})

    def left(self) -> float:
        """Seconds until the rung must have ended."""
        return self._until - monotonic()

    def run(
        self, cases: Mapping[str, Callable[[], Any]], on_case: Callable[[], object] = lambda: None
    ) -> None:
        """Measure the cases that are not done, first those without an error, while the longest would fit.

        Args:
            on_case: called after each case that gave a result.
        """
        self.record["planned"] = list(cases)
        self.ledger.write()
        for name in self._todo(cases):
            if self.left() < self._longest():
                return
            if self.attempt(name, cases[name]):
                on_case()

    def _longest(self) -> float:
        """Seconds of the longest case that ended by itself; those that go on take what they are given."""
        cases = self.record["cases"].values()
        return max((one.get("seconds", 0.0) for one in cases if one["status"] != "partial"), default=0.0)

    def _todo(self, names: Iterable[str]) -> list[str]:
        known = {name: self.record["cases"].get(name, {"status": "untried"}) for name in names}
        left = {name: found for name, found in known.items() if found["status"] not in ENDED}
        again = [name for name, found in left.items() if "error" in found and found["climb"] != self._climb]
        return [name for name, found in left.items() if "error" not in found] + again

    def attempt(self, name: str, measure: Callable[[], Any]) -> bool:
        """Measure one case and save how it ended; True if it gave a result.

        Raises:
            DeviceLost: it failed, and the GPU with it.
        """
        self.record["running"] = name
        self.ledger.write()
        print(f"{self.name}: {name}", flush=True)
        started = monotonic()
        found = outcome(measure)
        seconds = monotonic() - started
        self.record["running"] = None
        self.save(name, found | {"seconds": round(seconds, 2)})
        if found["status"] == "failed":
            from rumfast.runtime import device_lost  # here, since torch takes seconds to import

            if device_lost():
                raise DeviceLost(name)
        return "result" in found

    def save(self, name: str, found: Mapping[str, Any]) -> None:
        """Note how a case ended."""
        self.record["cases"][name] = {**found, "climb": self._climb, **self._stamp}
        self.ledger.write()


def outcome(measure: Callable[[], Any]) -> dict[str, Any]:
    """Status of a case, and its result or the first lines of its error."""
    try:
        result = measure()
        json.dumps(result, allow_nan=False)
        return {"status": "ok", "result": result}
    except Unfinished as unfinished:
        return {"status": "partial", "result": unfinished.args[0]}
    except ModuleNotFoundError as error:
        ours = (error.name or "").split(".")[0] == "rumfast"
        return {"status": "failed" if ours else "missing", "error": first_lines(error)}
    except Exception as error:
        traceback.print_exc(limit=-4)
        return {"status": "failed", "error": first_lines(error)}


def first_lines(error: Exception) -> str:
    """Type and first lines of an error.

    >>> first_lines(ValueError("one" + chr(10) + "two"))
    'ValueError: one; two'
    """
    lines = str(error).strip().splitlines()[:ERROR_LINES]
    return f"{type(error).__name__}: {'; '.join(lines)}"[:ERROR_WIDTH]


def process_died(ledger: Ledger, name: str, error: str, climb: str) -> bool:
    """Note that a rung's process died of the case that it ran; False if it was none, but its start.

    What the case gave before stays, and a partial case stays one.
    """
    rung = ledger.rung(name)
    case, rung["running"] = rung["running"], None
    before = rung["cases"].get(case or "setup", {})
    status = "partial" if before.get("status") == "partial" else "failed"
    rung["cases"][case or "setup"] = before | {"status": status, "error": error, "climb": climb}
    ledger.write()
    return case is not None
