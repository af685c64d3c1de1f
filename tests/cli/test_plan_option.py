"""--plan and --forget on the command line: what the recipe becomes, and a run of it."""

import json

import pytest

from rumfast.cli.options import recipe_for
from rumfast.config import dump_recipe, load_recipe
from rumfast.errors import UsageError
from rumfast.store import read_npz

RECIPE = """
plans = [{ name = "a", steps = "none" }, { name = "b", steps = "low:none>high:finetune( epochs=1 )" }]
[data]
path = "digits"
train_examples = 100
test_examples = 50
[train]
arch = "resnet8"
width = 4
epochs = 1
precision = "fp32"
[forget]
request = "random:20"
refine = "random"
groups = 2
[evaluate]
seeds = 1
oracles = 3
"""


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    return file


@pytest.fixture
def out(recipe, tmp_path):
    """A run that holds its recipe."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text(dump_recipe(load_recipe(recipe)))
    return folder


def names(recipe):
    return [plan.name for plan in recipe.plans]


def test_with_a_recipe_its_plans_give_way(recipe, out):
    found = recipe_for(str(recipe), out, plans=["x=finetune", "low: none > high: salun"])
    assert names(found)[0] == "x" and found.plans[1].steps == "low: none > high: salun"
    assert len(found.plans) == 2 and names(found)[1].startswith("none+salun-")
    assert names(recipe_for(str(recipe), out)) == names(recipe_for(str(recipe), out, plans=[])) == ["a", "b"]


def test_without_one_they_come_beside_those_of_the_run(out):
    assert names(recipe_for(None, out, plans=["x=finetune"])) == ["a", "b", "x"]
    same = recipe_for(None, out, plans=["b = low: none > high: finetune(epochs=1.0)"])
    assert same == load_recipe(out / "config.toml")  # as the run has it, so what it trained still fits
    other = recipe_for(None, out, plans=["b=low: none > high: finetune(epochs=2)"])
    assert names(other) == ["a", "b"] and "epochs=2" in other.plans[1].steps


def test_a_name_cannot_be_given_twice(recipe, out):
    with pytest.raises(UsageError, match="--plan: x is given twice"):
        recipe_for(str(recipe), out, plans=["x=none", "x=finetune"])
    with pytest.raises(UsageError, match="--plan: finetune-[0-9a-f]{8} is given twice"):
        recipe_for(str(recipe), out, plans=["finetune", "all: finetune"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--plan", "low: none > high: scrubb"], "'scrubb' is unknown"),
        (["--plan", "none", "--plan", "x=low: none"], "the groups are low, high"),
        (["--plan", "../x=none"], "cannot read step"),
        (["--forget", "entanglement:high:100"], "expected 1..99"),
        (["--forget", "entanglement:mixed:10"], "expected one of low, mid, high"),
        (["--forget", "entanglement:high"], "expected one of ids:FILE"),
    ],
)
def test_bad_options_are_refused_before_training(options, expected, recipe, rumfast, tmp_path):
    outcome = rumfast("run", recipe, "--out", tmp_path / "new", *options)
    assert outcome.code == 2 and expected in outcome.stderr and outcome.stderr.count("\n") == 1
    assert not list(tmp_path.glob("new/*/*"))


def test_retraining_beyond_the_budget_is_refused_before_training(recipe, rumfast, tmp_path):
    recipe.write_text(RECIPE.replace("epochs = 1\n", "epochs = 9\n") + "[unlearn]\nbudget_epochs = 5\n")
    outcome = rumfast("run", recipe, "--out", tmp_path / "new", "--plan", "low: retrain > high: finetune")
    assert outcome.code == 2 and "500 examples do not cover the plan's fixed cost of 810" in outcome.stderr
    assert "retrain runs the recipe's epochs" in outcome.stderr and not list(tmp_path.glob("new/*/*"))


@pytest.mark.slow
def test_an_entangled_set_is_unlearned_with_plans_of_the_command_line(recipe, rumfast, tmp_path):
    run = tmp_path / "new"
    asked = ("--forget", "entanglement:high:10", "--workers", 1, "--json")
    first = rumfast("unlearn", recipe, "--out", run, *asked, "--plan", "low: none > high: finetune(epochs=1)")
    assert first.code == 0, first.stderr
    (name,) = json.loads(first.stdout)["plans"]
    assert name.startswith("none+finetune-") and not (run / "sweep").exists()
    assert len(read_npz(run / "forget" / "split.npz")["forget"]) == 10
    second = rumfast(
        "evaluate", "--out", run, "--workers", 1, "--json", "--plan", "x=reversed: finetune(epochs=1)"
    )
    summary = json.loads(second.stdout)
    assert [plan["name"] for plan in summary["plans"]] == [name, "x"]
    assert summary["plans"][1]["steps"] == "high: finetune(epochs=1) > low: finetune(epochs=1)"
    windows = summary["forget"]["windows"]
    assert windows["entanglement"][windows["levels"]["high"]] == max(windows["entanglement"])
