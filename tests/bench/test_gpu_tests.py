"""Outcomes of tests are saved as they come, and what has passed is not run again."""

import json
from importlib.util import find_spec

import pytest

from rumfast.bench import gpu_tests
from rumfast.bench.gpu_tests import TestsFailed, run_tests
from rumfast.bench.ledger import Unfinished

TestsFailed.__test__ = False
MODULE = """
import os, time
import pytest

def test_passes():
    with open(os.environ["RUNS"], "a") as file:
        file.write("x")

def test_fails():
    assert os.environ.get("FIXED"), "not yet"

def test_skips():
    pytest.skip("not here")

def test_waits():
    time.sleep(float(os.environ.get("WAIT", 0)))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder of tests; one of its files needs a package that is not there."""
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_one.py").write_text(MODULE)
    (tests / "test_bare.py").write_text("import hypothesis_of_another_planet\n")
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_tests, "DRY", ["tests"])
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return tmp_path


def outcomes(project):
    found = json.loads((project / "tests.json").read_text())["tests"]
    return {test.split("::")[-1]: one["outcome"] for test, one in found.items()}


def test_outcomes_are_counted_and_what_passed_runs_once(project, monkeypatch):
    with pytest.raises(TestsFailed, match="test_fails: AssertionError: not yet"):
        run_tests(project / "tests.json", lambda: 60.0, dry=True)
    expected = {
        "tests/test_bare.py": "missing", "test_passes": "passed", "test_fails": "failed",
        "test_skips": "skipped", "test_waits": "passed",
    }  # fmt: skip
    assert outcomes(project) == expected
    monkeypatch.setenv("FIXED", "yes")
    counts = run_tests(project / "tests.json", lambda: 60.0, dry=True)
    assert counts == {"passed": 3, "skipped": 1, "missing": 1}
    assert (project / "runs").read_text() == "x"


def test_a_time_limit_keeps_what_has_ended(project, monkeypatch):
    monkeypatch.setenv("WAIT", "300")
    monkeypatch.setenv("FIXED", "yes")

    def left():
        return 0.0 if "test_skips" in outcomes(project) else 60.0

    (project / "tests.json").write_text('{"tests": {}}')
    monkeypatch.setattr(gpu_tests, "read_json", lambda path: {"tests": {}})
    with pytest.raises(Unfinished) as ended:
        run_tests(project / "tests.json", left, dry=True)
    assert ended.value.args[0] == {"passed": 2, "skipped": 1, "missing": 1}
    assert outcomes(project)["test_fails"] == "passed" and "test_waits" not in outcomes(project)


def test_an_outcome_that_changes_is_saved(tmp_path):
    found, lines = {}, tmp_path / "outcomes"
    for outcome in ("passed", "failed"):  # in its teardown
        with lines.open("a") as file:
            file.write(json.dumps({"test": "tests/test_one.py::test_one", "outcome": outcome}) + "\n")
        gpu_tests.save(tmp_path / "tests.json", found, lines)
        assert outcomes(tmp_path) == {"test_one": outcome}


def test_files_that_mark_tests_are_found():
    found = gpu_tests.marked_files()
    assert {"tests/test_stepping.py", "tests/kernels/test_margins.py"} <= set(found)
    assert "tests/test_store.py" not in found


@pytest.mark.skipif(find_spec("xdist") is None, reason="needs xdist")
def test_several_processes_report_once(project, monkeypatch):
    monkeypatch.setenv("FIXED", "yes")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-n 2")
    run_tests(project / "tests.json", lambda: 60.0, dry=True)
    assert run_tests(project / "tests.json", lambda: 60.0, dry=True)["passed"] == 3
    assert (project / "runs").read_text() == "x"
