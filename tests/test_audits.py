"""An audit of tiny populations: what it trains, and what it says."""

import json
import shutil
from copy import deepcopy
from importlib import resources

import numpy as np
import pytest

from rumfast.config import load_recipe, parse_recipe
from rumfast.data import load_dataset
from rumfast.errors import UsageError
from rumfast.evaluation import METRICS
from rumfast.evaluation.metrics import definitions
from rumfast.evaluation.outputs import collect
from rumfast.evaluation.pairing import offline_a_of
from rumfast.pipeline.audit_parts import memorization_levels
from rumfast.pipeline.audits import CONSTANT, HELD_OUT, AuditConfig, audit
from rumfast.plans import read_plan
from rumfast.store import read_json
from rumfast.sweeps import Population

pytestmark = pytest.mark.slow

RECIPE = """
name = "tiny"
[data]
path = "{path}"
train_examples = 300
test_examples = 120
[train]
arch = "resnet8"
width = 8
epochs = 8
batch_size = 64
lr = 0.1
precision = "fp32"
[forget]
request = "random:30"
refine = "class"
[unlearn]
budget_epochs = 2.0
[[plans]]
name = "none"
steps = "none"
[[plans]]
name = "finetune"
steps = "finetune(lr=0.05)"
"""
DIRECTIONS = {
    "higher": "higher is better",
    "lower": "lower is better",
    "oracle": "the oracles' value is the goal",
}
CONFIG = AuditConfig(population=9, splits=40, draws=3, mia_examples=100)


