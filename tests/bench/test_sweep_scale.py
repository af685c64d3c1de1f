"""The two measurements of large sweeps, at sizes that take seconds."""

import numpy as np
import pytest

from rumfast import memorization_scores
from rumfast.bench import reduce, scale
from rumfast.sweeps import Population, load_sweep


def test_every_member_is_committed_once_though_workers_die_and_listings_are_old(tmp_path):
    scene = scale.Scene(members=400, slots=32, nodes=4, deaths=0.1, speed=600)
    found = scale.simulate(scene, tmp_path)
    assert found["stored"] == found["committed_once"] == 400 and found["committed_more_often"] == 0
    assert found["worker_deaths"] > 20
    assert found["simulated_hours"] > found["ideal_hours"] == pytest.approx(400 * 120 / 32 / 3600)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    population = Population.open(tmp_path)
    for index in (0, 399):
        expected = scale.synthetic_record(population.spec, index, scale.EXAMPLES, scale.TESTS)
        np.testing.assert_array_equal(population.record(index).margin_N, expected.margin_N)


def test_a_node_that_is_given_up_and_works_on_repeats_members_and_harms_none(tmp_path):
    # All listings are older than the sweep takes, so nobody sees what the lost node goes on to finish.
    scene = scale.Scene(
        members=160, slots=16, nodes=2, deaths=0, stale_s=10_000, requeue_s=0, lost_at=0.2, zombie_s=2000,
        speed=2000,
    )  # fmt: skip
    found = scale.simulate(scene, tmp_path)
    assert found["stored"] == found["committed_once"] == 160
    assert found["repeated"] > 0


def test_reductions_of_a_large_sweep_are_measured_and_right(tmp_path):
    record = reduce.measure([20, 60], tmp_path / "s", examples=500, tests=200)
    assert [row["members"] for row in record["rows"]] == [20, 60]
    assert all(row["streamed_s"] > 0 and row["stacked_s"] > 0 for row in record["rows"])
    sweep = load_sweep(Population.open(tmp_path / "s"), range(60))
    expected = memorization_scores(sweep.correct_MN, sweep.include_MN).score_N
    np.testing.assert_array_equal(sweep.memorization().score_N, expected)
    assert expected.mean() > 0.2  # the made-up members remember what they were trained on
