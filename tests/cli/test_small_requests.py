"""Requests of one and two images on the command line: with groups, every algorithm, and plan search."""

import json

import pytest

from rumfast.algorithms import ALGORITHMS
from rumfast.store import read_json, read_npz
from rumfast.sweeps import Population

pytestmark = pytest.mark.slow

RECIPE = """
plans = [{ name = "rum", steps = "low: none > mid: salun(lr=0.03) > high: salun(lr=0.03)" }]
[data]
path = "digits"
train_examples = 100
test_examples = 50
[train]
arch = "resnet8"
width = 4
epochs = 2
batch_size = 32
precision = "fp32"
[forget]
request = "random:20"
refine = "distance"
[unlearn]
budget_epochs = 3.0
[evaluate]
seeds = 1
oracles = 3
[search]
algorithms = ["none", "finetune"]
surrogates = 2
finals = 1
checks = 1
oracles = 3
originals = 1
generations = 1
children = 2
"""
NOTICE = (
    "1 example makes 1 group of the 3 asked for: low and mid are empty, and plans skip the steps for them"
)
PLANS = [f"{name}={name}" for name in ALGORITHMS] + [
    "rum=low: none > mid: salun(lr=0.03) > high: salun(lr=0.03)",
    "f=each: neggrad_plus(lr=0.03, alpha=0.8)",
]


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "one.txt").write_text("17\n")
    (tmp_path / "two.txt").write_text("17\n21\n")
    return tmp_path / "recipe.toml"


def asked(recipe, ids, out, *more):
    forget = f"ids:{recipe.parent / ids}"
    return [recipe, "--forget", forget, "--out", out, "--device", "cpu", "--workers", 1, "--json", *more]


def test_one_image_goes_through_every_algorithm(rumfast, recipe, tmp_path):
    out, plans = tmp_path / "run", [text for plan in PLANS for text in ("--plan", plan)]
    found = rumfast("run", *asked(recipe, "one.txt", out, *plans))
    assert found.code == 0, found.stderr
    assert found.stderr.count("asked for") == 1 and f"rumfast: {NOTICE}\n" in found.stderr
    summary = json.loads(found.stdout)
    assert [plan["name"] for plan in summary["plans"]] == [plan.partition("=")[0] for plan in PLANS]
    steps = {plan["name"]: plan["steps"] for plan in summary["plans"]}
    assert steps["rum"].startswith("high: salun(") and ">" not in steps["rum"] + steps["f"]
    assert summary["forget"]["notices"] == [NOTICE]
    assert [(group["name"], group["size"]) for group in summary["forget"]["groups"]] == [("high", 1)]
    assert (out / "report" / "index.html").read_text().count("asked for") == 1
    groups = read_npz(out / "forget" / "groups.npz")
    assert {name: ids.tolist() for name, ids in groups.items()} == {"low": [], "mid": [], "high": [17]}


def test_a_misspelt_group_is_still_refused(rumfast, recipe, tmp_path):
    plan = "lo: none > mid: finetune > high: salun"
    found = rumfast("run", *asked(recipe, "one.txt", tmp_path / "run", "--plan", plan))
    assert found.code == 2 and "the groups are low, mid, high; the plan must name each" in found.stderr


@pytest.mark.parametrize("ids, refined", [("one.txt", []), ("two.txt", ["finetune+rum-f"])])
def test_plan_search_gives_steps_to_groups_that_hold_examples(rumfast, recipe, tmp_path, ids, refined):
    out = tmp_path / "run"
    found = rumfast("plan", *asked(recipe, ids, out))
    assert found.code == 0, found.stderr
    families = json.loads(found.stdout)["families"]
    assert set(families) - {"mixed"} == {"none", "finetune", *refined}
    assert ("mixed" in families) == bool(refined)
    if refined:
        assert {step.split(":")[0] for step in families["mixed"]["steps"].split(" > ")} == {"mid", "high"}
    found = rumfast("unlearn", *asked(recipe, ids, out, "--plan", "auto"))
    assert found.code == 0, found.stderr
    population = Population.open(out / "unlearned" / "auto")
    assert population.spec.plan == read_json(out / "unlearned" / "auto" / "chosen.json")["steps"]
