"""Members of kind "probes": what they measure, on whom, and that nothing changes it."""

import signal
import threading
import time

import numpy as np
import pytest

from rumfast import build_model
from rumfast.errors import DataError
from rumfast.inference import embeddings_of, logits_of
from rumfast.models import initialize_
from rumfast.scores import entanglement_score
from rumfast.store import TEMPORARY
from rumfast.sweeps import LocalEngine, Population
from rumfast.sweeps.spec import ProbeSpec
from rumfast.sweeps.worker import Worker

EXCLUDED = (7, 8)


@pytest.fixture(scope="module")
def forget():
    return tuple(range(0, 120, 3))


@pytest.fixture(scope="module")
def worker():
    return Worker("cpu")


@pytest.fixture(scope="module")
def trained(recipe):
    return recipe.model_copy(update={"width": 8, "epochs": 15})


@pytest.fixture(scope="module")
def parents(spec, trained, forget, worker, tmp_path_factory):
    """Three originals and three oracles."""
    root, found = tmp_path_factory.mktemp("probed"), {}
    for kind, unseen in (("original", ()), ("oracle", forget)):
        fields = {"kind": kind, "include": None, "train": trained, "forget": unseen, "excluded": EXCLUDED}
        found[kind] = Population.create(root / kind, spec.model_copy(update=fields))
        for index in range(3):
            worker.do(found[kind].root, index)
    return found


@pytest.fixture(scope="module")
def probe_spec(spec, trained, forget):
    return spec.model_copy(
        update={
            "kind": "probes",
            "include": None,
            "train": trained.model_copy(update={"batch_size": 16, "lr": 0.01}),
            "forget": forget,
            "excluded": EXCLUDED,
            "probe": ProbeSpec(target=0.95, every=1, most=200),
        }
    )


@pytest.fixture(scope="module")
def probed(parents, probe_spec, worker):
    """Three probes of the originals, of the oracles and of fresh models."""
    root, found = parents["oracle"].root.parent, {}
    for name in ("original", "oracle", "fresh"):
        parent = None if name == "fresh" else f"../{name}"
        population = Population.create(
            root / f"probes-{name}", probe_spec.model_copy(update={"parent": parent})
        )
        for index in range(3):
            assert worker.do(population.root, index)["status"] == "done"
        found[name] = [population.probe(index) for index in range(3)]
    return found


def test_originals_know_the_forget_set_and_fresh_models_have_it_all_to_learn(probed):
    steps = {name: [probe["steps"] for probe in each] for name, each in probed.items()}
    assert steps["original"] == [0, 0, 0]
    assert max(steps["oracle"]) < 20 < min(steps["fresh"])
    for probe in sum(probed.values(), []):
        assert probe["reached"] and len(probe["accuracy"]) == probe["steps"] + 1
        assert probe["accuracy"][-1] >= 0.95


def test_what_is_measured_is_the_model_as_it_was(probed, parents, probe_spec, digits, forget, trained):
    """ES is of the model before it relearns, and of the pool: what earlier requests deleted is in no set."""
    model = build_model(trained.arch, 10, width=trained.width)
    retain, forget = np.setdiff1d(np.arange(300), [*forget, *EXCLUDED]), np.array(forget)
    for name, each in probed.items():
        for index, probe in enumerate(each):
            if name == "fresh":
                initialize_(model, probe_spec.member_seed(index))
            else:
                model.load_state_dict(parents[name].state(index))
            embedding_ND = embeddings_of(model, digits, digits.train)
            by_hand = entanglement_score(embedding_ND[retain], embedding_ND[forget])
            assert probe["entanglement"] == pytest.approx(by_hand, rel=1e-6)
            correct_N = logits_of(model, digits, digits.train).argmax(1) == digits.train.label_N
            assert probe["accuracy"][0] == correct_N[forget].mean()


def test_members_differ_and_do_not_depend_on_who_went_before(probed, probe_spec, tmp_path):
    assert len({tuple(probe["accuracy"]) for probe in probed["fresh"]}) == 3
    for each in probed.values():
        assert len({probe["entanglement"] for probe in each}) == 3
    other = Population.create(tmp_path / "fresh", probe_spec.model_copy(update={"parent": None}))
    Worker("cpu").do(other.root, 2)
    assert other.probe(2) == probed["fresh"][2] and other.done(range(3)) == [2]
    seeded = Population.create(tmp_path / "seed", probe_spec.model_copy(update={"parent": None, "seed": 9}))
    Worker("cpu").do(seeded.root, 2)
    assert seeded.probe(2)["accuracy"] != probed["fresh"][2]["accuracy"]


@pytest.mark.parametrize("lacks", [{"probe": None}, {"forget": ()}])
def test_a_spec_that_cannot_be_measured_is_refused(probe_spec, worker, tmp_path, lacks):
    population = Population.create(tmp_path / "probes", probe_spec.model_copy(update=lacks))
    with pytest.raises(DataError, match="probes need a probe and a forget set"):
        worker.do(population.root, 0)


def test_a_model_that_is_not_there_is_named(probe_spec, parents, worker):
    root = parents["oracle"].root.parent / "probes-missing"
    population = Population.create(root, probe_spec.model_copy(update={"parent": "../oracle"}))
    with pytest.raises(DataError, match="003/model.safetensors"):
        worker.do(population.root, 3)
    assert not population.has(3)


def test_the_identity_is_of_what_members_follow_from(probe_spec, forget):
    moved = probe_spec.data.model_copy(update={"location": "elsewhere"})
    assert probe_spec.model_copy(update={"data": moved}).identity() == probe_spec.identity()
    changes = [
        {"seed": 5},
        {"forget": forget[1:]},
        {"probe": ProbeSpec(target=0.9, every=1, most=200)},
        {"data": probe_spec.data.model_copy(update={"fingerprint": "0" * 64})},
    ]
    assert len({probe_spec.model_copy(update=change).identity() for change in ({}, *changes)}) == 5


@pytest.mark.slow
def test_killed_and_started_again_the_probes_are_the_same(probed, probe_spec, tmp_path):
    """A worker is killed at work; the engine starts another, and a second engine finds nothing left to do."""
    population = Population.create(tmp_path / "killed", probe_spec.model_copy(update={"parent": None}))
    with LocalEngine(1, "cpu") as engine:
        killed = threading.Event()

        def kill():
            while not killed.is_set():
                process = engine.slots[0]._process
                journals = list(population.root.glob("journal/*.jsonl"))
                if process is not None and any('"begun"' in path.read_text() for path in journals):
                    process.send_signal(signal.SIGKILL)
                    killed.set()
                time.sleep(0.001)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        engine.run(population, range(3))
        killer.join(30)
    assert killed.is_set() and len(list(population.root.glob("journal/*.jsonl"))) == 2
    assert [population.probe(index) for index in range(3)] == probed["fresh"]
    assert not list(population.root.rglob(TEMPORARY + "*"))
    stamp = population.member(0).stat().st_mtime_ns
    with LocalEngine(1, "cpu") as engine:
        engine.run(population, range(3))
    assert population.member(0).stat().st_mtime_ns == stamp
