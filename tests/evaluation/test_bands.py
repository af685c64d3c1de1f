import math

import numpy as np
import pytest
from scipy import stats

from rumfast.errors import DataError
from rumfast.evaluation import ModelScores, NullBand, compare, null_band, t_interval
from rumfast.evaluation.bands import least_deviation
from rumfast.evaluation.model_scores import scored_by


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.2, 0.25, 0.3, 0.5], list(np.linspace(-3, 9, 17))])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_t_interval_against_scipy(values, confidence):
    found = t_interval(values, (None, None), confidence)
    low, high = stats.t.interval(confidence, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert found[:3] == pytest.approx((np.mean(values), low, high), rel=1e-12) and found.values == tuple(
        values
    )


def test_one_value_has_no_interval_and_none_is_an_error():
    assert t_interval([0.3], (0, 1)) == (0.3, None, None, (0.3,))
    with pytest.raises(DataError, match="t_interval: no values"):
        t_interval([], (0, 1))


def own(model, others):
    return model


def test_band_by_hand():
    # mean 0.5, s = 0.1, t(0.975, 2) = 4.302653, √(1 + 1/3)
    band = null_band([0.4, 0.5, 0.6], own, limits=(-9, 9))
    half = 4.30265273 * 0.1 * math.sqrt(4 / 3)
    assert band == pytest.approx((0.5, 0.5 - half, 0.5 + half, 3, half), rel=1e-6)
    assert null_band([0.4, 0.5, 0.6], own) == pytest.approx((0.5, 0.00320, 0.99680, 3, half), abs=1e-4)
    assert null_band([0.1, 0.5, 0.9], own)[:3] == (0.5, 0.0, 1.0)  # cut to the metric's range


def test_each_oracle_is_held_against_all_the_others():
    seen = []
    null_band([1.0, 2.0, 3.0], lambda model, others: seen.append((model, tuple(others))) or 0.5)
    assert seen == [(1.0, (2.0, 3.0)), (2.0, (1.0, 3.0)), (3.0, (1.0, 2.0))]


def test_ends_belong_to_the_band():
    band = NullBand(0.5, 0.4, 0.6, 3)
    assert (
        band.contains(0.4)
        and band.contains(0.6)
        and not band.contains(0.39999)
        and not band.contains(0.60001)
    )


def test_one_oracle_is_not_enough():
    with pytest.raises(DataError, match="got 1 oracle, expected at least 2"):
        null_band([0.5], own)


def retrains(rng, count):
    drawn = rng.normal([0.6, 0.98, 0.93, 0.45], [0.03, 0.005, 0.01, 0.03], (count, 4))
    return [ModelScores(*np.clip(row, 0, 1)) for row in drawn]


def coverage(metric, oracles, trials, pairs=False):
    rng, inside = np.random.default_rng(7), 0
    for _ in range(trials):
        *known, one_more = retrains(rng, oracles + 1)
        band = null_band(known, lambda model, others: compare(metric, model, others), pairs=pairs)
        inside += band.contains(compare(metric, one_more, known))
    return inside / trials


@pytest.mark.parametrize("oracles", [2, 3, 5, 10])
@pytest.mark.parametrize("metric", ["accuracy_forget", "mia"])
def test_a_further_retrain_falls_inside_in_19_of_20_cases(metric, oracles):
    # 800 trials at 0.95 have a standard error of 0.0077.
    assert coverage(metric, oracles, 800) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("oracles", [3, 5, 10])
@pytest.mark.parametrize("metric", ["tow", "tow_mia"])
def test_metrics_of_pairs_come_near_that(metric, oracles):
    # Leave-one-out values share oracles, which narrows their spread; gaps are skewed, which costs a little.
    assert coverage(metric, oracles, 300, pairs=True) >= 0.91
    assert coverage(metric, 2, 3, pairs=True) == 1.0  # two oracles make one pair and show no spread


def test_bands_tell_a_retrain_from_the_original():
    rng = np.random.default_rng(0)
    oracles = retrains(rng, 5)
    original = ModelScores(1.0, 0.98, 0.93, 0.02)
    for name in scored_by(original):
        band = null_band(oracles, lambda model, others, name=name: compare(name, model, others))
        different = name in ("tow", "tow_mia", "accuracy_forget", "mia")
        assert band.contains(compare(name, original, oracles)) != different, name


@pytest.mark.parametrize("limits", [(0.0, 1.0), (-1.0, 1.0), (0.0, None)])
def test_no_interval_and_no_band_leaves_its_range(limits):
    rng = np.random.default_rng(3)
    least, most = limits[0], 5.0 if limits[1] is None else limits[1]
    for _ in range(300):
        values = rng.choice([least, most, *rng.uniform(least, most, 3)], rng.integers(2, 7)).tolist()
        interval, band = t_interval(values, limits), null_band(values, own, limits)
        for low, mean, high in ((interval.low, interval.mean, interval.high), band[1::-1] + band[2:3]):
            assert least <= low <= mean <= high and (limits[1] is None or high <= limits[1])


def test_oracles_that_agree_on_few_examples_do_not_make_a_band_of_no_width():
    agreed = [0.0] * 5  # each gets all of 3 examples wrong
    band = null_band(agreed, own, least=least_deviation(3))
    half = stats.t.ppf(0.975, 4) * (1 / 6) * math.sqrt(1.2)
    assert band == pytest.approx((0.0, 0.0, half, 5, half))
    assert null_band(agreed, own).high == 0.0
    spread = [0.0, 1.0, 0.0, 1.0, 0.5]  # wider than the least: it makes no difference
    assert null_band(spread, own, least=least_deviation(3)) == null_band(spread, own)
