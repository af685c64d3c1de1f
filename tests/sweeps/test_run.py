import shutil

import numpy as np
import pytest

from rumfast import load_dataset, run_sweep
from rumfast.errors import DataError, DivergedError, MismatchError, UsageError
from rumfast.sweeps import Population, load_sweep, upkeep
from rumfast.sweeps.records import MemberRecord
from rumfast.sweeps.run import Sweep

N, TESTS = 300, 100


def record(population, index, diverged=False):
    include_N = np.zeros(N, bool)
    include_N[population.spec.subset(index, N)] = True
    known = 0 if diverged else 1
    rng = np.random.default_rng(index)
    return MemberRecord(
        index,
        include_N,
        rng.random(N * known) < 0.5,
        rng.random(TESTS * known) < 0.5,
        rng.random(N * known).astype(np.float16),
        rng.random(TESTS * known).astype(np.float16),
        population.spec.data.fingerprint,
        diverged=diverged,
    )


@pytest.fixture
def population(tmp_path, spec):
    return Population.create(tmp_path / "sweep", spec)


def fill(population, members, diverged=()):
    for index in members:
        population.save_record(record(population, index, index in diverged))


def test_members_are_stacked_in_order_of_their_index(population):
    fill(population, [5, 0, 3])
    found = load_sweep(population, range(9))
    assert isinstance(found, Sweep) and found.diverged == 0
    for row, index in enumerate((0, 3, 5)):
        expected = record(population, index)
        np.testing.assert_array_equal(found.include_MN[row], expected.include_N)
        np.testing.assert_array_equal(found.correct_MN[row], expected.correct_N)
        np.testing.assert_array_equal(found.margin_MN[row], expected.margin_N)
    assert load_sweep(population, range(1, 5)).include_MN.shape == (1, N)


def test_up_to_two_percent_may_diverge_and_are_left_out(population):
    fill(population, range(50), diverged={7})
    found = load_sweep(population, range(50))
    assert found.diverged == 1 and found.correct_MN.shape == (49, N)
    np.testing.assert_array_equal(found.include_MN[7], record(population, 8).include_N)
    with pytest.raises(DivergedError, match="1 of 49 members diverged, more than 2%; lower train.lr"):
        load_sweep(population, range(49))


def test_a_sweep_without_usable_members(population):
    with pytest.raises(UsageError, match="no usable member yet"):
        load_sweep(population, range(4))
    fill(population, range(2), diverged={0, 1})
    with pytest.raises((UsageError, DivergedError)):
        load_sweep(population, range(4))


def test_run_sweep_trains_what_is_missing_and_refuses_another_recipe(tmp_path, digits, recipe, reference):
    out = tmp_path / "sweep"
    shutil.copytree(reference.root, out)
    shutil.rmtree(out / "members")
    (out / "members").mkdir()
    for index in (0, 2, 3):
        shutil.copy(reference.member(index), out / "members")
    stamps = {path.name: path.stat().st_mtime_ns for path in (out / "members").iterdir()}
    found = run_sweep(digits, recipe, members=4, seed=3, out=out, device="cpu", workers=1)
    expected = load_sweep(reference, range(4))
    for name in ("include_MN", "correct_MN", "margin_MN"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert {name: (out / "members" / name).stat().st_mtime_ns for name in stamps} == stamps
    with pytest.raises(MismatchError, match="train.lr: there 0.1, here 0.2"):
        run_sweep(digits, recipe.model_copy(update={"lr": 0.2}), members=4, seed=3, out=out, device="cpu")
    with pytest.raises(MismatchError, match="include: there 0.7, here 0.6"):
        run_sweep(digits, recipe, members=4, seed=3, include=0.6, out=out, device="cpu")
    with pytest.raises(
        MismatchError, match="data.fingerprint: there .*data.train_examples: there 300, here 299"
    ):
        run_sweep(load_dataset("digits").take(299, 100), recipe, members=4, seed=3, out=out, device="cpu")


def test_status_counts(population):
    fill(population, [0, 1, 4], diverged={4})
    found = upkeep.status(population, 6)
    assert (found["members"], found["done"], found["diverged"], found["missing"]) == (6, 3, 1, 3)


def test_verify_finds_damage_and_foreign_subsets_and_repair_deletes_them(population):
    fill(population, range(5))
    population.member(1).write_bytes(population.member(1).read_bytes()[:-5])
    foreign = record(population, 3)
    population.member(3).unlink()
    foreign.include_N[:2] ^= True
    population.save_record(foreign)
    found = upkeep.verify(population, 5)
    assert found["read"] == 5 and sorted(found["damaged"]) == [
        str(population.member(1)),
        str(population.member(3)),
    ]
    assert population.done(range(5)) == [0, 1, 2, 3, 4]
    upkeep.verify(population, 5, repair=True)
    assert population.done(range(5)) == [0, 2, 4] and upkeep.verify(population, 5)["damaged"] == {}


def test_compacted_arrays_are_the_stacked_ones(population):
    fill(population, range(3))
    upkeep.compact(population, 3)
    stacked = load_sweep(population, range(3))
    for name in ("include_MN", "correct_MN", "margin_MN"):
        found = np.load(population.root / "compact" / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        np.testing.assert_array_equal(found, getattr(stacked, name))


def test_a_record_of_other_data_is_not_stacked(population, spec):
    fill(population, range(2))
    other = Population(
        population.root,
        spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": "1" * 64})}),
    )
    with pytest.raises(DataError, match="000000.npz: record of member 0 on data"):
        load_sweep(other, range(2))