@pytest.fixture(scope="module")
def made(packed, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "run"
    recipe = parse_recipe(RECIPE.format(path=packed), "tiny.toml")
    return recipe, out, audit(recipe, out, CONFIG, device="cpu", workers=2)


def test_it_trains_originals_plans_and_twice_as_many_oracles(made):
    _, out, record = made
    assert Population.open(out / "original").done(range(99)) == list(range(9))
    assert Population.open(out / "oracles").done(range(99)) == list(range(18))
    assert Population.open(out / "unlearned" / "finetune").done(range(99)) == list(range(9))
    assert (record["population"], record["held_out"]) == (9, 9)
    assert [(each["name"], each["kind"]) for each in record["models"]] == [
        (HELD_OUT, "oracle"),
        ("none", "original"),
        ("finetune", "plan"),
        (CONSTANT, "control"),
    ]


def test_every_finding_has_a_value_in_range_an_interval_and_a_band(made):
    _, _, record = made
    for model in record["models"]:
        probed = set() if model["kind"] == "control" else {"entanglement", "relearning"}
        assert set(model["findings"]) == set(record["metrics"]) - {"entanglement", "relearning"} | probed
        for name, finding in model["findings"].items():
            low, high = record["metrics"][name]["range"]
            assert low <= finding["low"] <= finding["value"] <= finding["high"], name
            assert high is None or finding["high"] <= high, name
            assert finding["null"]["low"] <= finding["null"]["mean"] <= finding["null"]["high"]
            assert finding["verdict"] in ("inside", "outside", "cannot tell", "no power")


def test_rmia_has_the_a_that_its_oracles_choose(made):
    recipe, out, record = made
    split, data = np.load(out / "forget" / "split.npz"), load_dataset(recipe.data.path)
    data = data.take(300, 120, recipe.data.seed)
    reference, pool = Population.open(out / "oracles"), []
    for index in range(9):
        logits = reference.outputs(index)
        pool.append((logits["train"], logits["test"]))
    labels = data.train.label_N, data.test.label_N
    oracles = collect(pool, *labels, split["forget"], split["retain"], mia_examples=100)
    assert record["rmia_a"] == offline_a_of(oracles)
    page = (out / "audit" / "index.html").read_text(encoding="utf-8")
    assert "chosen on the oracles" in page


def test_values_are_those_of_the_models(made):
    recipe, out, record = made
    forget = np.load(out / "forget" / "split.npz")["forget"]
    population = Population.open(out / "unlearned" / "finetune")
    data = load_dataset(recipe.data.path).take(300, 120, recipe.data.seed)
    accuracies = [
        (population.outputs(index)["train"].argmax(1) == data.train.label_N)[forget].mean()
        for index in range(9)
    ]
    found = record["models"][2]["findings"]["accuracy_forget"]["value"]
    assert found == pytest.approx(np.mean(accuracies), abs=0.02)  # over random thirds
    classes = record["breakdown"]["finetune"]["class"]
    assert set(classes) == {data.classes[c] for c in np.unique(data.train.label_N[forget])}
    assert record["breakdown"]["finetune"]["level"] == {}  # of class groups, and memorization unmeasured
    assert len(record["examples"]) == 6
    row = list(forget).index(record["examples"][0]["id"])
    assert len(record["examples"][0]["margins"]["finetune"]) == 9 and row >= 0


def test_guards(made):
    _, _, record = made
    by_name = {model["name"]: model for model in record["models"]}
    assert not by_name[CONSTANT]["utility"]["passed"] and by_name[CONSTANT]["verdict"] == "fail"
    assert by_name[HELD_OUT]["verdict"] != "fail"
    assert record["false_alarms"]["alarmed"] <= 1
    none = by_name["none"]["findings"]
    assert none["relearning"]["value"] == 0  # it knows the forget set
    for name, powerful in record["power"].items():
        assert powerful == (none[name]["verdict"] == "outside")
        if not powerful:
            assert by_name["finetune"]["findings"][name]["verdict"] != "inside"


def test_it_resumes_and_says_the_same(made):
    recipe, out, record = made
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/**/model.safetensors")}
    again = audit(recipe, out, CONFIG, device="cpu", workers=2)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/**/model.safetensors")} == stamps
    stored = read_json(out / "audit" / "audit.json")
    assert again == record == json.loads(json.dumps(record)) == stored
    page = (out / "audit" / "index.html").read_text(encoding="utf-8")
    assert "finetune" in page and not any(word in page for word in ("<script", "src=", "url(http"))


def test_the_folder_keeps_the_recipe(made):
    recipe, out, _ = made
    assert load_recipe(out / "config.toml").evaluate == recipe.evaluate


def test_plans_that_diverge_are_left_out_and_those_that_do_nothing_audited_once(made, validator, tmp_path):
    recipe, out, record = made
    shutil.copytree(out, tmp_path / "run", symlinks=True)
    plans = (read_plan("nothing=none"), recipe.plans[1], read_plan("wild=neggrad(lr=1e30)"))
    again = audit(
        recipe.model_copy(update={"plans": plans}), tmp_path / "run", CONFIG, device="cpu", workers=2
    )
    assert again.pop("diverged") == ["wild"]
    assert [model["name"] for model in again["models"]] == [model["name"] for model in record["models"]]
    assert again["models"] == record["models"]
    validator.validate(again | {"diverged": ["wild"]})
    page = (tmp_path / "run" / "audit" / "index.html").read_text(encoding="utf-8")
    assert "diverged from some original: wild." in page and "Null bands of 9 oracles are too narrow" in page


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((resources.files("rumfast.schemas") / "audit-1.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_record_conforms_to_the_schema_and_misspelt_ones_do_not(made, validator):
    _, _, record = made
    validator.validate(record)
    for path in ((), ("models", 0), ("models", 0, "findings", "tow"), ("false_alarms",), ("examples", 0)):
        for key in list(_at(record, path)):
            # RMIA's a and over-forgetting are absent from audits of before.
            for replacement in ({}, {f"{key}x": 1})[key in ("rmia_a", "over_forgotten") :]:
                broken = deepcopy(record)
                inner = _at(broken, path)
                inner.pop(key)
                inner |= replacement
                assert not validator.is_valid(broken), (*path, key)


def _at(record, path):
    for key in path:
        record = record[key]
    return record


def test_the_schema_documents_range_and_direction_of_every_metric(validator):
    documented = validator.schema["properties"]["metrics"]["properties"]
    found = json.loads(json.dumps(definitions(METRICS)))
    assert set(documented) == set(found)
    for name, metric in found.items():
        own = documented[name]["properties"]
        assert {key: own[key]["const"] for key in own} == {key: metric[key] for key in own}
        low, high = metric["range"]
        ends = f"in [{low}, ∞)" if high is None else f"in [{low}, {high}]"
        text = documented[name]["description"]
        assert text == f"{metric['label']}, {ends}; {DIRECTIONS[metric['better']]}"
        assert {"better", "range"} <= set(own)


def test_levels_of_memorization_whatever_the_groups_are():
    forget, score_N = np.array([9, 2, 4, 7]), np.array([0, 0, 0.3, 0, 0.1, 0, 0, 0.9, 0, 0.2])
    found = memorization_levels(forget, score_N, 3)
    assert {name: forget[mask_F].tolist() for name, mask_F in found.items()} == {
        "low": [9, 4],
        "mid": [2],
        "high": [7],
    }
    unknown_N = score_N.copy()
    unknown_N[2] = np.nan
    assert memorization_levels(forget, None, 3) == memorization_levels(forget, unknown_N, 3) == {}
    assert memorization_levels(forget[:2], score_N, 3) == {}


def test_names_that_an_audit_needs_are_refused(packed, tmp_path):
    text = RECIPE.format(path=packed).replace('name = "finetune"', 'name = "constant"')
    with pytest.raises(UsageError, match="plans: constant is what an audit calls"):
        audit(parse_recipe(text, "tiny.toml"), tmp_path / "run", CONFIG, device="cpu", workers=1)
    assert not (tmp_path / "run").exists()
