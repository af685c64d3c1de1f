"""A whole run on a tiny recipe: its numbers, what it never does twice, and that it survives being killed."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rumfast import RumfastError, load_recipe, run
from rumfast.config import Recipe
from rumfast.errors import DataError, DivergedError, MismatchError, PartialError, StorageError, UsageError
from rumfast.pipeline import STAGES, Run
from rumfast.pipeline.assess import geometry_of, neighbours_of
from rumfast.store import TEMPORARY, read_json, read_npz
from rumfast.sweeps import Population

pytestmark = pytest.mark.slow

PLANS = [
    {"name": "none", "steps": "none"},
    {"name": "rum", "steps": "low: none > high: neggrad_plus(epochs=2)"},
    {"name": "shuffle", "steps": "each: finetune(epochs=1)", "refine": "random"},
]


def make_recipe(path, **sections):
    base = {
        "data": {"path": str(path), "train_examples": 200, "test_examples": 100},
        "train": {"arch": "resnet8", "width": 4, "epochs": 2, "batch_size": 64, "precision": "fp32"},
        "sweep": {"members": 8},
        "forget": {"request": "memorization:mixed:30", "groups": 2},
        "unlearn": {"budget_epochs": 1.5},
        "plans": PLANS,
        "evaluate": {"seeds": 2, "oracles": 3, "mia_examples": 60},
    }
    merged = {
        key: base.get(key, {}) | value if isinstance(value, dict) else value
        for key, value in sections.items()
    }
    return Recipe.model_validate(base | merged)


@pytest.fixture(scope="module")
def recipe(packed):
    return make_recipe(packed)


@pytest.fixture(scope="module")
def unbroken(recipe, tmp_path_factory):
    """The folder of a run that nothing disturbed, with its results."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    return out, run(recipe, out, device="cpu", workers=2)


def digests(out, *, models=True):
    """Content of everything that has to be the same whatever happened on the way."""
    found = {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*.safetensors"))
    }
    for path in sorted(out.rglob("*.npz")):
        arrays = read_npz(path)
        found[str(path.relative_to(out))] = hashlib.sha256(
            b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays))
        ).hexdigest()
    for name in ("evaluation/summary.json", "scores/geometry.json", "config.toml"):
        found[name] = hashlib.sha256((out / name).read_bytes()).hexdigest()
    return found


def stamps(*folders):
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_ino)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "journal"
    }


def populations(out):
    return [out / name for name in ("original", "oracles", "sweep", "unlearned")]


def test_every_stage_reports_and_leaves_its_files(unbroken, recipe):
    out, results = unbroken
    assert list(results) == list(STAGES)
    assert results["pack"]["train"] == 200 and results["sweep"]["members"] == 8
    assert len(list((out / "sweep" / "members").iterdir())) == 8
    assert sorted(path.name for path in (out / "unlearned").iterdir()) == ["none", "rum", "shuffle"]
    for folder, models in ((out / "original", 2), (out / "oracles", 3), (out / "unlearned" / "rum", 2)):
        names = [f"{index:03d}" for index in range(models)]
        assert sorted(path.name for path in folder.iterdir()) == [*names, "journal", "spec.json"]
    assert load_recipe(out / "config.toml") == recipe
    assert "<html" in (out / "report" / "index.html").read_text()
    assert not [path for path in out.rglob(TEMPORARY + "*")]


def test_the_forget_set_its_groups_and_the_retain_set_partition_the_data(unbroken):
    out, _ = unbroken
    split, groups = read_npz(out / "forget" / "split.npz"), read_npz(out / "forget" / "groups.npz")
    assert sorted([*split["forget"], *split["retain"]]) == list(range(200)) and len(split["forget"]) == 30
    assert sorted([*groups["low"], *groups["high"]]) == split["forget"].tolist() and len(groups["low"]) == 15
    score_N = read_npz(out / "scores" / "memorization.npz")["memorization"]
    assert score_N[groups["low"]].max() <= score_N[groups["high"]].min()
    for name in ("oracles", "unlearned/rum", "unlearned/shuffle"):
        assert list(Population.open(out / name).spec.forget) == split["forget"].tolist()


