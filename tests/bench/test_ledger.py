"""A rung saves each case as it is measured, and goes on where it ended."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from rumfast.bench import climb as climbing
from rumfast.bench.climb import Climb, adopt
from rumfast.bench.ledger import FILE, Ledger, Rung, Unfinished, process_died
from rumfast.bench.rungs import FILES, RUNGS, few


def rung(folder, seconds=60.0, climb="first"):
    return Rung("smoke", folder, folder / "work", monotonic() + seconds, climb=climb, stamp={"commit": "abc"})


def fails():
    raise ValueError("one\ntwo\nthree\nfour")


def lacks():
    raise ModuleNotFoundError("No module named 'ffcv'", name="ffcv")


def test_each_case_is_saved_before_the_next_begins(tmp_path):
    seen = []

    def look():
        (found,) = json.loads((tmp_path / FILE).read_text())["rungs"].values()
        seen.append((found["running"], sorted(found["cases"])))
        return len(seen)

    rung(tmp_path).run({"a": look, "b": look, "c": look})
    assert seen == [("a", []), ("b", ["a"]), ("c", ["a", "b"])]
    ledger = Ledger(tmp_path)
    assert ledger.results("smoke") == [1, 2, 3] and ledger.state("smoke") == "complete"
    assert ledger.rung("smoke")["cases"]["a"]["commit"] == "abc"


def test_cases_end_in_their_own_ways(tmp_path):
    def unfinished():
        raise Unfinished({"members": 3})

    one = rung(tmp_path)
    one.run(
        {
            "good": lambda: {"error": 0.0},
            "bad": fails,
            "bare": lacks,
            "ours": lambda: __import__("rumfast.nowhere"),
            "infinite": lambda: float("inf"),
            "half": unfinished,
        }
    )
    found = one.record["cases"]
    assert {name: case["status"] for name, case in found.items()} == {
        "good": "ok", "bad": "failed", "bare": "missing", "ours": "failed", "infinite": "failed",
        "half": "partial",
    }  # fmt: skip
    assert found["bad"]["error"] == "ValueError: one; two; three"
    assert Ledger(tmp_path).results("smoke") == [{"error": 0.0}, {"members": 3}]
    assert Ledger(tmp_path).state("smoke") == "partial"


def test_a_climb_goes_on_with_untried_cases_and_then_tries_failed_ones_again(tmp_path):
    done = []

    def case(name, status=None):
        return lambda: done.append(name) or (fails() if status else name)

    first = {"a": case("a"), "b": case("b", "fails")}
    rung(tmp_path).run(first)
    assert Ledger(tmp_path).state("smoke") == "failed"
    rung(tmp_path).run(first)  # another process of the same climb
    assert done == ["a", "b"]
    rung(tmp_path, climb="second").run({"a": case("a"), "b": case("b"), "c": case("c")})
    assert done == ["a", "b", "c", "b"] and Ledger(tmp_path).state("smoke") == "complete"
    Ledger(tmp_path).ask_again("smoke")
    assert Ledger(tmp_path).state("smoke") == "partial" and Ledger(tmp_path).results("smoke") == list("abc")


def test_no_case_begins_that_would_not_fit(tmp_path):
    one = rung(tmp_path)
    one.run({"a": lambda: 1})
    one.record["cases"]["a"]["seconds"] = 30.0
    one.ledger.write()
    rung(tmp_path, seconds=29.0).run({"a": lambda: 1, "b": lambda: 2})
    assert list(Ledger(tmp_path).rung("smoke")["cases"]) == ["a"]
    rung(tmp_path, seconds=31.0).run({"a": lambda: 1, "b": lambda: 2})
    assert Ledger(tmp_path).state("smoke") == "complete"


def test_a_case_that_goes_on_takes_what_time_there_is(tmp_path):
    one = rung(tmp_path)
    one.record["cases"]["members"] = {"status": "partial", "result": 3, "seconds": 230.0}
    one.ledger.write()
    rung(tmp_path, seconds=29.0).run({"members": lambda: 4})
    assert Ledger(tmp_path).results("smoke") == [4]


def test_a_process_that_dies_fails_the_case_that_ran(tmp_path):
    one = rung(tmp_path)
    one.record |= {"planned": ["a", "b"], "running": "b", "cases": {"a": {"status": "ok", "result": 1}}}
    one.ledger.write()
    assert process_died(Ledger(tmp_path), "smoke", "exit status -11", "first")
    found = Ledger(tmp_path).rung("smoke")
    assert found["cases"]["b"]["error"] == "exit status -11" and found["state"] == "failed"
    assert not process_died(Ledger(tmp_path), "smoke", "exit status 1", "first")
    assert "setup" in Ledger(tmp_path).rung("smoke")["cases"]


def test_a_case_whose_process_dies_keeps_what_it_gave(tmp_path):
    one = rung(tmp_path)
    one.record["planned"] = ["half", "whole"]
    one.save("half", {"status": "partial", "result": 3})
    one.save("whole", {"status": "again", "result": 4})
    for case in ("half", "whole"):
        one.record["running"] = case
        one.ledger.write()
        assert process_died(one.ledger, "smoke", "too slow", "second")
    found = Ledger(tmp_path).rung("smoke")["cases"]
    assert [(found[case]["status"], found[case]["error"]) for case in found] == [
        ("partial", "too slow"), ("failed", "too slow")
    ]  # fmt: skip
    assert Ledger(tmp_path).results("smoke") == [3, 4]
    done = []
    rung(tmp_path, climb="second").run(dict.fromkeys(("half", "whole"), lambda: done.append(1)))
    assert not done  # in the same climb they would take down the next process too
    rung(tmp_path, climb="third").run(dict.fromkeys(("half", "whole"), lambda: done.append(1)))
    assert len(done) == 2 and Ledger(tmp_path).state("smoke") == "complete"


PROCESS = """#!{python}
import json, subprocess, sys, time

