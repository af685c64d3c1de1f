import os
import shutil
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from rumfast import load_dataset, memorization_scores, run_sweep
from rumfast.bench import reduce
from rumfast.errors import DataError, DivergedError, MismatchError, UsageError
from rumfast.scores import influence_scores, worst_standard_error
from rumfast.sweeps import Population, Sweep, journal, load_sweep, upkeep
from rumfast.sweeps.journal import Journal, read_history
from rumfast.sweeps.records import MemberRecord

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
    short = load_sweep(population, range(49))
    for read in (short.memorization, lambda: short.diverged, lambda: short.correct_MN, short.compact):
        with pytest.raises(DivergedError, match="1 of 49 members diverged, more than 2%; lower train.lr"):
            read()


def test_a_sweep_without_usable_members(population):
    with pytest.raises(UsageError, match="no usable member yet"):
        load_sweep(population, range(4))
    fill(population, range(2), diverged={0, 1})
    with pytest.raises(DivergedError, match="2 of 2 members diverged"):
        load_sweep(population, range(4)).memorization()


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
    population.member(0).write_bytes(b"PK")
    found = upkeep.status(population, 6)
    assert found["members"] == 6
    assert [found[key] for key in ("done", "diverged", "damaged", "missing")] == [3, 1, 1, 3]
    assert found["members_per_hour"] is None and found["eta_hours"] is None


def test_status_tells_what_the_journals_say(population, monkeypatch):
    fill(population, range(4))
    clock = iter(float(second) for second in range(1000, 2000, 60))  # a line a minute
    monkeypatch.setattr(journal.time, "time", lambda: next(clock))
    workers = [Journal(population.root) for _ in range(3)]
    for index in range(3):
        workers[0].write(index, "begun")
        workers[0].write(index, "done", wall_s=30.0)
    workers[1].write(3, "begun")
    workers[1].write(3, "repeated", wall_s=30.0)
    workers[1].write(4, "begun")
    workers[2].write(5, "begun")
    workers[2].write(5, "failed", kind="DataError", message="no such digit")
    for worker in workers:
        worker.close()
    os.utime(workers[1].path, (0, 2000))
    monkeypatch.setattr(journal.time, "time", lambda: 2010.0)
    found = upkeep.status(population, 8)
    assert [found[key] for key in ("done", "running", "failed", "repeated", "missing")] == [4, 1, 1, 1, 4]
    # Lines at 1060, 1180, 1300 and 1420 s: two minutes a member.
    assert found["members_per_hour"] == pytest.approx(30) and found["eta_hours"] == pytest.approx(4 / 30)
    assert found["device_hours"] == pytest.approx(120 / 3600) and found["last_failure"] == "no such digit"
    monkeypatch.setattr(journal.time, "time", lambda: 2000 + journal.SILENCE_S)
    assert upkeep.status(population, 8)["running"] == 0  # its worker has not been heard of


@pytest.mark.faults
def test_journals_cut_short_or_deleted_cost_no_member(population):
    fill(population, range(2))
    writer = Journal(population.root)
    for index in range(2):
        writer.write(index, "done", wall_s=1.0)
    writer.close()
    whole = writer.path.read_bytes()
    for length in range(len(whole)):
        writer.path.write_bytes(whole[:length])
        found = read_history(population.root)
        assert len(found.seconds) == whole[:length].count(b"\n")
    writer.path.write_bytes(b"\xff\x00[1]\n3\n{}\n" + whole)
    assert read_history(population.root).seconds == {0: 1.0, 1: 1.0}
    shutil.rmtree(population.root / "journal")
    assert upkeep.status(population, 2)["done"] == 2


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


ARRAYS = ("include_MN", "correct_MN", "correct_test_MT", "margin_MN", "margin_test_MT")


