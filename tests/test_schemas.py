"""The schema of an evaluation: what conforms, and that no field can be missing or misspelt."""

import json
from copy import deepcopy
from importlib import resources
from pathlib import Path

import pytest

from rumfast.config import Recipe, TrainConfig, dump_recipe
from rumfast.evaluation import SCORED
from rumfast.evaluation.metrics import definitions as defined
from rumfast.sweeps.spec import RequestSpec

jsonschema = pytest.importorskip("jsonschema")

SCHEMA = json.loads((resources.files("rumfast.schemas") / "evaluation-1.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
RECORDS = Path(__file__).parent.parent / "bench" / "results" / "amd-epyc-2core"
# What records of older versions lack, and what tells more of a metric than they had to say.
OPTIONAL = {
    "neighbour_overlap",
    "mean_distance",
    "mmd2",
    "earlier",
    "windows",
    "notices",
    "source",
    "kind",
    "membership",
    "micro_batches",
    "cuda_graphs",
}
# Since 0.7
OPTIONAL |= {"verdict", "over_forgotten", "forgotten", "power", "reasons", "earlier_requests"}
OPTIONAL |= {"accuracy_test_forgotten", "accuracy_test_kept"}
OPTIONAL |= {"mean", "worst_standard_error", "split_half"}  # the last three of a sweep


@pytest.fixture(scope="module")
def record():
    """The committed record of digits with one plan."""
    found = json.loads((RECORDS / "digits.json").read_text(encoding="utf-8"))
    return found | {"plans": found["plans"][:1]}


def nodes(schema):
    """Every schema within a schema."""
    yield schema
    for key in ("properties", "$defs"):
        for inner in schema.get(key, {}).values():
            yield from nodes(inner)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key])
    for inner in schema.get("anyOf", ()):
        yield from nodes(inner)


def test_the_schema_is_one_and_types_every_field():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for schema in nodes(SCHEMA):
        assert schema.keys() & {"type", "$ref", "anyOf", "const"}, schema
        if schema.get("type") == "object":
            assert schema.get("additionalProperties", True) is not True
        if "$ref" in schema:
            assert schema["$ref"].removeprefix("#/$defs/") in SCHEMA["$defs"]


def test_every_metric_has_its_range_and_direction_documented():
    definitions, words = SCHEMA["properties"]["metrics"]["properties"], {}
    bands = SCHEMA["properties"]["bands"]["properties"]
    results = SCHEMA["properties"]["plans"]["items"]["properties"]["metrics"]["properties"]
    for name, found in json.loads(json.dumps(defined(SCORED))).items():
        documented = definitions[name]["properties"]
        assert documented["better"]["const"] == found["better"]
        assert documented["range"]["const"] == found["range"]
        text = definitions[name]["description"]
        assert bands[name]["description"] == results[name]["description"] == text
        assert found["label"] in text and str(found["range"]) in text
        words.setdefault(found["better"], set()).add(text.partition("; ")[2])
    assert words == {"higher": {"higher is better"}, "oracle": {"the oracles' value is the goal"}}


def test_what_other_files_define_has_the_same_fields_here():
    for name, model in {"train": TrainConfig, "request": RequestSpec}.items():
        assert set(SCHEMA["$defs"][name]["properties"]) == set(model.model_fields)


@pytest.mark.parametrize(
    "path", [path for path in sorted(RECORDS.glob("*.json")) if '"rumfast/evaluation/1"' in path.read_text()]
)
def test_committed_records_conform(path):
    VALIDATOR.validate(json.loads(path.read_text(encoding="utf-8")))


def objects(value, path=()):
    """Paths of every object in a record."""
    if isinstance(value, dict):
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from objects(inner, (*path, key))


def changed(record, path, change):
    copy = deepcopy(record)
    inner = copy
    for key in path:
        inner = inner[key]
    change(inner)
    return copy


