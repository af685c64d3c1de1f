"""Requests one after another: what each may choose from, what is recorded of those before, and where."""

import json
import os
import shutil
from typing import NamedTuple

import numpy as np
import pytest

from rumfast import entanglement_score, load_dataset, load_recipe
from rumfast.config import Recipe, dump_recipe
from rumfast.data import ids_digest
from rumfast.errors import DataError, UsageError
from rumfast.pipeline import Run
from rumfast.store import read_json, read_npz, write_json
from rumfast.sweeps import LocalEngine, Population

N = 120
TWO_STEPS = "low: none > high: finetune(epochs=1)"
REQUESTS = {"first": "entanglement:low:20", "second": "random:15", "third": "entanglement:high:10"}
REFINE = {"first": "random", "second": "random", "third": "distance"}


def recipe_of(data, request, after=None, **forget):
    return Recipe.model_validate(
        {
            "data": {"path": data},
            "train": {"arch": "resnet8", "width": 4, "epochs": 1, "batch_size": 32, "precision": "fp32"},
            "forget": {"request": request, "refine": "random", "groups": 2, "after": after} | forget,
            "plans": [{"name": "two", "steps": TWO_STEPS}],
            "evaluate": {"seeds": 1, "oracles": 3, "mia_examples": 20},
        }
    )


class Chain(NamedTuple):
    """Three runs, each on the one before, and their results."""

    root: object
    data: str
    results: dict

    def forget(self, name):
        return set(read_npz(self.root / name / "forget" / "split.npz")["forget"].tolist())

    def unlearned(self, name):
        return Population.open(self.root / name / "unlearned" / "two")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    root, digits = tmp_path_factory.mktemp("chain"), load_dataset("digits").take(N, 50)
    arrays = {"train_images": digits.train.image_NHWC, "train_labels": digits.train.label_N}
    arrays |= {"test_images": digits.test.image_NHWC, "test_labels": digits.test.label_N}
    np.savez(root / "digits.npz", classes=np.array(digits.classes), **arrays)
    data, results, here = f"npz:{root / 'digits.npz'}", {}, os.getcwd()
    os.chdir(root)  # so that the recipes' paths are relative to it
    try:
        with LocalEngine(1, "cpu") as engine:
            after = None
            for name, request in REQUESTS.items():
                run = Run(recipe_of(data, request, after, refine=REFINE[name]), root / name, engine, "cpu")
                for stage in (run.pack, run.train, run.score, run.refine, run.oracles, run.unlearn):
                    stage()
                results[name] = run.evaluate()
                after = f"{name}/unlearned/two"
    finally:
        os.chdir(here)
    return Chain(root, data, results)


def test_what_was_deleted_never_returns(chain):
    gone = set()
    for name, size in (("first", 20), ("second", 15), ("third", 10)):
        forget = chain.forget(name)
        retain = set(read_npz(chain.root / name / "forget" / "split.npz")["retain"].tolist())
        assert len(forget) == size and not forget & gone and not retain & gone
        assert forget | retain | gone == set(range(N)) and not forget & retain
        for folder in ("oracles", "unlearned/two"):
            spec = Population.open(chain.root / name / folder).spec
            assert set(spec.excluded) == gone and set(spec.forget) == forget
            assert set(spec.retained(N).tolist()) == retain
        groups = read_npz(chain.root / name / "forget" / "groups.npz")
        assert sorted(np.concatenate(list(groups.values()))) == sorted(forget)
        neighbours = read_npz(chain.root / name / "forget" / "neighbours.npz")["id_FK"]
        assert set(neighbours.ravel().tolist()) <= retain
        gone |= forget
    assert Population.open(chain.root / "third" / "oracles").metrics(0)["examples"] == N - 45


def test_each_run_records_all_requests_so_far(chain):
    names = list(REQUESTS)
    for count, name in enumerate(names, 1):
        requests = chain.unlearned(name).spec.requests
        assert [one.request for one in requests] == list(REQUESTS.values())[:count]
        for earlier, one in zip(names, requests, strict=False):
            ids = chain.forget(earlier)
            assert (one.size, one.sha256, one.plan) == (len(ids), ids_digest(sorted(ids)), TWO_STEPS)
            where = (chain.unlearned(name).root / one.path).resolve()
            assert where == (chain.root / earlier / "unlearned" / "two").resolve()
        shown = chain.results[name]["forget"]["earlier"]
        assert [one["request"] for one in shown] == list(REQUESTS.values())[: count - 1]
        assert chain.results[name]["forget"]["excluded"] == sum(one["size"] for one in shown)
        for one in shown:
            assert (chain.root / name / one["path"] / "spec.json").exists()


def test_each_request_starts_from_the_models_of_the_one_before(chain):
    for before, name in (("first", "second"), ("second", "third")):
        population = chain.unlearned(name)
        assert (population.root / population.spec.parent).resolve() == chain.unlearned(before).root.resolve()
        assert not (chain.root / name / "original").exists()


