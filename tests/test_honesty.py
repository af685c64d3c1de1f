"""First sentences of runs on digits: on originals, retrains, over-forgetting, whole classes and chains."""

import json
import re
from html import unescape

import pytest
from typer.testing import CliRunner

from rumfast import run
from rumfast.bench.held_out import held_out_verdicts
from rumfast.cli.app import app
from rumfast.config import Recipe
from rumfast.pipeline.earlier import unlike_before
from rumfast.store import read_json
from rumfast.sweeps import Population

pytestmark = pytest.mark.slow

TRAIN = {"arch": "resnet8", "width": 8, "epochs": 15, "batch_size": 32, "precision": "fp32"}


def make_recipe(request, plans, folder, **evaluate):
    return Recipe.model_validate(
        {
            "name": "honest",
            "data": {"source": "digits", "path": str(folder / "data"), "label_noise": 0.1,
                     "train_examples": 600, "test_examples": 300},
            "train": TRAIN,
            "forget": {"request": request, "refine": "none"},
            "plans": [{"name": name, "steps": steps} for name, steps in plans.items()],
            "evaluate": {"seeds": 3, "oracles": 5} | evaluate,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("honest")


@pytest.fixture(scope="module")
def mislabeled(folder):
    """The flipped labels, which models memorize."""
    recipe = make_recipe("mislabeled", {"none": "none", "finetune": "finetune(lr=0.1, epochs=3)"}, folder)
    return recipe, run(recipe, folder / "first", device="cpu", workers=2)["evaluate"]


@pytest.fixture(scope="module")
def whole_class(folder):
    recipe = make_recipe("class:3", {"none": "none", "finetune": "finetune(lr=0.1, epochs=3)"}, folder)
    return run(recipe, folder / "class", device="cpu", workers=2)["evaluate"]


def predictions(root, examples):
    """Classes [N] that model 0 gives the test examples."""
    found = Population.open(root).outputs(0)["test"].argmax(1)
    assert found.shape == (examples,)
    return found


def plan_of(result, name):
    return next(plan for plan in result["plans"] if plan["name"] == name)


def test_doing_nothing_differs_where_the_forget_set_was_memorized(mislabeled):
    _, result = mislabeled
    none = plan_of(result, "none")
    assert none["verdict"] == "differs" and none["metrics"]["mia"]["verdict"] == "outside"
    assert not any(entry["over_forgotten"] for entry in none["metrics"].values())
    assert result["power"]["accuracy_forget"] == {"power": True, "needed": None}
    original = result["reference"]["original"]
    assert {key: entry["mean"] for key, entry in original.items()} == pytest.approx(
        {key: entry["mean"] for key, entry in none["metrics"].items()}
    )


def test_a_plan_that_overshoots_is_over_forgotten(folder):
    recipe = make_recipe("random:60", {"neggrad": "neggrad(lr=0.05, epochs=10)"}, folder)
    result = run(recipe, folder / "over", device="cpu", workers=2)["evaluate"]
    (plan,) = result["plans"]
    assert plan["metrics"]["accuracy_forget"]["over_forgotten"] and plan["verdict"] == "differs"
    assert plan["reasons"][0].startswith("over-forgotten by forget accuracy")
    assert "“neggrad”, over-forgets: forget accuracy is " in result["verdict"]["headline"]


def test_what_no_model_memorized_never_matches(folder):
    recipe = make_recipe("random:3", {"none": "none", "finetune": "finetune(lr=0.001, epochs=1)"}, folder)
    result = run(recipe, folder / "easy", device="cpu", workers=2)["evaluate"]
    assert result["verdict"]["state"] == "cannot tell"
    assert result["verdict"]["headline"].startswith("Cannot tell whether any plan forgot the 3 examples")
    assert {plan["verdict"] for plan in result["plans"]} == {"cannot tell"}
    assert "inside" not in {entry["verdict"] for entry in plan_of(result, "none")["metrics"].values()}


def test_report_terminal_and_json_say_the_same(mislabeled, folder):
    _, result = mislabeled
    printed = CliRunner().invoke(app, ["report", "--out", str(folder / "first"), "--device", "cpu"])
    assert printed.exit_code == 0
    as_json = CliRunner().invoke(app, ["evaluate", "--out", str(folder / "first"), "--json"])
    page = (folder / "first" / "report" / "index.html").read_text()
    headline = result["verdict"]["headline"]
    assert headline in printed.stdout and json.loads(as_json.stdout)["verdict"]["headline"] == headline
    assert unescape(re.search(r'<p class="headline">(.*?)</p>', page)[1]) == headline
    exact = "oracles/000/model.safetensors, in this run's folder, was trained without the forget set"
    assert exact in printed.stdout and exact in unescape(page) and exact in result["verdict"]["detail"]
    assert (folder / "first" / "oracles" / "000" / "model.safetensors").exists()


def test_a_class_is_told_apart_from_the_classes_that_are_kept(whole_class, folder):
    oracle = whole_class["reference"]["oracle"]
    assert oracle["accuracy_test_forgotten"]["mean"] < 0.1 and oracle["accuracy_test_kept"]["mean"] > 0.8
    data = Population.open(folder / "class" / "oracles").spec.data.load()
    three, predicted = data.test.label_N == 3, predictions(folder / "class" / "oracles", len(data.test))
    assert oracle["accuracy_test_forgotten"]["values"][0] == pytest.approx((predicted[three] == 3).mean())
    kept = (predicted[~three] == data.test.label_N[~three]).mean()
    assert oracle["accuracy_test_kept"]["values"][0] == pytest.approx(kept)
    original = whole_class["reference"]["original"]
    assert original["accuracy_test_forgotten"]["verdict"] == "outside"
    assert not original["accuracy_test_forgotten"]["over_forgotten"]
    page = (folder / "class" / "report" / "index.html").read_text()
    assert "test accuracy, forgotten classes" in page and "test accuracy, kept classes" in page


def test_a_second_request_says_where_it_starts_and_looks_at_the_first_again(mislabeled, folder):
    recipe, _ = mislabeled
    after = str(folder / "first" / "unlearned" / "finetune")
    forget = recipe.forget.model_copy(update={"request": "random:20", "after": after})
    second = recipe.model_copy(update={"forget": forget})
    result = run(second, folder / "second", device="cpu", workers=2)["evaluate"]
    (before,) = result["earlier_requests"]
    spec = Population.open(folder / "first" / "unlearned" / "finetune").spec
    assert before["request"] == "mislabeled" and before["size"] == len(spec.forget)
    assert before["power"]["accuracy_forget"]["power"]  # the first originals remember all of them
    oracles = Population.open(folder / "second" / "oracles").spec
    assert set(spec.forget) <= set(oracles.excluded)  # and these never saw any
    start, same = before["start"]["metrics"], before["plans"]["none"]["metrics"]
    assert start == same  # doing nothing leaves the first request as it was
    assert "The earlier request (mislabeled, " in result["verdict"]["detail"]
    page = (folder / "second" / "report" / "index.html").read_text()
    assert "Starting point" in page and "trained on everything" not in page
    assert "Are earlier requests still forgotten?" in page
    assert result["total"]["parts"][0]["name"] != "originals"


def test_a_plan_that_brings_an_earlier_request_back_differs():
    def entry(verdict, over=False):
        return {"verdict": verdict, "over_forgotten": over}

    plans = {
        "back": {"metrics": {"accuracy_forget": entry("outside"), "mia": entry("inside")}},
        "over": {"metrics": {"accuracy_forget": entry("outside", over=True), "mia": entry("inside")}},
    }
    found = [{"request": "class:3", "size": 60, "plans": plans}]
    assert unlike_before(found, "back") == [
        "an earlier request (class:3, 60 examples) is not forgotten by forget accuracy"
    ]
    assert unlike_before(found, "over") == [
        "an earlier request (class:3, 60 examples) is over-forgotten by forget accuracy"
    ]


def test_twenty_held_out_oracles_are_not_said_to_differ(mislabeled, folder):
    recipe, _ = mislabeled
    found = held_out_verdicts(recipe, folder / "first", workers=2)
    said = [one["verdict"] for one in found["alone"]]
    assert len(said) == 20 and said.count("differs") <= 1 and said.count("matches") >= 10
    assert [one["verdict"] for one in found["grouped"]].count("differs") <= 1
    assert found["none"]["verdict"] == "differs"
    assert read_json(folder / "first" / "evaluation" / "summary.json")["oracles"] == 5  # left as it was
