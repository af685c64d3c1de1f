"""The two experiments: verdicts by hand-made numbers, and whole runs of them on a tiny recipe."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rumfast.config import PlanConfig, Recipe, dump_recipe, load_recipe, parse_recipe
from rumfast.errors import DataError, UsageError
from rumfast.evaluation import t_interval
from rumfast.pipeline.experiment_plans import claims, rum_families, rum_plans, tried_of
from rumfast.pipeline.experiment_runs import NONE, Experiment, ExperimentConfig
from rumfast.pipeline.experiments import difficulty, falls, rum
from rumfast.pipeline.findings import SHARES_APART, Comparison, verdict_of, weigh
from rumfast.store import TEMPORARY, read_json, read_npz
from rumfast.sweeps import LocalEngine, Population

# ---- verdicts ---------------------------------------------------------------------------------------------


def compared(one, other, claim="a beats b", subject="a − b"):
    return Comparison(claim, subject, "tow", "a", "b", one, other, tried=(4, 2), among=9)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        # t(0.975, 2) = 4.303; s/√3 of (1, 2, 3) is 0.577: 2 ± 2.48, and of (2, 2.5, 3) 0.289: 2.5 ± 1.24
        ((1.0, 2.0, 3.0), "undecided"),
        ((2.0, 2.5, 3.0), "held"),
        ((-2.0, -2.5, -3.0), "contradicted"),
        ((0.0, 0.0, 0.0), "undecided"),
        ((0.1, 0.1, 0.1), "held"),
        ((5.0,), "undecided"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(values, verdict):
    assert verdict_of(t_interval(values, SHARES_APART)) == verdict


def test_seeds_are_paired():
    """Both sides vary far more than their difference, which is 0.1 ± 0.0124 (4.303 · 0.005 / √3)."""
    row = weigh([compared((0.1, 0.5, 0.9), (0.0, 0.395, 0.805))])["differences"][0]
    assert row["interval"]["mean"] == pytest.approx(0.1)
    assert row["interval"]["high"] - row["interval"]["mean"] == pytest.approx(4.302653 * 0.005 / 3**0.5)
    assert row["verdict"] == "held" and row["tried"] == [4, 2]
    with pytest.raises(DataError, match="a − b: got 3 and 2 seeds"):
        weigh([compared((0.1, 0.2, 0.3), (0.1, 0.2))])


def test_what_holds_alone_need_not_hold_together():
    """Two degrees of freedom: |t| > 4.30 at 95 %, > 9.92 at 99 %, which each of five intervals needs."""
    weak, strong = (2.0, 2.5, 3.0), (2.4, 2.5, 2.6)  # t = 8.7 and 43
    nothing = (0.0, 0.0, 0.0)
    one = weigh([compared(weak, nothing)])
    assert one["differences"][0]["simultaneous"] == "held" and one["expected_by_chance"] == 0.05
    five = weigh([compared(weak, nothing, subject=str(k)) for k in range(4)] + [compared(strong, nothing)])
    assert {row["verdict"] for row in five["differences"]} == {"held"}
    assert [row["simultaneous"] for row in five["differences"]] == ["undecided"] * 4 + ["held"]
    assert five["intervals"] == 5 and five["expected_by_chance"] == 0.25
    assert five["findings"][0]["simultaneous"] == {"held": ["a − b"], "contradicted": []}


@pytest.mark.parametrize(
    ("signs", "verdict"),
    [
        ((1, 1), "held"),
        ((-1, -1), "contradicted"),
        ((0, 0), "undecided"),
        ((1, -1), "mixed"),
        ((1, 0), "mixed"),
    ],
)
def test_a_claim_holds_where_all_its_differences_do(signs, verdict):
    rows = [compared((sign * 1.0,) * 3, (0.0,) * 3, subject=str(k)) for k, sign in enumerate(signs)]
    other = compared((1.0,) * 3, (0.0,) * 3, claim="another")
    finding, second = weigh([*rows, other, compared((1.0,) * 3, (0.0,) * 3, claim=None)])["findings"]
    assert finding["verdict"] == verdict and second["verdict"] == "held"
    assert (finding["compared"], finding["among"]) == (2, 9)
    for sign, name in ((1, "held"), (-1, "contradicted"), (0, "undecided")):
        assert finding[name] == [str(k) for k, one in enumerate(signs) if one == sign]


def test_lowest_and_highest_are_as_measured(difficulty_record):
    pairs = {(one.subject, one.metric, one.claim): one for one in falls(difficulty_record["sets"])}
    by_name = pairs["salun", "tow", "ToW falls as entanglement rises, relabelling methods"]
    assert (by_name.one, by_name.other) == ("entanglement:mid", "entanglement:high")  # ES 20 and 40
    assert by_name.one_S[0] == 0.7 and by_name.other_S[0] == 0.8
    assert len(pairs) == 3 * 2 * 2
    claims_of = {one.claim for one in pairs.values() if one.subject == "none"}
    assert "ToW falls as memorization rises, doing nothing" in claims_of
    del difficulty_record["sets"][2]["algorithms"]["salun"]  # diverged at high memorization
    difficulty_record["sets"][2]["infeasible"] = ["random_label"]
    left = [one for one in falls(difficulty_record["sets"]) if one.one.startswith("memorization")]
    assert [one.subject for one in left] == ["none", "finetune"] * 2
    difficulty_record["sets"][0]["algorithms"]["random_label"] = {}  # left out at high, hence not compared
    assert {(one.claim, one.among) for one in falls(difficulty_record["sets"]) if one.metric == "tow"} == {
        ("ToW falls as memorization rises, doing nothing", 1),
        ("ToW falls as memorization rises", 1),
        ("ToW falls as entanglement rises, doing nothing", 1),
        ("ToW falls as entanglement rises", 2),  # influence cost too much there
        ("ToW falls as entanglement rises, relabelling methods", 1),
    }


def test_claims_are_about_the_plans_that_were_measured(rum_record):
    found = {(one.claim, one.subject, one.among) for one in claims(rum_record, ("finetune", "salun"))}
    assert ("RUM^F beats vanilla in ToW", "finetune+rum-f − finetune", 2) in found
    assert ("low → high beats high → low in ToW-MIA", "rum − rum+reversed", 3) in found
    assert ("auto beats every vanilla in ToW", "auto (40) − finetune (4)", 2) in found
    both = "the mean of ToW and ToW-MIA"
    assert (f"auto beats every vanilla in {both}", "auto (40) − finetune (4)", 2) in found
    assert not any(claim and both in claim and "auto" not in claim for claim, _, _ in found)
    assert not [subject for _, subject, _ in found if "salun" in subject or "none" in subject]


def test_rum_is_held_against_every_vanilla_that_was_measured(rum_record):
    names = ("finetune", "salun", "scrub", "neggrad")
    some = next(plan for plan in rum_record["plans"] if plan["name"] == "finetune")
    rum_record["plans"] += [some | {"name": name} for name in names[1:3]]  # neggrad diverged
    pairs = [(one.one, one.other) for one in claims(rum_record, names) if one.metric == "tow"]
    assert [other for one, other in pairs if one == "rum"] == [*names[:3], "rum+reversed"]
    assert [other for one, other in pairs if one == "auto"] == [*names[:3]]


def test_tried_counts_all_that_a_plan_was_chosen_from():
    families = {
        "none": {"tried": 1, "refine": None}, "salun": {"tried": 4, "refine": None},
        "salun+rum-f": {"tried": 5, "refine": None}, "salun+shuffle": {"tried": 7, "refine": "random"},
        "rum": {"tried": 16, "refine": None}, "mixed": {"tried": 96, "refine": None},
    }  # fmt: skip
    found = {"families": families}
    counts = {"salun": 4, "salun+rum-f+reversed": 5, "rum+final": 16, "rum+reversed": 16, "none": 1}
    assert {name: tried_of(found, name) for name in counts} == counts
    assert tried_of(found, "auto") == 1 + 4 + 5 + 16 + 96  # random groups are a control
    assert tried_of({"families": {}}, "none") == 1


def test_nothing_is_measured_twice():
    families = rum_families(["finetune", "euk"])
    assert list(families) == ["none", "finetune", "euk", "finetune+rum-f", "finetune+shuffle", "rum"]
    found = {
        "families": {
            name: each[0].model_dump() | {"tried": len(each), "worth": 0.5} for name, each in families.items()
        },
        "finalists": {"none": families["none"][0].model_dump()},
        "best": "none",
    }
    names = [plan.name for plan in rum_plans(found, "remaining")]
    assert names[0] == "none" and len(set(names)) == len(names) and "euk+reversed" not in names
    assert [plan for plan in rum_plans(found, "remaining") if plan.steps == "none"] == [
        NONE, PlanConfig(name="auto", steps="none")
    ]  # fmt: skip


# ---- refusals, before anything is trained -----------------------------------------------------------------


def make_recipe(path, **sections):
    base = {
        "name": "tiny",
        "data": {"path": str(path), "train_examples": 200, "test_examples": 100},
        "train": {"arch": "resnet8", "width": 4, "epochs": 2, "batch_size": 64, "precision": "fp32"},
        "sweep": {"members": 16, "include": 0.5},
        "forget": {"request": "memorization:mixed:24"},
        "unlearn": {"budget_epochs": 1.5},
        "plans": [{"name": "none", "steps": "none"}],
        "evaluate": {"seeds": 2, "oracles": 3, "mia_examples": 60},
        "search": {
            "surrogates": 1,
            "finals": 1,
            "checks": 1,
            "originals": 1,
            "oracles": 2,
            "generations": 1,
            "children": 3,
            "objective": "tow",
        },
    }
    return Recipe.model_validate(base | sections)


TINY = ExperimentConfig(algorithms=("none", "finetune", "salun"))
SMALLER = TINY.model_copy(update={"size": 18})


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({"unlearn": {}}, {}, "unlearn.budget_epochs: .* give --budget-epochs"),
        ({}, {"algorithms": ("retrain",)}, "algorithms: got 'retrain', expected some of none, finetune"),
        ({}, {"algorithms": ("finetun",)}, "algorithms: got 'finetun'"),
    ],
)
def test_mistakes_are_refused(changes, config, message, tmp_path):
    recipe = make_recipe("digits", **changes)
    for experiment in (difficulty, rum):
        with pytest.raises(UsageError, match=message):
            experiment(recipe, tmp_path / "out", ExperimentConfig(**config), device="cpu", workers=1)
    assert not (tmp_path / "out").exists()


MIXED = {"request": "memorization:mixed:24"}


@pytest.mark.parametrize(
    ("experiment", "forget", "size", "error", "message"),
    [
        (rum, {"request": "class:3"}, 9, UsageError, "class:3 says itself what to forget"),
        (rum, {"request": "class:30"}, None, DataError, "class:30: no training example has that label"),
        (rum, MIXED | {"groups": 2}, None, UsageError, "refined into low, high"),
        (rum, MIXED | {"refine": "none"}, None, UsageError, "refined into all"),
        (rum, MIXED | {"refine": "class"}, None, UsageError, "groups by class have no surrogates"),
        (rum, MIXED, 2, UsageError, "refined into mid, high; .* forget at least 3 examples"),
        (rum, MIXED, 101, DataError, "101 examples to forget and 99 others"),
        (difficulty, MIXED, 101, DataError, "101 examples to forget and 99 others"),
        (difficulty, MIXED, 201, UsageError, "found 201, expected 1..200"),
        (difficulty, {"request": "memorization:mixed:x"}, None, UsageError, "found 'x'"),
    ],
)
def test_forget_sets_that_do_not_fit_are_refused_before_training(
    experiment, forget, size, error, message, tmp_path
):
    recipe, config = make_recipe("digits", forget=forget), TINY.model_copy(update={"size": size})
    with pytest.raises(error, match=message):
        experiment(recipe, tmp_path / "out", config, device="cpu", workers=1)
    assert not (tmp_path / "out" / "base" / "original").exists()


# ---- what the recipe says ---------------------------------------------------------------------------------


def test_search_and_its_algorithms_are_the_recipes_with_minutes_on_top(tmp_path):
    search = {"surrogates": 5, "objective": "tow_mia", "minutes": 8, "algorithms": ["none", "scrub", "ssd"]}
    recipe = make_recipe("digits", search=search)

    def made(**config):
        return Experiment("rum", recipe, tmp_path, ExperimentConfig(**config), None, "cpu")

    assert made().recipe.search == recipe.search and made().trained == ["scrub", "ssd"]
    longer = made(search_minutes=20, algorithms=("salun",))
    assert longer.recipe.search == recipe.search.model_copy(update={"minutes": 20})
    assert longer.trained == ["salun"]


def test_the_command_of_a_report_makes_the_experiment_again(tmp_path):
    config = ExperimentConfig(size=18, seeds=4, algorithms=("salun", "scrub"), search_minutes=2)
    first = Experiment("rum", make_recipe("digits"), tmp_path / "an out", config, None, "cpu")
    words = shlex.split(first.command)
    assert words[:3] == ["rumfast", "experiment", "rum"] and words[4:6] == ["--out", str(tmp_path / "an out")]
    assert words[6:] == ["--size", "18", "--algorithms", "salun,scrub"]
    assert first.run(first.recipe.forget, tmp_path / "set").command == first.command
    again = parse_recipe(dump_recipe(first.recipe), "again")
    options = ExperimentConfig(size=int(words[7]), algorithms=tuple(words[9].split(",")))
    assert Experiment("rum", again, tmp_path / "an out", options, None, "cpu").recipe == first.recipe


# ---- whole experiments ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The folder of a difficulty experiment with its recipe."""
    out = tmp_path_factory.mktemp("experiments") / "out"
    recipe = make_recipe("digits")
    difficulty(recipe, out, TINY, device="cpu", workers=2)
    return out, recipe


