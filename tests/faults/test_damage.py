"""Fault 5: every kind of file that is read back, cut short 300 times and with 300 single bits flipped."""

import json

import numpy as np
import pytest

from rumfast.config import load_recipe
from rumfast.errors import DataError, RumfastError
from rumfast.pipeline.stages import Run
from rumfast.store import content_digest, read_json, read_npz, write_json, write_npz
from rumfast.sweeps import LocalEngine, Population
from rumfast.sweeps.journal import read_history
from rumfast.sweeps.records import is_diverged
from rumfast.sweeps.worker import Worker

TIMES = 300


@pytest.fixture(scope="module")
def model(spec, tmp_path_factory):
    """A trained original."""
    root = tmp_path_factory.mktemp("original")
    population = Population.create(root, spec.model_copy(update={"kind": "original", "include": None}))
    Worker("cpu").do(root, 0)
    return population


@pytest.fixture
def files(copy, model, tmp_path):
    """Each kind of file, and what reads it back."""
    draw = np.random.default_rng(0)
    scores = {"score_N": draw.random(500), "label_N": np.arange(500) % 10, "diverged": np.array(0)}
    write_npz(tmp_path / "memorization.npz", scores)
    metrics = {str(k): {"mean": draw.random(), "values": draw.random(3).tolist()} for k in range(9)}
    write_json(tmp_path / "summary.json", {"schema": "rumfast/evaluation/1", "metrics": metrics, "seeds": 3})
    folder = model.member(0)
    return {
        "record": (copy.member(7), lambda path: vars(copy.record(7))),
        "spec": (copy.root / "spec.json", lambda path: Population.open(copy.root).spec),
        "weights": (folder / "model.safetensors", lambda path: model.state(0)),
        "outputs": (folder / "outputs.npz", lambda path: model.outputs(0)),
        "metrics": (folder / "metrics.json", lambda path: model.metrics(0)),
        "scores": (tmp_path / "memorization.npz", read_npz),
        "evaluation": (tmp_path / "summary.json", read_json),
    }


def damages(content):
    """300 truncations, then 300 single flipped bits."""
    draw = np.random.default_rng(len(content))
    for size in draw.choice(len(content), TIMES, replace=len(content) < TIMES):
        yield f"cut at {size}", content[:size]
    for bit in draw.choice(8 * len(content), TIMES, replace=False):
        hurt = bytearray(content)
        hurt[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(hurt)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["record", "spec", "weights", "outputs", "metrics", "scores", "evaluation"])
def test_damage_is_caught_and_the_file_named(files, kind):
    path, read = files[kind]
    content, whole = path.read_bytes(), read(path)
    assert whole
    try:
        for what, hurt in damages(content):
            path.write_bytes(hurt)
            with pytest.raises(DataError) as error:
                read(path)
                pytest.fail(f"{what} was not seen")
            assert str(path) in str(error.value) and "\n" not in str(error.value), what
    finally:
        path.write_bytes(content)


@pytest.mark.faults
def test_a_damaged_journal_or_glance_at_a_record_never_ends_in_another_error(copy):
    path = next((copy.root / "journal").iterdir())
    content = path.read_bytes()
    for what, hurt in damages(content):
        path.write_bytes(hurt)
        history = read_history(copy.root)
        assert 0 <= len(history.seconds) <= 61, what
    path = copy.member(3)
    for _, hurt in damages(path.read_bytes()):
        path.write_bytes(hurt)
        try:
            assert not is_diverged(path)
        except DataError as error:
            assert str(path) in str(error)


@pytest.mark.faults
def test_a_damaged_recipe_is_another_recipe_or_a_typed_error(recipe_file, tmp_path):
    """TOML has no checksum: a flipped digit is valid, and refused only by what was made with the old one."""
    content, whole, unseen = recipe_file.read_bytes(), load_recipe(recipe_file), 0
    for _, hurt in damages(content):
        (tmp_path / "config.toml").write_bytes(hurt)
        try:
            unseen += load_recipe(tmp_path / "config.toml") != whole
        except RumfastError as error:
            assert "config.toml" in str(error)
    print(f"recipe: {unseen} of {2 * TIMES} unseen")
    assert unseen < TIMES


@pytest.mark.faults
def test_verify_repair_deletes_what_is_damaged_and_the_next_run_makes_it_again(
    recipe_file, tmp_path, rumfast
):
    out = tmp_path / "run"
    run = Run(load_recipe(recipe_file), out, LocalEngine(1, "cpu"), "cpu")
    run.pack()
    population, worker = run.sweep_population, Worker("cpu")
    for index in range(6):
        worker.do(population.root, index)
    before = [content_digest(population.member(index)) for index in range(6)]
    draw = np.random.default_rng(0)
    for index in (1, 3, 4):
        content = bytearray(population.member(index).read_bytes())
        margins = content.find(b"margin.npy")
        content[margins + 200 + draw.integers(100)] ^= 1 << index
        population.member(index).write_bytes(content[:500] if index == 3 else content)
    arguments = ("sweep", "verify", "--out", out, "--json")
    found = rumfast(*arguments)
    assert found.code == 4 and "3 records are damaged" in found.stderr
    damaged = [str(population.member(index)) for index in (1, 3, 4)]
    assert sorted(json.loads(found.stdout)["damaged"]) == damaged
    assert rumfast(*arguments, "--repair").code == 0
    assert population.done(range(6)) == [0, 2, 5]
    assert rumfast("sweep", "run", "--out", out, "--workers", 1, "--device", "cpu").code == 0
    assert [content_digest(population.member(index)) for index in range(6)] == before
    assert rumfast(*arguments).code == 0
