"""A rung saves each case as it is measured, and goes on where it ended."""

import json
from time import monotonic

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


def states(folder, **found):
    """A ledger in which rungs are in these states, after so many seconds."""
    status = {"complete": "ok", "failed": "failed", "partial": "again"}
    ledger = Ledger(folder)
    for name, (state, seconds) in found.items():
        cases = {"a": {"status": status[state], "error": "bad"}}
        ledger.rung(name).update(planned=["a"], seconds=seconds, cases=cases)
    ledger.write()


def test_next_is_the_lowest_rung_that_is_not_done_and_fits(tmp_path):
    climb = Climb(tmp_path, tmp_path, 400.0, dry=False)
    assert climb.next_rung([]) == "smoke"
    states(tmp_path, smoke=("failed", 30.0), tests=("complete", 30.0), kernels=("partial", 250.0))
    assert climb.next_rung([]) == "train"  # kernels have had their four minutes
    assert climb.next_rung([name for name in RUNGS if name != "smoke"]) == "smoke"
    full = {name: ("complete", 1.0) for name in RUNGS}
    states(tmp_path, **full | {"smoke": ("failed", 30.0), "kernels": ("partial", 250.0)})
    assert climb.next_rung([]) == "kernels" and climb.next_rung(["kernels"]) == "smoke"
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
        states(tmp_path, **{name: ("failed" if name == "tests" else "complete", 1.0)})

    monkeypatch.setattr(climb, "run", run)
    assert climbing.climb_all(climb, ["smoke"]) == 0
    assert climbing.climb_all(climb, ["next"]) == 1
    assert "tests failed: a: bad" in capsys.readouterr().err
    assert {Ledger(tmp_path).state(name) for name in RUNGS} == {"complete", "failed"}


def test_few_takes_the_first():
    assert few({"a": 1, "b": 2, "c": 3}, 2) == {"a": 1, "b": 2}
