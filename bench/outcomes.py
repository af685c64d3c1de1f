"""A pytest plugin: write each test's outcome to a file as soon as it is known, and skip those that have one.

``pytest -p rumfast.bench.outcomes`` with ``RUMFAST_OUTCOMES``, the file to append JSON lines to, and
``RUMFAST_PASSED``, a file of test ids that are not run again. Imports nothing that tests must import first.
"""

import json
import os
from pathlib import Path
from typing import Any

ERROR_LINES, ERROR_WIDTH = 3, 300


class Outcomes:
    """Writes a line for each test, and for each file that cannot be collected."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Setup and teardown count only where they do not pass."""
        if report.when == "call" or report.outcome != "passed":
            self._write(report, report.outcome)

    def pytest_collectreport(self, report: Any) -> None:
        """A file that needs a package that is not there is ``missing``."""
        if report.outcome == "failed":
            self._write(report, "missing" if "ModuleNotFoundError" in report.longreprtext else "failed")

    def _write(self, report: Any, outcome: str) -> None:
        found = {"test": report.nodeid, "outcome": outcome, "seconds": getattr(report, "duration", 0.0)}
        if outcome in ("failed", "missing"):
            lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
            found["error"] = "; ".join(line[2:].strip() for line in lines[:ERROR_LINES])[:ERROR_WIDTH]
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


def pytest_configure(config: Any) -> None:
    """Reports reach the process that was started, also from those that xdist starts."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(Path(os.environ["RUMFAST_OUTCOMES"])), "rumfast-outcomes")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what has passed."""
    passed = set(Path(os.environ["RUMFAST_PASSED"]).read_text(encoding="utf-8").splitlines())
    left_out = [item for item in items if item.nodeid in passed]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid not in passed]