def test_compacted_arrays_are_the_stacked_ones_and_mapped(population):
    fill(population, range(60), diverged={7})
    plain = load_sweep(population, range(60))
    stacked = {name: getattr(plain, name) for name in ARRAYS}
    found = upkeep.compact(population, 60)
    assert (found["members"], found["diverged"], found["shape"]) == (59, 1, [59, N])
    mapped = load_sweep(population, range(60))
    for name in ARRAYS:
        assert isinstance(getattr(mapped, name), np.memmap)
        np.testing.assert_array_equal(getattr(mapped, name), stacked[name])
    # One more member and the cache does not fit; once it is made again, it does.
    fill(population, [60])
    more = load_sweep(population, range(61))
    assert more.include_MN.shape == (60, N) and not isinstance(more.include_MN, np.memmap)
    upkeep.compact(population, 61)
    assert isinstance(load_sweep(population, range(61)).include_MN, np.memmap)
    (population.root / "compact" / "margin_MN.npy").write_bytes(b"damaged")
    assert load_sweep(population, range(61)).margin_MN.shape == (60, N)


def test_streamed_scores_are_those_of_the_stacked_arrays(population):
    fill(population, range(55), diverged={8})
    sweep = load_sweep(population, range(55))
    expected = memorization_scores(sweep.correct_MN, sweep.include_MN)
    for field, streamed in sweep.memorization()._asdict().items():
        np.testing.assert_array_equal(streamed, getattr(expected, field))
    margin_MN = np.ma.array(sweep.margin_MN.astype(np.float64), mask=~sweep.include_MN)
    np.testing.assert_allclose(sweep.margins().mean_in_N, margin_MN.mean(0).filled(np.nan), rtol=1e-12)
    np.testing.assert_allclose(sweep.margins().variance_in_N, margin_MN.var(0, ddof=1).filled(np.nan))
    best = sweep.influence(3)
    full_NT = influence_scores(sweep.include_MN, sweep.correct_test_MT)
    np.testing.assert_array_equal(best.score_TK[:, 0], np.nanmax(full_NT, 0))


@pytest.mark.parametrize("design", ["fixed", "pairs"])
def test_halves_of_a_sweep_share_no_member_and_keep_pairs_together(tmp_path, spec, design):
    changes = {"design": design, "include": 0.5, "seed": 11}
    population = Population.create(tmp_path / "s", spec.model_copy(update=changes))
    fill(population, range(40))
    sweep, step = load_sweep(population, range(40)), 2 if design == "pairs" else 1
    first = [row for row in range(40) if row // step % 2 == 0]
    second = [row for row in range(40) if row not in first]
    scores = [memorization_scores(sweep.correct_MN[rows], sweep.include_MN[rows]) for rows in (first, second)]
    known_N = np.isfinite(scores[0].score_N) & np.isfinite(scores[1].score_N)
    halves = [score.score_N[known_N] for score in scores]
    found = sweep.reliability()
    assert found.spearman == pytest.approx(stats.spearmanr(*halves).statistic)
    assert found.spearman_whole == pytest.approx(2 * found.spearman / (1 + found.spearman))
    # Members answer at random here, so every score is noise, and its spread the standard error.
    score_N = sweep.memorization().score_N
    assert found.standard_error == pytest.approx(np.nanstd(score_N), rel=0.2)
    assert found.standard_error == pytest.approx(worst_standard_error(40, 0.5), rel=0.2)


def test_scores_take_memory_for_examples_and_not_for_members(tmp_path, spec):
    members, examples = (40, 160), 20_000
    population = reduce.synthetic(tmp_path / "s", max(members), examples, 100)

    def peak(count):
        tracemalloc.start()
        scored = load_sweep(population, range(count))
        scored.memorization(), scored.margins(), scored.reliability()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = (peak(count) for count in members)
    assert many < 1.1 * few and many < 400 * examples


def test_a_sweep_too_small_to_halve_has_no_reliability(population):
    fill(population, [0])
    assert load_sweep(population, [0]).reliability() is None


def test_a_record_of_other_data_is_not_stacked(population, spec):
    fill(population, range(2))
    other = Population(
        population.root,
        spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": "1" * 64})}),
    )
    with pytest.raises(DataError, match="000000.npz: record of member 0 on data"):
        load_sweep(other, range(2)).memorization()