def test_no_field_can_be_misspelt_and_none_but_newer_ones_missing(record):
    VALIDATOR.validate(record)
    for path in objects(record):
        inner = record
        for key in path:
            inner = inner[key]
        for key in inner:
            misspelt = changed(record, path, lambda found, key=key: found.update({f"{key}x": found.pop(key)}))
            assert not VALIDATOR.is_valid(misspelt), (*path, key)
            missing = changed(record, path, lambda found, key=key: found.pop(key))
            if key not in OPTIONAL or (key == "mean" and path != ("sweep",)):
                assert not VALIDATOR.is_valid(missing), (*path, key)


@pytest.mark.parametrize(
    "path, value",
    [
        (("schema",), "rumfast/evaluation/2"),
        (("plans", 0, "metrics", "tow", "mean"), 1.01),
        (("plans", 0, "metrics", "tow", "inside"), "yes"),
        (("plans", 0, "metrics", "mia", "values"), []),
        (("plans",), []),
        (("bands", "mia", "low"), -0.1),
        (("metrics", "tow", "better"), "lower"),
        (("metrics", "mia", "range"), [0, 2]),
        (("metrics", "mia", "source"), 3),
        (("reference", "oracle", "accuracy_test", "mean"), None),
        (("dataset", "fingerprint"), "c80ce0"),
        (("train", "schedule"), "linear"),
        (("seeds",), 2.5),
    ],
)
def test_values_beyond_their_range_are_refused(record, path, value):
    assert not VALIDATOR.is_valid(changed(record, path[:-1], lambda found: found.update({path[-1]: value})))


def test_further_metrics_are_welcome_where_they_say_what_they_are(record):
    wider = deepcopy(record)
    wider["metrics"]["klom_forget"] = {
        "label": "KLoM forget",
        "definition": "divergence of margins",
        "source": "a paper, section 2",
        "better": "lower",
        "range": [0, None],
        "kind": "population",
        "membership": True,
    }
    wider["plans"][0]["metrics"]["klom_forget"] = {
        "mean": 3.2,
        "low": None,
        "high": None,
        "values": [3.2],
        "inside": False,
    }
    VALIDATOR.validate(wider)
    for key in ("label", "better", "range"):
        found = changed(wider, ("metrics", "klom_forget"), lambda metric, key=key: metric.pop(key))
        assert not VALIDATOR.is_valid(found)
    wider["metrics"]["klom_forget"]["kind"] = "models"
    assert not VALIDATOR.is_valid(wider)


@pytest.mark.slow
def test_what_evaluate_prints_conforms(packed, rumfast, tmp_path):
    """Of a request that has windows, refined by scores of a sweep."""
    recipe = Recipe.model_validate(
        {
            "data": {"path": str(packed), "train_examples": 200, "test_examples": 100},
            "train": {"arch": "resnet8", "width": 4, "epochs": 1, "batch_size": 64, "precision": "fp32"},
            "sweep": {"members": 6},
            "forget": {"request": "entanglement:high:10", "refine": "memorization", "groups": 2},
            "plans": [{"name": "none", "steps": "none"}, {"name": "ft", "steps": "each: finetune(epochs=1)"}],
            "evaluate": {"seeds": 1, "oracles": 3, "mia_examples": 60},
        }
    )
    (tmp_path / "tiny.toml").write_text(dump_recipe(recipe))
    outcome = rumfast(
        "evaluate", tmp_path / "tiny.toml", "--out", tmp_path / "run", "--device", "cpu", "--json"
    )
    assert outcome.code == 0, outcome.stderr
    printed = json.loads(outcome.stdout)
    VALIDATOR.validate(printed)
    assert list(printed["metrics"]) == list(printed["bands"]) == list(printed["plans"][1]["metrics"])
    assert printed["sweep"]["split_half"] and printed["forget"]["windows"]["levels"]
    request = {"request": "class:3", "size": 9, "sha256": "0" * 64, "plan": "none", "path": "../other"}
    VALIDATOR.validate(changed(printed, ("forget", "earlier"), lambda found: found.append(request)))
    assert not VALIDATOR.is_valid(changed(printed, ("forget", "earlier"), lambda found: found.append({})))
