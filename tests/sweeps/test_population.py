import json
import shutil

import numpy as np
import pytest
import torch

from rumfast import Split, build_model, predict, rum, train
from rumfast.errors import DataError, MismatchError, PartialError, RumfastError
from rumfast.refinement import Group
from rumfast.sweeps import Population
from rumfast.sweeps.spec import GroupSpec
from rumfast.sweeps.worker import Worker, train_record
from rumfast.training import Learner


def test_reopening_another_population_lists_what_differs(tmp_path, spec):
    Population.create(tmp_path, spec)
    assert Population.create(tmp_path, spec).spec == Population.open(tmp_path).spec == spec
    before = (tmp_path / "spec.json").read_bytes()
    changes = {
        "seed": ("seed", 4),
        "include": ("include", 0.5),
        "excluded": ("excluded", (1,)),
        "precision": ("precision", "torch.bfloat16"),
        "train.lr": ("train", spec.train.model_copy(update={"lr": 0.2})),
        "data.fingerprint": ("data", spec.data.model_copy(update={"fingerprint": "0" * 64})),
    }
    for field, (key, value) in changes.items():
        with pytest.raises(MismatchError, match=f"made with another configuration: {field}: there ") as error:
            Population.create(tmp_path, spec.model_copy(update={key: value}))
        assert error.value.exit_code == 3 and str(error.value).count(": there ") == 1
    assert (tmp_path / "spec.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"kind": "subsets", "surprise": 1}', "{" * 99])
def test_a_damaged_spec_is_named(tmp_path, content):
    (tmp_path / "spec.json").write_text(content)
    with pytest.raises(DataError, match="spec.json: "):
        Population.open(tmp_path)


def test_no_population_there(tmp_path):
    with pytest.raises(DataError, match="spec.json: no such file"):
        Population.open(tmp_path / "nowhere")


def test_a_record_must_belong_where_it_lies(tmp_path, reference, spec):
    population = Population.create(tmp_path, spec)
    shutil.copytree(reference.root / "members", tmp_path / "members")
    shutil.copy(population.member(0), tmp_path / "members" / "000009.npz")
    assert population.record(1).index == 1 and population.done(range(12)) == [0, 1, 2, 3, 4, 5, 9]
    with pytest.raises(DataError, match="000009.npz: record of member 0"):
        population.record(9)
    elsewhere = Population(
        tmp_path, spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": "0" * 64})})
    )
    with pytest.raises(DataError, match="000001.npz: .* on 000000000000"):
        elsewhere.record(1)


def test_a_record_is_what_its_member_predicts(reference, digits, recipe, spec):
    record = reference.record(2)
    ids = spec.subset(2, 300)
    model = train(digits, recipe, ids, seed=spec.member_seed(2), device="cpu")
    predictions = predict(model, digits)
    assert np.flatnonzero(record.include_N).tolist() == ids.tolist()
    np.testing.assert_array_equal(record.correct_N, predictions.margins().correct)
    np.testing.assert_array_equal(record.correct_test_N, predictions.margins("test").correct)
    np.testing.assert_array_equal(record.margin_N, predictions.margins().margin.numpy().astype(np.float16))
    np.testing.assert_array_equal(
        record.margin_test_N, predictions.margins("test").margin.numpy().astype(np.float16)
    )


def test_margins_beyond_float16_saturate(digits, recipe, spec, monkeypatch):
    learner = Learner(digits, recipe, "cpu")

    def enormous():
        found = predict(learner.model, digits)
        return type(found)(found.train_NC * 1e6, found.test_NC * 1e6, found.train_label_N, found.test_label_N)

    monkeypatch.setattr(learner.predictor, "predict", enormous)
    record = train_record(learner, spec, 0, digits)
    assert np.isfinite(record.margin_N).all() and abs(record.margin_N).max() == 65504


@pytest.mark.parametrize("lr", [1e3, 1e30])
def test_a_diverged_member_is_marked_and_its_predictions_are_not_stored(tmp_path, digits, recipe, spec, lr):
    train_config = recipe.model_copy(update={"lr": lr, "schedule": "constant"})
    population = Population.create(tmp_path, spec.model_copy(update={"train": train_config}))
    assert Worker("cpu").do(tmp_path, 0)["status"] == "diverged"
    record = population.record(0)
    assert (
        record.diverged and len(record.correct_N) == len(record.margin_N) == len(record.correct_test_N) == 0
    )
    assert np.flatnonzero(record.include_N).tolist() == spec.subset(0, 300).tolist()


@pytest.fixture(scope="module")
def family(tmp_path_factory, spec, digits):
    """Two originals, an oracle, and what a plan made of the originals, all by one worker."""
    root = tmp_path_factory.mktemp("family")
    base = {"include": None, "seed": 1}
    forget = tuple(range(0, 30, 2))
    groups = (GroupSpec(name="low", ids=forget[:8]), GroupSpec(name="high", ids=forget[8:]))
    kinds = {
        "original": {},
        "oracle": {"forget": forget, "excluded": (200, 201)},
        "unlearned": {
            "forget": forget,
            "groups": groups,
            "budget": 900,
            "parent": "../original",
            "plan": "low: finetune(epochs=1) > high: salun(epochs=2)",
        },
    }
    worker = Worker("cpu")
    found = {}
    for kind, fields in kinds.items():
        population = Population.create(root / kind, spec.model_copy(update=base | {"kind": kind} | fields))
        for index in range(2):
            worker.do(population.root, index)
        found[kind] = population
    return found


def as_model(population, index, recipe):
    model = build_model(recipe.arch, 10, width=recipe.width)
    model.load_state_dict(population.state(index))
    return model.eval()


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_originals_and_oracles_are_trained_on_their_pools(family, digits, recipe):
    for kind, ids in (
        ("original", None),
        ("oracle", np.setdiff1d(np.arange(300), [*range(0, 30, 2), 200, 201])),
    ):
        population = family[kind]
        for index in range(2):
            expected = train(digits, recipe, ids, seed=population.spec.member_seed(index), device="cpu")
            assert same(expected.state_dict(), population.state(index))
        assert population.metrics(0)["examples"] == 2 * (300 if ids is None else len(ids))


def test_stored_logits_are_those_of_the_stored_weights(family, digits, recipe):
    for population in family.values():
        predictions = predict(as_model(population, 1, recipe), digits)
        np.testing.assert_array_equal(population.outputs(1)["train"], predictions.train_NC)
        np.testing.assert_array_equal(population.outputs(1)["test"], predictions.test_NC)


def test_unlearned_member_i_is_the_plan_run_on_original_i(family, digits, recipe):
    population = family["unlearned"]
    spec = population.spec
    groups = [Group(group.name, np.array(group.ids)) for group in spec.groups]
    for index in range(2):
        expected = rum(
            as_model(family["original"], index, recipe),
            digits,
            Split.from_ids(spec.forget, 300),
            groups,
            spec.plan,
            recipe,
            budget=900,
            seed=spec.member_seed(index),
            device="cpu",
        )
        assert same(expected.model.state_dict(), population.state(index))
        assert population.metrics(index)["examples"] == expected.examples
        assert population.metrics(index)["steps"] == list(expected.steps)


def test_a_member_that_exists_is_left_alone(family):
    population = family["original"]
    before = {path: path.stat().st_mtime_ns for path in population.root.rglob("*")}
    assert Worker("cpu").do(population.root, 0) == {"status": "done", "wall_s": 0.0}
    assert {path: path.stat().st_mtime_ns for path in population.root.rglob("*")} == before


def test_missing_and_damaged_members_are_named(family, tmp_path):
    population = Population(tmp_path, family["original"].spec)
    shutil.copytree(family["original"].root / "000", tmp_path / "000")
    weights = tmp_path / "000" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "000" / "metrics.json").write_text("[]")
    for read, message in (
        (population.state, "model.safetensors: cannot read weights"),
        (population.metrics, "metrics.json: expected a JSON object"),
    ):
        with pytest.raises(DataError, match=message):
            read(0)
    for read in (population.state, population.outputs, population.metrics):
        with pytest.raises(DataError, match=str(tmp_path / "001")):
            read(1)


def test_a_full_disk_leaves_no_model_and_is_an_io_error(family, tmp_path):
    import resource

    Population.create(tmp_path, family["original"].spec)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(RumfastError) as error:
            Worker("cpu").do(tmp_path, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.exit_code == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal", "spec.json"]


def test_data_that_changed_since_is_refused(tmp_path, spec):
    other = spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": "0" * 64})})
    Population.create(tmp_path, other)
    with pytest.raises(
        MismatchError, match="digits: content is .*, the population was made with 000000000000"
    ):
        Worker("cpu").do(tmp_path, 0)


def test_another_precision_is_refused(tmp_path, spec):
    Population.create(tmp_path, spec.model_copy(update={"precision": "torch.bfloat16"}))
    with pytest.raises(MismatchError, match="precision: the population was started in torch.bfloat16"):
        Worker("cpu").do(tmp_path, 0)


def test_an_unlearned_population_needs_its_parent(tmp_path, family):
    spec = family["unlearned"].spec
    Population.create(tmp_path / "a", spec.model_copy(update={"parent": None}))
    with pytest.raises(DataError, match="needs a parent and a plan"):
        Worker("cpu").do(tmp_path / "a", 0)
    Population.create(tmp_path / "b", spec.model_copy(update={"parent": "../nowhere"}))
    with pytest.raises(DataError, match="nowhere/spec.json: no such file"):
        Worker("cpu").do(tmp_path / "b", 0)
    assert json.loads((tmp_path / "b" / "spec.json").read_text())["parent"] == "../nowhere"
    assert PartialError.exit_code == 6