def share(out, tmp_path):
    """Another folder with the same base."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "base").symlink_to(out / "base", target_is_directory=True)
    return tmp_path / "shared"


def record_of(out, name):
    """What has to be the same whatever happened on the way: all but the time it took."""
    return {key: value for key, value in read_json(out / f"{name}.json").items() if key != "timing"}


def stamps(out):
    """Of everything that was trained."""
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in out.rglob("*")
        if path.suffix == ".safetensors" or path.parent.name == "members"
    }


@pytest.mark.slow
def test_six_sets_each_with_oracles_of_its_own(lab):
    out, _ = lab
    record = record_of(out, "difficulty")
    assert record["schema"] == "rumfast/difficulty/1" and record["size"] == 24
    assert load_recipe(out / "difficulty" / "experiment.toml").evaluate == lab[1].evaluate
    assert [(each["axis"], each["level"]) for each in record["sets"]] == [
        (axis, level) for axis in ("memorization", "entanglement") for level in ("low", "mid", "high")
    ]
    score_N = read_npz(out / "base" / "scores" / "memorization.npz")["memorization"]
    for each in record["sets"]:
        folder = out / "difficulty" / f"{each['axis']}-{each['level']}"
        forget = read_npz(folder / "forget" / "split.npz")["forget"]
        assert len(forget) == each["size"] == 24 and list(each["algorithms"]) == ["none", "finetune", "salun"]
        assert each["memorization"] == pytest.approx(np.nanmean(score_N[forget]))
        geometry = read_json(folder / "scores" / "geometry.json")
        assert each["entanglement"] == geometry["forget"]["entanglement"]
        assert list(Population.open(folder / "oracles").spec.forget) == forget.tolist()
        profile = each["search"]["profile"]
        assert each["profile"]["memorization"]["forget"] == pytest.approx(each["memorization"])
        for name, means in each["profile"].items():
            assert means["surrogates"] == pytest.approx(np.mean(profile[name]["surrogates"]))
        for name, found in each["algorithms"].items():
            spec = Population.open(folder / "unlearned" / name).spec
            assert list(spec.forget) == forget.tolist() and len(found["metrics"]["tow"]["values"]) == 2
            assert spec.plan == (each["search"]["families"][name]["steps"] if name != "none" else "none")
        assert not (folder / "original").exists() and not (folder / "sweep").exists()
    assert len(list((out / "base" / "original").glob("0*"))) == 2
    by_level = {each["level"]: each["entanglement"] for each in record["sets"][3:]}
    assert by_level["low"] < by_level["mid"] < by_level["high"]


@pytest.mark.slow
def test_differences_follow_from_the_sets_and_findings_from_the_differences(lab):
    record = record_of(lab[0], "difficulty")
    assert record["intervals"] == len(record["differences"]) == 3 * 2 * 2
    low, high = record["sets"][3], record["sets"][5]
    row = next(
        row
        for row in record["differences"]
        if (row["subject"], row["metric"], row["one"]) == ("salun", "tow", "entanglement:low")
    )
    values = [each["algorithms"]["salun"]["metrics"]["tow"]["values"] for each in (low, high)]
    assert row["interval"]["values"] == pytest.approx(np.subtract(*values))
    finding = next(one for one in record["findings"] if one["claim"] == row["claim"])
    assert finding["claim"] == "ToW falls as entanglement rises, relabelling methods"
    assert finding[row["verdict"]] == ["salun"]


def spends(plan, batch=64, budget=300):
    """Does it take the budget, 1.5 passes over 200 examples, as near as whole batches come?"""
    steps = plan["steps"].split(" > ")
    return budget - batch <= plan["examples"] <= budget + len(steps) * batch


@pytest.mark.slow
def test_plans_of_one_set_cost_the_same_but_for_none(lab):
    for each in record_of(lab[0], "difficulty")["sets"]:
        plans = each["algorithms"]
        assert plans["none"]["examples"] == plans["none"]["cost"] == 0
        for name in ("finetune", "salun"):
            assert spends(plans[name]), name


@pytest.mark.slow
def test_a_second_call_trains_nothing_and_says_the_same(lab):
    out, recipe = lab
    before, files = read_json(out / "difficulty.json"), stamps(out)
    assert before["timing"]["workers"] == 2 and before["timing"]["worker_s"] > 0
    assert difficulty(recipe, out, TINY, device="cpu", workers=1)["sets"] == before["sets"]
    assert record_of(out, "difficulty") == {k: v for k, v in before.items() if k != "timing"}
    assert stamps(out) == files
    assert "<svg" in (out / "report" / "index.html").read_text()


@pytest.mark.slow
def test_a_plan_that_diverges_is_left_out_and_named(lab, tmp_path):
    out, recipe = lab
    with LocalEngine(1, "cpu") as engine:
        experiment = Experiment("rum", recipe, share(out, tmp_path), TINY, engine, "cpu")
        plans = [NONE, PlanConfig(name="wild", steps="finetune(lr=1e30)")]
        forget = recipe.forget.model_copy(update={"request": "random:12"})
        measured = experiment.measure(forget, tmp_path / "set", {}, lambda found: plans)
    assert measured.diverged == ["wild"]
    assert [plan["name"] for plan in measured.summary["plans"]] == ["none"]


@pytest.fixture(scope="module")
def unbroken_rum(lab, tmp_path_factory):
    """A rum experiment that nothing disturbed."""
    out = share(lab[0], tmp_path_factory.mktemp("rum"))
    rum(lab[1], out, SMALLER, device="cpu", workers=2)
    return out


@pytest.mark.slow
def test_rum_measures_every_kind_of_plan_at_one_budget(unbroken_rum):
    record = record_of(unbroken_rum, "rum")
    assert (record["forget"]["request"], record["forget"]["size"]) == ("memorization:mixed:18", 18)
    plans = {plan["name"]: plan for plan in record["plans"]}
    refined = [f"{name}+{kind}" for name in ("finetune", "salun") for kind in ("rum-f", "shuffle")]
    assert {"none", "finetune", "salun", *refined, "rum", "rum+reversed", "rum+final", "auto"} <= plans.keys()
    groups = [
        [step.split(":")[0] for step in plans[name]["steps"].split(" > ")] for name in ("rum", "rum+reversed")
    ]
    assert groups == [["low", "mid", "high"], ["high", "mid", "low"]]
    spec = Population.open(unbroken_rum / "rum" / "unlearned" / "auto").spec
    assert spec.plan == record["search"]["finalists"][record["search"]["best"]]["steps"]
    retain = [
        Population.open(unbroken_rum / "rum" / "unlearned" / n).spec.retain for n in ("rum", "rum+final")
    ]
    assert retain == ["remaining", "final"]
    assert record["budget_examples"] == 300 and plans["none"]["examples"] == 0
    for name, plan in plans.items():
        if any(algorithm in plan["steps"] for algorithm in ("finetune", "salun")):  # else auto may be none
            assert spends(plan), name
    families = record["search"]["families"]
    assert plans["rum"]["tried"] == plans["rum+reversed"]["tried"] == families["rum"]["tried"] == 16
    assert plans["auto"]["tried"] == 1 + 4 + 4 + 4 + 4 + 16 + families["mixed"]["tried"]


@pytest.mark.slow
def test_the_recipes_search_is_done_and_its_report_says_how_to_repeat_it(lab, unbroken_rum):
    record, search = record_of(unbroken_rum, "rum"), lab[1].search
    assert (record["search"]["objective"], record["search"]["surrogates"]) == ("tow", search.surrogates)
    for found in record["search"]["families"].values():
        assert found["chosen_on"]["objective"] == found["chosen_on"]["tow"]
    assert len(record["search"]["profile"]["memorization"]["surrogates"]) == 3
    page = (unbroken_rum / "rum" / "report" / "index.html").read_text()
    made = f"rumfast experiment rum {unbroken_rum}/rum/experiment.toml --out {unbroken_rum} --size 18"
    assert f"{made} --algorithms none,finetune,salun" in page
    assert "rumfast run" not in page


@pytest.mark.slow
def test_rum_claims_have_their_paired_differences(unbroken_rum):
    record = record_of(unbroken_rum, "rum")
    values = {plan["name"]: np.array(plan["metrics"]["tow"]["values"]) for plan in record["plans"]}
    tried = {plan["name"]: plan["tried"] for plan in record["plans"]}
    rows = {(row["one"], row["other"]): row for row in record["differences"] if row["metric"] == "tow"}
    for one, other in (("auto", "salun"), ("rum", "rum+reversed"), ("salun+rum-f", "salun+shuffle")):
        assert rows[one, other]["interval"]["values"] == pytest.approx(values[one] - values[other])
    assert rows["rum+final", "rum"]["claim"] is None
    tow_mia = {plan["name"]: np.array(plan["metrics"]["tow_mia"]["values"]) for plan in record["plans"]}
    means = [row for row in record["differences"] if row["metric"] == "mean"]
    assert [(row["one"], row["other"]) for row in means] == [("auto", "finetune"), ("auto", "salun")]
    for row in means:
        both = {name: (values[name] + tow_mia[name]) / 2 for name in (row["one"], row["other"])}
        assert row["interval"]["values"] == pytest.approx(both[row["one"]] - both[row["other"]])
    assert len(record["differences"]) == record["intervals"]
    auto = next(one for one in record["findings"] if one["claim"] == "auto beats every vanilla in ToW")
    assert sorted(auto["held"] + auto["contradicted"] + auto["undecided"]) == [
        f"auto ({tried['auto']}) − finetune (4)",
        f"auto ({tried['auto']}) − salun (4)",
    ]


@pytest.mark.slow
def test_what_a_refinement_needs_is_trained_with_the_base(lab, tmp_path):
    recipe = make_recipe("digits", forget={"request": "random:12", "refine": "curvature"})
    with LocalEngine(2, "cpu") as engine:
        experiment = Experiment("rum", recipe, tmp_path / "out", TINY, engine, "cpu")
        experiment.base.mkdir(parents=True)
        for part in ("original", "sweep"):
            (experiment.base / part).symlink_to(lab[0] / "base" / part, target_is_directory=True)
        experiment.prepare([experiment.recipe.forget])
        run = experiment.run(experiment.recipe.forget, tmp_path / "out" / "rum")
        run.pack()
        assert run.refine()["groups"] == {"low": 4, "mid": 4, "high": 4}
    score_N, groups = run.score_of("curvature"), read_npz(run.dir.groups)
    assert score_N[groups["low"]].max() <= score_N[groups["high"]].min()
    assert len(Population.open(experiment.base / "proxies").done(range(2))) == 2
    assert not (tmp_path / "out" / "rum" / "proxies").exists()


@pytest.mark.slow
def test_commands_print_tables_and_one_json_object(lab, unbroken_rum, rumfast, tmp_path):
    (tmp_path / "tiny.toml").write_text(dump_recipe(lab[1]))
    # The command searches as much as there is to search, which is another search than the one above.
    out = share(lab[0], tmp_path)
    options = ("--out", out, "--algorithms", "none", "--size", 12, "--oracles", 4, "--workers", 2)
    done = rumfast("experiment", "difficulty", tmp_path / "tiny.toml", *options)
    assert done.code == 0, done.stderr
    assert "ToW-MIA falls as entanglement rises, doing nothing: " in done.stdout
    assert "memorization" in done.stdout and "low: " in done.stdout and "intervals at 95 %" in done.stdout
    again = rumfast("experiment", "difficulty", tmp_path / "tiny.toml", *options, "--json")
    record = json.loads(again.stdout)
    assert (record["seeds"], record["oracles"], record["size"]) == (2, 4, 12)
    refused = rumfast("experiment", "rum", tmp_path / "tiny.toml", "--out", out, "--algorithms", "scrubb")
    assert refused.code == 2 and "scrubb" in refused.stderr


DRIVER = """
import sys
from rumfast.config import load_recipe
from rumfast.pipeline.experiment_runs import ExperimentConfig
from rumfast.pipeline.experiments import rum
config = ExperimentConfig.model_validate_json(sys.argv[3])
rum(load_recipe(sys.argv[1]), sys.argv[2], config, workers=2, device="cpu")
"""


@pytest.mark.slow
@pytest.mark.faults
def test_killed_and_called_again_it_ends_with_the_same_record(lab, unbroken_rum, tmp_path):
    rng, kills, out = random.Random(2), 0, share(lab[0], tmp_path)
    (tmp_path / "tiny.toml").write_text(dump_recipe(lab[1]))
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "tiny.toml"), str(out), SMALLER.model_dump_json()]
    for attempt in range(5):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=rng.uniform(6, 10) if attempt < 3 else 200)
        except subprocess.TimeoutExpired:
            kills += 1
            os.killpg(process.pid, signal.SIGKILL)
        if process.wait() == 0:
            break
    assert process.returncode == 0 and kills
    assert record_of(out, "rum") == record_of(unbroken_rum, "rum")
    assert not [path for path in Path(out / "rum").rglob(TEMPORARY + "*")]
