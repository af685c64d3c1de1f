"""The tests that need a GPU, each outcome saved as it comes; those that have passed are not run again."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rumfast.bench.ledger import Unfinished
from rumfast.store import read_json, write_json

SCHEMA = "rumfast/tests/1"
ROOT = Path(__file__).resolve().parent.parent
MARK = "mark.gpu"
DRY = ["tests/kernels/test_backend.py"]
PROCESSES = 8
POLL_S = 1.0
ENDED = (0, 1, 5)  # exit statuses of pytest: all passed, some failed, none was left to run


class TestsFailed(Exception):
    """Some tests failed; the record names them."""


def run_tests(path: Path, left: Callable[[], float], dry: bool) -> dict[str, int]:
    """Run the tests that have not passed yet, and count all outcomes; the record at ``path`` names each.

    Raises:
        TestsFailed: naming the first of them.
        Unfinished: with the counts, where the time is over.
        ModuleNotFoundError: pytest is not installed.
    """
    import pytest  # noqa: F401  the process that runs the tests needs it

    found: dict[str, dict[str, Any]] = read_json(path)["tests"] if path.exists() else {}
    found = {test: one for test, one in found.items() if one["outcome"] == "passed"}
    with tempfile.TemporaryDirectory() as folder:
        passed, lines = Path(folder) / "passed", Path(folder) / "outcomes"
        passed.write_text("\n".join(found), encoding="utf-8")
        lines.touch()
        process = start(lines, passed, dry)
        try:
            while process.poll() is None and left() > POLL_S:
                time.sleep(min(POLL_S, max(left(), 0.1)))
                save(path, found, lines)
        finally:
            status = process.poll()
            if status is None:
                process.kill()
            process.wait()
            save(path, found, lines)
    counts = dict(Counter(one["outcome"] for one in found.values()))
    if status is None:
        raise Unfinished(counts)
    failed = [f"{test}: {one['error']}" for test, one in found.items() if one["outcome"] == "failed"]
    if failed or status not in ENDED:
        raise TestsFailed(f"{len(failed)} failed, exit status {status}: {'; '.join(failed)}")
    return counts


def start(lines: Path, passed: Path, dry: bool) -> subprocess.Popen[bytes]:
    """Start pytest with the plugin that writes outcomes to ``lines``."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider"]
    # Without pytest-timeout, its setting in pyproject.toml is unknown.
    command += ["-W", "ignore::pytest.PytestConfigWarning", "--continue-on-collection-errors"]
    command += ["-p", "rumfast.bench.outcomes", *(DRY if dry else ["-m", "gpu", *marked_files()])]
    if find_spec("xdist") and not dry:
        command += ["-n", str(PROCESSES)]
    inherited = {name: value for name, value in os.environ.items() if name != "CI"}
    files = {"RUMFAST_OUTCOMES": str(lines), "RUMFAST_PASSED": str(passed)}
    return subprocess.Popen(command, cwd=ROOT, env=inherited | files)


def marked_files() -> list[str]:
    """Test files that mark tests for a GPU, or whose folder does."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        sources = [file for file in (path, path.parent / "conftest.py") if file.exists()]
        if any(MARK in file.read_text(encoding="utf-8") for file in sources):
            found.append(str(path.relative_to(ROOT)))
    return found


def save(path: Path, found: dict[str, dict[str, Any]], lines: Path) -> None:
    """Take over the outcomes that have come, and write the record if there are new or other ones.

    A test that passed and then failed in its teardown has two; the last one counts.
    """
    before = dict(found)
    for line in lines.read_text(encoding="utf-8").split("\n")[:-1]:  # the last may be half written
        one = json.loads(line)
        found[one.pop("test")] = one
    if found != before or not path.exists():
        write_json(path, {"schema": SCHEMA, "tests": found})