given = dict(zip(sys.argv, sys.argv[1:]))
path, climb = given["--folder"] + "/rungs.json", given["--climb"]
{body}
"""
MEASURES_ONE = """
content = json.load(open(path))
content["rungs"]["smoke"]["running"] = "b"
content["rungs"]["smoke"]["cases"]["a"]["climb"] = {measured}
json.dump(content, open(path, "w"))
time.sleep(60)
"""
LEAVES_ONE = """
child = subprocess.Popen(["sleep", "60"])
open(path + ".child", "w").write(str(child.pid))
"""


@pytest.fixture
def starts(tmp_path, monkeypatch):
    """Have climbs run a script, of which this is the body, instead of a rung."""

    def start(body):
        script = tmp_path / "python"
        script.write_text(PROCESS.format(python=sys.executable, body=body))
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    # The ledger's digest is of no use where a script changes it.
    monkeypatch.setattr("rumfast.bench.ledger.read_json", lambda path: json.loads(path.read_text()))
    return start


@pytest.mark.parametrize(("measured", "status"), [("climb", "partial"), ("'first'", "failed")])
def test_only_a_case_that_had_the_rung_for_itself_is_too_slow(
    tmp_path, monkeypatch, starts, measured, status
):
    starts(MEASURES_ONE.format(measured=measured))
    one = rung(tmp_path)
    one.record["planned"] = ["a", "b"]
    one.save("a", {"status": "ok", "result": 1})
    monkeypatch.setattr(climbing, "LIMIT_S", 3.0)
    Climb(tmp_path, tmp_path, 60.0, dry=True).run("smoke")
    ledger = Ledger(tmp_path)
    assert ledger.state("smoke") == status and ledger.results("smoke") == [1]
    assert ("b" in ledger.rung("smoke")["cases"]) == (status == "failed")
    assert ledger.rung("smoke")["turns"] == 1


def test_what_a_rung_leaves_behind_ends_with_it(tmp_path, starts):
    starts(LEAVES_ONE)
    Climb(tmp_path, tmp_path, 60.0, dry=True).run("smoke")
    status = Path(f"/proc/{(tmp_path / 'rungs.json.child').read_text()}/stat")
    until = monotonic() + 10
    while status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert monotonic() < until
        sleep(0.05)


def states(folder, **found):
    """A ledger in which rungs are in these states, after so many turns."""
    status = {"complete": "ok", "failed": "failed", "partial": "again"}
    ledger = Ledger(folder)
    for name, (state, turns) in found.items():
        cases = {"a": {"status": status[state], "error": "bad"}}
        ledger.rung(name).update(planned=["a"], turns=turns, cases=cases)
    ledger.write()


def test_next_is_the_lowest_rung_that_is_not_done_and_fits(tmp_path):
    climb = Climb(tmp_path, tmp_path, 400.0, dry=False)
    assert climb.next_rung([]) == "smoke"
    states(tmp_path, smoke=("failed", 1), tests=("complete", 1), kernels=("partial", 1))
    assert climb.next_rung([]) == "train"  # kernels have had a turn
    assert climb.next_rung([name for name in RUNGS if name != "smoke"]) == "smoke"
    full = {name: ("complete", 1) for name in RUNGS}
    states(tmp_path, **full | {"smoke": ("failed", 1), "kernels": ("partial", 2), "train": ("partial", 1)})
    assert climb.next_rung([]) == "train" and climb.next_rung(["train"]) == "kernels"
    assert climb.next_rung(["train", "kernels"]) == "smoke"
    states(tmp_path, **full)
    assert climb.next_rung([]) is None
    short = Climb(tmp_path / "none", tmp_path, 52.0, dry=False)  # of which 5 are to end in
    assert short.next_rung([]) == "kernels" and RUNGS["kernels"][0] <= 47 < RUNGS["smoke"][0]


def test_a_folder_without_records_takes_over_those_of_earlier_climbs(tmp_path):
    results, out = tmp_path / "results", tmp_path / "out"
    results.mkdir()
    out.mkdir()
    for name in ("rungs.json", "scores.npz", "digits.json"):
        (results / name).write_text(name)
    adopt(results, out)
    assert sorted(path.name for path in out.iterdir()) == ["rungs.json", "scores.npz"]
    (results / "rungs.json").write_text("newer elsewhere")
    (results / "bench.json").write_text("")
    adopt(results, out)
    assert (out / "rungs.json").read_text() == "rungs.json" and not (out / "bench.json").exists()
    assert len(FILES) <= 8


def test_exit_status_tells_of_failed_cases_of_this_climb(tmp_path, monkeypatch, capsys):
    climb = Climb(tmp_path, tmp_path, 400.0, dry=True)

    def run(name):
        states(tmp_path, **{name: ("failed" if name == "tests" else "complete", 1)})

    monkeypatch.setattr(climb, "run", run)
    assert climbing.climb_all(climb, ["smoke"]) == 0
    assert climbing.climb_all(climb, ["next"]) == 1
    assert "tests failed: a: bad" in capsys.readouterr().err
    assert {Ledger(tmp_path).state(name) for name in RUNGS} == {"complete", "failed"}


def test_few_takes_the_first():
    assert few({"a": 1, "b": 2, "c": 3}, 2) == {"a": 1, "b": 2}


def test_a_folder_is_of_one_device_and_one_climb(tmp_path):
    assert climbing.claim(tmp_path, "a dry run") == ""
    assert json.loads((tmp_path / FILE).read_text())["device"] == "a dry run"
    code = (
        "import sys; from pathlib import Path; from rumfast.bench import climb\n"
        "print(climb.claim(Path(sys.argv[1]), 'a dry run'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "another climb is at work there" in done.stdout
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tmp_path / FILE, other)
    assert "holds records of a dry run, this is NVIDIA H100" in climbing.claim(other, "NVIDIA H100")


def test_too_little_time_is_no_success(tmp_path, capsys):
    assert climbing.claim(tmp_path, "a dry run") == ""
    short = Climb(tmp_path, tmp_path / "work", 1.0, dry=True)
    assert climbing.climb_all(short, ["next"]) == 1 and "no rung fits" in capsys.readouterr().err
    before = (tmp_path / FILE).read_bytes()
    assert climbing.climb_all(short, ["smoke"]) == 1 and (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("share, turns", [(0.1, 0), (0.95, 1)])
def test_a_rung_that_had_most_of_its_minutes_has_had_its_turn(tmp_path, monkeypatch, share, turns):
    clock = [0.0]
    monkeypatch.setattr(climbing, "monotonic", lambda: clock[0])
    one = Climb(tmp_path, tmp_path, 999.0, dry=True)
    monkeypatch.setattr(one, "_process_of", lambda name, left: clock.append(clock.pop() + share * left) or 0)
    one.run("smoke")
    assert Ledger(tmp_path).rung("smoke")["turns"] == turns
