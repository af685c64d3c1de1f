"""A plan that was killed between or within its steps goes on where it was, and ends with the same bits."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from rumfast.algorithms import ALGORITHMS
from rumfast.errors import DivergedError
from rumfast.store import TEMPORARY, remove_partial
from rumfast.sweeps import Population
from rumfast.sweeps.spec import GroupSpec
from rumfast.sweeps.worker import Worker

PLAN = "g1: none > g2: finetune(epochs=1) > g3: salun(epochs=1) > g4: neggrad_plus(epochs=1)"
STEPS = ["none", "finetune", "salun", "neggrad_plus"]
FORGET = tuple(range(0, 40, 2))

# The k-th batch that a plan asks for is the worker's last.
KILLED = """
import os, signal, sys
from rumfast.sweeps.worker import do_chunk
from rumfast.training import Learner
left, batches = int(sys.argv[2]), Learner.batches
def counted(self, *arguments):
    global left
    for batch in batches(self, *arguments):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch
Learner.batches = counted
do_chunk(sys.argv[1], [0], "cpu")
"""


@pytest.fixture(scope="module")
def family(tmp_path_factory, spec):
    """One original, and what an undisturbed worker made of it; ``family(name)`` is a population like it."""
    root, base = tmp_path_factory.mktemp("family"), spec.model_copy(update={"include": None, "seed": 1})
    Population.create(root / "original", base.model_copy(update={"kind": "original"}))
    Worker("cpu").do(root / "original", 0)
    groups = tuple(GroupSpec(name=f"g{k + 1}", ids=FORGET[5 * k : 5 * k + 5]) for k in range(4))
    common = {"kind": "unlearned", "forget": FORGET, "groups": groups, "parent": "../original", "plan": PLAN}

    def create(name, **fields):
        return Population.create(root / name, base.model_copy(update=common | fields))

    Worker("cpu").do(create("unbroken").root, 0)
    return create


@pytest.fixture
def calls(monkeypatch):
    """Names of the algorithms that run in this process."""
    seen = []
    for name, algorithm in ALGORITHMS.items():

        def run(*arguments, name=name, algorithm=algorithm):
            seen.append(name)
            algorithm.run(*arguments)

        monkeypatch.setitem(ALGORITHMS, name, algorithm._replace(run=run))
    return seen


def assert_equal(population, reference):
    files = [each.member(0) / "model.safetensors" for each in (population, reference)]
    assert files[0].read_bytes() == files[1].read_bytes()
    ours, theirs = population.state(0), reference.state(0)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for part in ("train", "test"):
        np.testing.assert_array_equal(population.outputs(0)[part], reference.outputs(0)[part])
    mine, its = (each.metrics(0) for each in (population, reference))
    for metrics in (mine, its):  # the seconds differ
        metrics.pop("wall_s")
        for record in metrics["records"]:
            assert record.pop("wall_s") >= 0
    assert mine == its
    assert sorted(path.name for path in population.root.iterdir()) == ["000", "journal", "spec.json"]


# 300 examples in batches of 64: five batches for fine-tuning on R and two groups, then five for salun.
@pytest.mark.parametrize(("batch", "rest"), [(2, STEPS), (7, STEPS[2:]), (13, STEPS[3:])])
def test_killed_within_a_step_it_resumes_at_that_step(batch, rest, family, calls):
    population = family(f"killed-{batch}")
    command = [sys.executable, "-c", KILLED, str(population.root), str(batch)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert not population.has(0)
    assert (population.checkpoint(0) is None) == (len(rest) == 4)
    Worker("cpu").do(population.root, 0)
    assert calls == rest
    remove_partial(population.root)
    assert_equal(population, family("unbroken"))


def test_metrics_tell_what_each_step_took_and_was_asked_to(family):
    budgeted = family("budgeted", budget=700)
    Worker("cpu").do(budgeted.root, 0)
    metrics = budgeted.metrics(0)
    records = metrics["records"]
    assert [record["text"] for record in records] == metrics["steps"] and metrics["budget"] == 700
    assert sum(record["asked"] for record in records) == pytest.approx(700)
    assert sum(record["examples"] for record in records) == metrics["examples"] >= 699
    assert sum(record["wall_s"] for record in records) == pytest.approx(metrics["wall_s"])
    unbudgeted = family("unbroken").metrics(0)
    assert unbudgeted["budget"] is None
    # 280 retained and ten to come; then five to come, salun's own five, and those again for saliency.
    assert [record["asked"] for record in unbudgeted["records"][:3]] == [0, 290, 280 + 5 + 5 + 5]
    assert [record["examples"] for record in unbudgeted["records"][:3]] == [0, 290, 295]


def test_checkpoints_are_written_between_steps_that_train_and_nowhere_else(family, monkeypatch):
    written, save = [], Population.save_checkpoint

    def note(self, index, state, done):
        written.append((self.root.name, [record["text"] for record in done]))
        save(self, index, state, done)
        assert self.checkpoint(index)[1] == done

    monkeypatch.setattr(Population, "save_checkpoint", note)
    for name, plan in (("noted", PLAN), ("one", "finetune(epochs=1)"), ("idle", "each: none")):
        Worker("cpu").do(family(name, plan=plan).root, 0)
    texts = ["g1: none", "g2: finetune(epochs=1)", "g3: salun(epochs=1)"]
    assert written == [("noted", texts[:2]), ("noted", texts)]


def some_state(value=1.0):
    return {"weight": torch.full((3, 2), value), "count": torch.tensor(4)}


def test_a_damaged_checkpoint_or_one_of_another_plan_is_as_none(family):
    population = family("damaged")
    population.save_checkpoint(0, some_state(), [{"text": "g1: none"}])
    (path,) = population.root.glob("*.safetensors")
    state, done = population.checkpoint(0)
    assert torch.equal(state["weight"], some_state()["weight"]) and done == [{"text": "g1: none"}]
    content = path.read_bytes()
    for place in (content.index(b"g1: none"), len(content) - 30):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert population.checkpoint(0) is None
    path.write_bytes(content[:100])
    assert population.checkpoint(0) is None
    path.write_bytes(content)
    assert population.checkpoint(0) is not None and population.checkpoint(1) is None
    other = Population(population.root, population.spec.model_copy(update={"forget": FORGET[:-1]}))
    assert other.checkpoint(0) is None
    moved = population.spec.data.model_copy(update={"location": "elsewhere"})
    same = Population(population.root, population.spec.model_copy(update={"data": moved}))
    assert same.checkpoint(0) is not None


def test_checkpoints_of_complete_members_go_and_others_stay(family):
    population = family("left")
    for index in (0, 1):
        population.save_checkpoint(index, some_state(index), [])
    population.save_model(0, some_state(), np.zeros((2, 2)), np.zeros((2, 2)), {})
    population.discard_checkpoints(range(2))
    assert population.checkpoint(0) is None and population.checkpoint(1) is not None
    population.save_checkpoint(0, some_state(), [])  # a slower worker's, whose member exists by now
    assert population.checkpoint(0) is None and population.done(range(3)) == [0]


def test_after_a_step_diverged_the_steps_before_it_are_kept(family, calls):
    population = family("wild", plan=PLAN.replace("salun(epochs=1)", "salun(lr=1e30, epochs=1)"))
    for expected in (STEPS[:3], STEPS[2:3]):
        with pytest.raises(DivergedError):
            Worker("cpu").do(population.root, 0)
        assert calls == expected
        calls.clear()
    assert not [path for path in population.root.rglob(TEMPORARY + "*")]
    assert json.loads((population.root / "spec.json").read_text())["kind"] == "unlearned"