@pytest.mark.parametrize(("name", "level"), [("first", "low"), ("third", "high")])
def test_entanglement_levels_are_named_by_what_was_measured(chain, name, level):
    found = chain.results[name]["forget"]
    measured = found["windows"]["entanglement"]
    assert len(measured) == 15 and found["windows"]["size"] == found["size"]
    chosen = measured[found["windows"]["levels"][level]]
    assert chosen == (min(measured) if level == "low" else max(measured))
    assert found["entanglement"] == pytest.approx(chosen, rel=1e-4)
    assert chain.results["second"]["forget"]["windows"] is None
    # By the definition, over the embeddings of the models that the request starts from.
    split = read_npz(chain.root / name / "forget" / "split.npz")
    run = Run(load_recipe(chain.root / name / "config.toml"), chain.root / name, None, "cpu")
    embedding_ND = run.embedding_ND.double()
    expected = entanglement_score(embedding_ND[split["retain"]], embedding_ND[split["forget"]])
    assert chosen == pytest.approx(expected, rel=1e-4)
    pool = np.sort(np.concatenate([split["retain"], split["forget"]]))
    distance_P = (embedding_ND[pool] - embedding_ND[pool].mean(0)).norm(dim=1).numpy()
    ranks = np.argsort(np.argsort(distance_P, kind="stable"))[np.isin(pool, split["forget"])]
    assert ranks.max() - ranks.min() == len(split["forget"]) - 1  # neighbours in the sorted list
    assert ranks.min() == found["windows"]["start"][found["windows"]["levels"][level]]


def test_it_resumes_from_any_folder_and_trains_nothing(chain, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    stored = chain.root / "third" / "config.toml"
    assert 'after = "../second/unlearned/two"' in stored.read_text()
    recipe = load_recipe(stored)
    assert recipe.forget.after == os.path.realpath(chain.root / "second" / "unlearned" / "two")
    run = Run(recipe, chain.root / "third", None, "cpu")
    for stage in (run.pack, run.refine, run.evaluate):
        stage()
    assert run.evaluate()["forget"] == chain.results["third"]["forget"]
    assert not run.plan_population(recipe.plans[0]).root.is_relative_to(tmp_path)


def test_a_chain_that_moved_as_a_whole_goes_on(chain, tmp_path):
    for name in REQUESTS:
        shutil.copytree(chain.root / name, tmp_path / "moved" / name)
    recipe = load_recipe(tmp_path / "moved" / "third" / "config.toml")
    assert recipe.forget.after == os.path.realpath(tmp_path / "moved" / "second" / "unlearned" / "two")
    run = Run(recipe, tmp_path / "moved" / "third", None, "cpu")
    run.pack()
    assert len(run.excluded) == 35 and run.plan_population(recipe.plans[0]).has(0)


def test_paths_of_older_runs_are_read_from_where_one_is(chain, monkeypatch, tmp_path):
    monkeypatch.chdir(chain.root)
    (tmp_path / "config.toml").write_text(
        dump_recipe(recipe_of(chain.data, "random:5", "second/unlearned/two"))
    )
    found = load_recipe(tmp_path / "config.toml").forget.after
    assert found == os.path.realpath(chain.root / "second" / "unlearned" / "two")


def test_of_older_records_the_ids_at_least_are_told(chain, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(chain.root / name, tmp_path / name)
        path = tmp_path / name / "unlearned" / "two" / "spec.json"
        spec = read_json(path)
        del spec["requests"]
        write_json(path, spec)
    run = Run(recipe_of(chain.data, "random:5", str(path.parent)), tmp_path / "third", None, "cpu")
    before, last = run.requests(run.dir.root)
    assert (before.request, before.plan, before.size) == (None, None, 20)
    assert before.sha256 == ids_digest(sorted(chain.forget("first")))
    assert (last.request, last.plan, last.size, last.path) == (None, TWO_STEPS, 15, "../second/unlearned/two")
    # Opened again by its own run, the older one's record is completed.
    again = load_recipe(tmp_path / "first" / "config.toml")
    Run(again, tmp_path / "first", None, "cpu").plan_population(again.plans[0])
    (own,) = Population.open(tmp_path / "first" / "unlearned" / "two").spec.requests
    assert own.request == REQUESTS["first"]


@pytest.mark.parametrize("name", ["first", "second"])
def test_no_id_can_be_deleted_again(chain, name, tmp_path):
    gone = max(chain.forget(name))
    (tmp_path / "ids.txt").write_text(f"{gone}\n")
    after = str(chain.unlearned("second").root)
    run = Run(recipe_of(chain.data, f"ids:{tmp_path / 'ids.txt'}", after), tmp_path / "run", None, "cpu")
    with pytest.raises(DataError, match=f"id {gone} was deleted by an earlier request"):
        run.pack()
    assert not (tmp_path / "run" / "config.toml").exists()


def test_sizes_are_of_what_is_left(chain, tmp_path):
    after = str(chain.unlearned("second").root)
    for request, message in (
        ("entanglement:mid:85", "found 85, expected 1..84"),
        ("random:86", "found 86, expected 1..85"),
        ("entanglement:mid:1", None),
        ("entanglement:mid:84", None),
    ):
        run = Run(
            recipe_of(chain.data, request, after, groups=1, refine="none"), tmp_path / "run", None, "cpu"
        )
        run.recipe = run.recipe.model_copy(update={"plans": ()})
        if message is None:
            run.pack()
        else:
            with pytest.raises(UsageError, match=message):
                run.pack()
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_a_rehearsal_cannot_know_the_classes_of_an_entangled_set(chain, tmp_path):
    recipe = recipe_of(chain.data, "entanglement:mid:9", refine="class")
    named = [{"name": "a", "steps": "class-7: none > class-9: finetune"}]
    run = Run(Recipe.model_validate(recipe.model_dump() | {"plans": named}), tmp_path / "a", None, "cpu")
    run.pack()
    wrong = [{"name": "a", "steps": "class-7: nothing"}]
    run = Run(Recipe.model_validate(recipe.model_dump() | {"plans": wrong}), tmp_path / "b", None, "cpu")
    with pytest.raises(UsageError, match="'nothing' is unknown"):
        run.pack()
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["schema"] == "rumfast/manifest/1"