def test_the_neighbours_are_the_nearest_that_stay(unbroken, recipe):
    out, results = unbroken
    embedding_ND = Run(recipe, out, None, "cpu").embedding_ND.double()
    split, found = read_npz(out / "forget" / "split.npz"), read_npz(out / "forget" / "neighbours.npz")
    distance_FR = torch.cdist(
        embedding_ND[split["forget"]],
        embedding_ND[split["retain"]],
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    nearest = distance_FR.topk(5, largest=False)
    np.testing.assert_allclose(found["distance_FK"], nearest.values, rtol=1e-5)
    assert (found["id_FK"] == split["retain"][nearest.indices]).mean() > 0.99  # but for ties
    geometry = read_json(out / "scores" / "geometry.json")
    assert geometry["forget"]["mean_distance"] == pytest.approx(float(distance_FR.mean()), rel=1e-5)
    assert list(geometry) == ["forget", "group/low", "group/high"]
    assert results["refine"]["entanglement"] == geometry["forget"]["entanglement"]
    assert "What stays nearby" in (out / "report" / "index.html").read_text()


@pytest.mark.gpu
def test_geometry_is_computed_where_the_embeddings_lie(unbroken, recipe):
    """On CUDA beside what the run has computed on a CPU; there the same to the last bit."""
    device, stored = "cuda" if torch.cuda.is_available() else "cpu", unbroken[0]
    here = Run(recipe, stored, None, device)
    assert here.embedding_ND.device.type == device and here.embedding_ND.dtype == torch.float32
    assert here.embedded(np.array([7, 3])).device == here.embedding_ND.device
    torch.testing.assert_close(here.embedded(np.array([7, 3])), here.embedding_ND[[7, 3]])
    slack = 0 if device == "cpu" else 0.02
    geometry = geometry_of(here)
    for name, expected in read_json(stored / "scores" / "geometry.json").items():
        assert geometry[name] == pytest.approx(expected, rel=slack, abs=slack)
    neighbours, found = read_npz(stored / "forget" / "neighbours.npz"), neighbours_of(here)
    np.testing.assert_allclose(found["distance_FK"], neighbours["distance_FK"], rtol=slack)
    assert (found["id_FK"] == neighbours["id_FK"]).mean() > (0.9 if device == "cuda" else 0.999)


def test_refined_by_distance_the_groups_are_ordered_by_it(packed, tmp_path):
    recipe = make_recipe(packed, forget={"request": "random:21", "refine": "distance"}, plans=PLANS[:1])
    found = run(recipe, tmp_path / "run", until="refine", device="cpu", workers=1)
    assert found["sweep"]["members"] == 0 and found["refine"]["groups"] == {"low": 11, "high": 10}
    groups = read_npz(tmp_path / "run" / "forget" / "groups.npz")
    embedding_ND = Run(recipe, tmp_path / "run", None, "cpu").embedding_ND.double()
    exact_N = (embedding_ND - embedding_ND.mean(0)).norm(dim=1)
    distance_N = read_npz(tmp_path / "run" / "scores" / "distance.npz")["distance_N"]
    np.testing.assert_allclose(distance_N, exact_N, rtol=1e-5)
    assert distance_N[groups["low"]].max() <= distance_N[groups["high"]].min()


def test_the_summary_follows_from_the_stored_outputs(unbroken):
    out, _ = unbroken
    split, summary = read_npz(out / "forget" / "split.npz"), read_json(out / "evaluation" / "summary.json")
    data = Run(load_recipe(out / "config.toml"), out, None, "cpu").data

    def accuracies(folder):
        for index in range(3 if folder == "oracles" else 2):
            outputs = read_npz(out / folder / f"{index:03d}" / "outputs.npz")
            correct = outputs["train"].argmax(1) == data.train.label_N
            yield (
                correct[split["forget"]].mean(),
                correct[split["retain"]].mean(),
                (outputs["test"].argmax(1) == data.test.label_N).mean(),
            )

    oracles = list(accuracies("oracles"))
    assert [plan["name"] for plan in summary["plans"]] == ["none", "rum", "shuffle"]
    for plan in summary["plans"]:
        tow = [
            np.mean(
                [np.prod([1 - abs(a - b) for a, b in zip(model, oracle, strict=True)]) for oracle in oracles]
            )
            for model in accuracies(f"unlearned/{plan['name']}")
        ]
        assert plan["metrics"]["tow"]["values"] == pytest.approx(tow, abs=1e-9)
        assert plan["metrics"]["tow"]["mean"] == pytest.approx(np.mean(tow), abs=1e-9)
    assert summary["reference"]["oracle"]["accuracy_test"]["values"] == pytest.approx(
        [one[2] for one in oracles]
    )
    assert summary["reference"]["original"]["accuracy_retain"]["values"] == pytest.approx(
        [one[1] for one in accuracies("original")]
    )


def test_plans_of_one_budget_cost_the_same_but_for_none(unbroken):
    summary = read_json(unbroken[0] / "evaluation" / "summary.json")
    none, rum, shuffle = (plan["examples"] for plan in summary["plans"])
    assert none == 0 and summary["budget_examples"] == 300
    assert 299 <= rum <= 300 + 128 and 299 <= shuffle <= 300 + 128
    assert summary["plans"][1]["cost"] == pytest.approx(rum / (2 * 170))


def test_unlearning_by_none_gives_the_original(unbroken):
    for index in ("000", "001"):
        original, none = (
            load_file(unbroken[0] / name / index / "model.safetensors")
            for name in ("original", "unlearned/none")
        )
        assert all((original[name] == none[name]).all() for name in original)


def test_a_second_run_trains_nothing_and_says_the_same(unbroken, recipe):
    out, _ = unbroken
    before, files = digests(out), stamps(*populations(out))
    run(recipe, out, device="cpu", workers=1)
    assert digests(out) == before and stamps(*populations(out)) == files


def test_more_plans_and_oracles_only_add(unbroken, recipe, tmp_path):
    import shutil

    out = shutil.copytree(unbroken[0], tmp_path / "run")
    before = stamps(*populations(out))
    more = make_recipe(
        recipe.data.path,
        plans=[*PLANS, {"name": "vanilla", "steps": "finetune"}],
        evaluate={"oracles": 4},
        name="renamed",
    )
    run(more, out, device="cpu", workers=1)
    after = stamps(*populations(out))
    assert before.items() <= after.items()
    assert {path.relative_to(out).parts[:2] for path in after.keys() - before.keys()} == {
        ("oracles", "003"),
        ("unlearned", "vanilla"),
    }


def test_the_summary_counts_diverged_members_and_names_each_plans_retain_set(unbroken, recipe, tmp_path):
    assert read_json(unbroken[0] / "evaluation" / "summary.json")["sweep"]["diverged"] == 0
    import shutil

    out = shutil.copytree(unbroken[0], tmp_path / "run")
    final = [{"name": "final", "steps": "low: none > high: finetune(epochs=1)", "retain": "final"}]
    summary = run(make_recipe(recipe.data.path, plans=final), out, device="cpu", workers=1)["evaluate"]
    assert [plan["retain"] for plan in summary["plans"]] == ["final"]
    assert Population.open(out / "unlearned" / "final").spec.retain == "final"


def test_a_run_whose_data_moved_goes_on(unbroken, recipe, tmp_path):
    import shutil

    out = shutil.copytree(unbroken[0], tmp_path / "run")
    elsewhere = shutil.copytree(recipe.data.path, tmp_path / "data")
    spec = Population.open(out / "original").spec
    moved = spec.model_copy(update={"data": spec.data.model_copy(update={"location": str(elsewhere)})})
    assert Population.create(out / "original", moved).spec == moved == Population.open(out / "original").spec
    other = moved.model_copy(update={"data": moved.data.model_copy(update={"fingerprint": "0" * 64})})
    with pytest.raises(MismatchError, match="data.fingerprint"):
        Population.create(out / "original", other)


@pytest.mark.parametrize(("field", "value"), [("label_noise", 0.2), ("source", "digits"), ("seed", 3)])
def test_a_pack_of_another_origin_is_refused(field, value, tmp_path, monkeypatch):
    """The recipe's source is compared with what the folder was packed from, not packed over it."""
    from rumfast.pipeline import context

    origin = {"source": "npz:a.npz", "label_noise": 0.1, "seed": 0}
    (tmp_path / "dataset.json").touch()
    monkeypatch.setattr(context, "dataset_info", lambda path: origin)
    chosen = make_recipe(str(tmp_path), data=origin | {field: value})
    with pytest.raises(MismatchError, match=f"packed with {field} {origin[field]}, the recipe says {value}"):
        Run(chosen, tmp_path / "run", None, "cpu").data  # noqa: B018


def test_a_diverging_plan_is_named_and_the_others_are_done(unbroken, recipe, tmp_path):
    import shutil

    out = shutil.copytree(unbroken[0], tmp_path / "run")
    plans = [{"name": "wild", "steps": "finetune(lr=1e30)"}, {"name": "tame", "steps": "finetune(lr=0.01)"}]
    with pytest.raises(DivergedError, match="plans wild diverged, the others are done"):
        run(make_recipe(recipe.data.path, plans=plans), out, device="cpu", workers=1)
    assert not list((out / "unlearned" / "wild").glob("0*"))
    assert len(list((out / "unlearned" / "tame").glob("0*"))) == 2


CHANGES = {
    "data.train_examples": {"data": {"train_examples": 199}},
    "data.test_examples": {"data": {"test_examples": 99}},
    "data.seed": {"data": {"seed": 1}},
    "data.label_noise": {"data": {"label_noise": 0.2}},
    "data.path": {"data": {"path": "elsewhere"}},
    "train.arch": {"train": {"arch": "resnet9"}},
    "train.width": {"train": {"width": 8}},
    "train.epochs": {"train": {"epochs": 3}},
    "train.batch_size": {"train": {"batch_size": 32}},
    "train.lr": {"train": {"lr": 0.2}},
    "train.momentum": {"train": {"momentum": 0.8}},
    "train.weight_decay": {"train": {"weight_decay": 0.0}},
    "train.schedule": {"train": {"schedule": "constant"}},
    "train.warmup_epochs": {"train": {"warmup_epochs": 1.0}},
    "train.flip": {"train": {"flip": True}},
    "train.precision": {"train": {"precision": "bf16"}},
    "train.seed": {"train": {"seed": 1}},
    "sweep.include": {"sweep": {"include": 0.5}},
    "sweep.seed": {"sweep": {"seed": 1}},
    "forget.request": {"forget": {"request": "random:30"}},
    "forget.groups": {"forget": {"groups": 3}},
    "unlearn.retain": {"unlearn": {"retain": "final"}},
    "unlearn.budget_epochs": {"unlearn": {"budget_epochs": 2.0}},
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_is_refused_by_name_before_anything_is_touched(unbroken, recipe, field):
    out, _ = unbroken
    before = stamps(out)
    with pytest.raises(
        MismatchError, match=rf"config.toml: made with another configuration: {field}: there "
    ) as error:
        run(make_recipe(recipe.data.path, **CHANGES[field]), out, device="cpu")
    assert error.value.exit_code == 3 and str(error.value).count(": there ") == 1
    assert stamps(out) == before


def test_a_changed_plan_under_an_old_name_is_refused(unbroken, recipe):
    changed = make_recipe(recipe.data.path, plans=[{"name": "rum", "steps": "low: none > high: finetune"}])
    with pytest.raises(
        MismatchError, match="unlearned/rum: made with another configuration: plan: there low: none"
    ):
        Run(changed, unbroken[0], None, "cpu").plan_population(changed.plans[0])


def test_stages_that_lack_their_input_say_so(recipe, tmp_path):
    conductor = Run(recipe, tmp_path / "run", None, "cpu")
    conductor.pack()
    with pytest.raises(PartialError, match="8 of 8 members are missing; run the sweep"):
        conductor.score()
    with pytest.raises(DataError, match="memorization.npz: no such file"):
        conductor.refine()


def test_mistakes_are_found_before_a_sweep(packed, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file: cannot be made a directory"):
        run(make_recipe(packed), tmp_path / "file", device="cpu")
    with pytest.raises(UsageError, match="'scrubb' is unknown"):
        run(make_recipe(packed, plans=[{"name": "x", "steps": "scrubb"}]), tmp_path / "x", device="cpu")
    assert not list((tmp_path / "x").rglob("*"))


def test_until_stops_there(recipe, tmp_path):
    assert list(run(recipe, tmp_path / "run", until="pack", device="cpu")) == ["pack"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.toml", "manifest.json"]


# ---- a second request, after the first --------------------------------------------------------------------


@pytest.fixture(scope="module")
def second(unbroken, packed, tmp_path_factory):
    """A run that forgets 20 more examples from what the plan ``rum`` left."""
    out = tmp_path_factory.mktemp("second") / "run"
    after = str(unbroken[0] / "unlearned" / "rum")
    recipe = make_recipe(
        packed,
        forget={"request": "random:20", "groups": 2, "refine": "random", "after": after},
        plans=[{"name": "none", "steps": "none"}, {"name": "ft", "steps": "finetune(epochs=1)"}],
    )
    before = stamps(*populations(unbroken[0]))
    run(recipe, out, device="cpu", workers=1)
    assert stamps(*populations(unbroken[0])) == before  # the first request's models are only read
    return out, recipe


def test_a_second_request_forgets_in_addition(unbroken, second):
    first, now = (read_npz(out / "forget" / "split.npz") for out in (unbroken[0], second[0]))
    gone = set(first["forget"].tolist())
    assert (
        len(now["forget"]) == 20
        and not gone & set(now["forget"].tolist())
        and not gone & set(now["retain"].tolist())
    )
    assert len(now["retain"]) == 200 - 30 - 20
    for name in ("oracles", "unlearned/ft"):
        spec = Population.open(second[0] / name).spec
        assert set(spec.excluded) == gone and set(spec.retained(200)) == set(now["retain"].tolist())
    assert Population.open(second[0] / "oracles").metrics(0)["examples"] == 2 * 150


def test_a_second_request_starts_from_the_unlearned_models(unbroken, second):
    for index in ("000", "001"):
        earlier = load_file(unbroken[0] / "unlearned" / "rum" / index / "model.safetensors")
        start = load_file(second[0] / "unlearned" / "none" / index / "model.safetensors")
        assert all((earlier[name] == start[name]).all() for name in earlier)
    assert not (second[0] / "original").exists()


def again(packed, second, **forget):
    return make_recipe(
        packed,
        forget={"groups": 2, "refine": "random", "after": second[1].forget.after} | forget,
        plans=[{"name": "none", "steps": "none"}],
    )


def test_an_id_cannot_be_deleted_twice(unbroken, second, packed, tmp_path):
    gone = int(read_npz(unbroken[0] / "forget" / "split.npz")["forget"][3])
    (tmp_path / "ids.txt").write_text(f"{gone}\n")
    with pytest.raises(DataError, match=f"id {gone} was deleted by an earlier request"):
        Run(again(packed, second, request=f"ids:{tmp_path / 'ids.txt'}"), tmp_path / "run", None, "cpu").split  # noqa: B018


def test_something_must_be_left_to_retain(unbroken, second, packed, tmp_path):
    np.save(tmp_path / "ids.npy", read_npz(unbroken[0] / "forget" / "split.npz")["retain"])
    with pytest.raises(DataError, match="nothing would be left to retain"):
        Run(again(packed, second, request=f"ids:{tmp_path / 'ids.npy'}"), tmp_path / "run", None, "cpu").split  # noqa: B018


def test_requests_after_requests_keep_everything_deleted(unbroken, second, packed, tmp_path):
    third = make_recipe(
        packed,
        forget={
            "request": "random:5",
            "groups": 2,
            "refine": "random",
            "after": str(second[0] / "unlearned" / "ft"),
        },
    )
    gone = {
        int(i) for out in (unbroken[0], second[0]) for i in read_npz(out / "forget" / "split.npz")["forget"]
    }
    conductor = Run(third, tmp_path / "run", None, "cpu")
    assert set(conductor.excluded) == gone and len(gone) == 50
    assert not gone & set(conductor.split.forget.tolist()) and len(conductor.split.retain) == 145


def test_an_earlier_request_must_fit(second, packed, tmp_path):
    after = second[1].forget.after
    with pytest.raises(DataError, match="unlearned from other data"):
        Run(  # noqa: B018
            make_recipe(packed, data={"train_examples": 150}, forget={"request": "random:9", "after": after}),
            tmp_path / "a",
            None,
            "cpu",
        ).excluded
    with pytest.raises(MismatchError, match="lr: there 0.1, here 0.2"):
        Run(  # noqa: B018
            make_recipe(packed, train={"lr": 0.2}, forget={"request": "random:9", "after": after}),
            tmp_path / "b",
            None,
            "cpu",
        ).originals
    with pytest.raises(UsageError, match="evaluate.seeds: got 3, but .*unlearned/rum holds 2 models"):
        Run(
            make_recipe(packed, forget={"request": "random:9", "after": after}, evaluate={"seeds": 3}),
            tmp_path / "c",
            None,
            "cpu",
        ).train()
    with pytest.raises(DataError, match="nowhere/spec.json: no such file"):
        Run(  # noqa: B018
            make_recipe(packed, forget={"request": "random:9", "after": str(tmp_path / "nowhere")}),
            tmp_path / "d",
            None,
            "cpu",
        ).excluded


# ---- being killed ------------------------------------------------------------------------------------------

DRIVER = """
import sys
from rumfast.config import load_recipe
from rumfast.pipeline import run
run(load_recipe(sys.argv[1]), sys.argv[2], device="cpu", workers=2)
"""


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


@pytest.mark.faults
def test_killed_at_random_and_started_again_it_ends_with_the_same_bytes(unbroken, recipe, tmp_path):
    from rumfast.config import dump_recipe

    rng, kills, out = random.Random(1), 0, tmp_path / "run"
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "recipe.toml"), str(out)]
    for attempt in range(30):
        # Two threads where the unbroken run had one: nothing may depend on it.
        process = subprocess.Popen(
            command,
            start_new_session=True,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "2"},
        )
        try:
            process.wait(timeout=rng.uniform(2.5, 6) if attempt < 5 else 120)
        except subprocess.TimeoutExpired:
            kills += 1
            # Half of the time the workers outlive the conductor, and finish what they do beside its
            # successor.
            for pid in [*(children(process.pid) if rng.random() < 0.5 else []), process.pid]:
                kill(pid)
        if process.wait() == 0:
            break
        assert not [
            path
            for path in out.rglob("*")
            if path.is_dir()
            and not path.name.startswith(TEMPORARY)
            and path.name.isdigit()
            and len(list(path.iterdir())) != 3
        ]  # no half of a model
    assert process.returncode == 0 and kills
    time.sleep(0.5)
    assert digests(out) == digests(unbroken[0])
    assert (
        json.loads((out / "manifest.json").read_text())["fingerprint"]
        == json.loads((unbroken[0] / "manifest.json").read_text())["fingerprint"]
    )


def test_errors_have_distinct_exit_codes():
    codes = {error.__name__: error.exit_code for error in RumfastError.__subclasses__()}
    assert codes == {
        "UsageError": 2,
        "MismatchError": 3,
        "DataError": 4,
        "StorageError": 5,
        "PartialError": 6,
        "DivergedError": 6,
    }
