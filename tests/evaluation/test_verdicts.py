"""Verdicts on a handful of models: what they say of retrains, of originals, and of what forgot too much."""

import numpy as np
import pytest

from rumfast.evaluation import METRICS, ModelScores, NullBand, null_band
from rumfast.evaluation.bands import t_interval
from rumfast.evaluation.verdicts import Finding, conclude, judge, judge_models, models_to_tell
from rumfast.pipeline.judging import bands_of, findings_of, judged, lost_utility
from rumfast.reporting.estimates import range_text

BAND = NullBand(0.5, 0.4, 0.6, 5, 0.1)


def finding(verdict, over=False):
    return Finding(0.5, 0.4, 0.6, BAND, verdict, over_forgotten=over)


@pytest.mark.parametrize(
    "name, low, high",
    [("accuracy_forget", True, False), ("mia", False, True), ("accuracy_retain", False, False)],
)
def test_outside_where_more_is_forgotten_is_over_forgetting(name, low, high):
    below, above = judge(0.2, 0.1, 0.3, BAND, METRICS[name]), judge(0.8, 0.7, 0.9, BAND, METRICS[name])
    assert (below.verdict, above.verdict) == ("outside", "outside")
    assert (below.over_forgotten, above.over_forgotten) == (low, high)


def test_a_single_model_has_an_interval_twice_as_wide_as_the_band():
    found = judge_models([0.79], BAND, METRICS["mia"])
    assert (found.low, found.high) == pytest.approx((0.59, 0.99)) and found.verdict == "cannot tell"
    assert judge_models([0.81], BAND, METRICS["mia"]).verdict == "outside"
    assert judge_models([0.98], BAND, METRICS["mia"]).high == 1.0  # cut to the range


def test_all_metrics_together():
    both = {"mia": finding("outside", over=True), "tow": finding("outside")}
    reasons = ("over-forgotten by MIA", "unlike retraining by ToW")
    assert conclude(both, METRICS) == ("differs", reasons)
    unclear = {"mia": finding("inside"), "tow": finding("cannot tell")}
    assert conclude(unclear, METRICS) == ("cannot tell", ("too few models to tell by ToW",))
    assert conclude({"mia": finding("inside"), "tow": finding("no power")}, METRICS).verdict == "matches"
    # To be as accurate as retrained models is not to have forgotten.
    assert conclude({"mia": finding("no power"), "tow": finding("inside")}, METRICS).verdict == "cannot tell"


SIZES = dict.fromkeys(("tow", "tow_mia", "accuracy_forget", "mia"), 150)
SIZES |= {"accuracy_retain": 1250, "accuracy_test": 400}


def scores(rng, models, forget=0.5, mia=0.6, retain=0.99, examples=150):
    """Models whose shares are of so many examples, and which scatter as those of digits do."""
    means = np.clip(rng.normal([forget, retain, 0.95, mia], [0.03, 0.004, 0.008, 0.03], (models, 4)), 0, 1)
    counts = np.array([examples, 1250, 400, examples])
    return [ModelScores(*row) for row in np.round(means * counts) / counts]


def concluded(models, oracles, originals):
    bands = bands_of(oracles, SIZES)
    found, untouched = (findings_of(each, oracles, bands) for each in (models, originals))
    return judged(found, untouched)["verdict"]


@pytest.mark.parametrize("seeds, oracles", [(1, 5), (3, 5), (5, 5), (3, 10)])
def test_retrains_are_rarely_said_to_differ(seeds, oracles):
    rng, said = np.random.default_rng(seeds), []
    for _ in range(100):
        originals = scores(rng, seeds, forget=1.0, mia=0.05)
        said.append(concluded(scores(rng, seeds), scores(rng, oracles), originals))
    assert said.count("differs") <= 5 and said.count("matches") >= 50


@pytest.mark.parametrize("seeds", [1, 3])
def test_doing_nothing_never_matches_whatever_the_forget_set(seeds):
    rng, said = np.random.default_rng(seeds), set()
    for distance in np.linspace(0, 0.5, 60):  # from a set that was not memorized to one that was
        originals = scores(rng, seeds, forget=0.5 + distance, mia=0.6 - distance)
        said.add(concluded(originals, scores(rng, 5), originals))
    assert said == {"differs", "cannot tell"}


@pytest.mark.parametrize("forget, mia", [(0.1, 0.6), (0.5, 0.95)])
def test_what_forgot_too_much_differs(forget, mia):
    rng = np.random.default_rng(1)
    models, originals = scores(rng, 3, forget=forget, mia=mia), scores(rng, 3, forget=1.0, mia=0.05)
    assert concluded(models, scores(rng, 5), originals) == "differs"


def test_an_interval_far_wider_than_the_band_supports_nothing():
    narrow, wide = [0.49, 0.5, 0.51], [0.1, 0.5, 0.9]  # both means lie in the middle of the band
    assert judge_models(narrow, BAND, METRICS["mia"]).verdict == "inside"
    assert judge_models(wide, BAND, METRICS["mia"]).verdict == "cannot tell"


def test_a_product_has_no_power_by_accuracy_alone():
    rng = np.random.default_rng(2)
    oracles, plan = scores(rng, 5, forget=1.0, mia=0.0), scores(rng, 3, forget=1.0, mia=0.0)
    damaged = scores(rng, 3, forget=1.0, mia=0.0, retain=0.8)  # what the plan starts from, and repairs
    bands = bands_of(oracles, SIZES)
    untouched = findings_of(damaged, oracles, bands)
    assert untouched["tow_mia"][1].verdict == "outside"
    found = judged(findings_of(plan, oracles, bands), untouched)
    assert found["verdict"] != "matches" and found["metrics"]["tow_mia"]["verdict"] != "inside"


def test_a_model_that_lost_its_accuracy_does_not_match():
    oracles = [ModelScores(0.0, 0.95, 0.9, 1.0, 0.0, 0.95)] * 3
    assert lost_utility([ModelScores(0.0, 0.9, 0.85, 1.0, 0.0, 0.92)], oracles) == []
    (reason,) = lost_utility([ModelScores(0.0, 0.78, 0.9, 1.0, 0.0, 0.8)], oracles)  # by kept classes
    assert reason.startswith("utility 0.69 is below 0.9")
    assert lost_utility([ModelScores(0.5, 0.95, 0.7, 0.5)], [ModelScores(0.5, 0.95, 0.9, 0.5)])


def test_the_models_that_would_tell_are_as_many_as_it_takes():
    rng = np.random.default_rng(5)
    oracles, originals = rng.normal(0.5, 0.05, 5).tolist(), rng.normal(0.62, 0.05, 3).tolist()
    band = null_band(oracles, lambda one, others: one)
    metric = METRICS["accuracy_forget"]
    found = models_to_tell(originals, band, metric)

    def outside(models):
        """With samples of that size and of the same means and deviations."""

        def stretched(values):
            shape = np.resize([-1.0, 1.0], models)
            shape = (shape - shape.mean()) / shape.std(ddof=1)
            return (np.mean(values) + np.std(values, ddof=1) * shape).tolist()

        wide = null_band(stretched(oracles), lambda one, others: one)
        low = t_interval(stretched(originals), metric.range).low
        return low > wide.high

    assert outside(found) and not outside(found - 1)
    assert models_to_tell([band.mean] * 3, band, metric) is None


def ends(value):
    """Every pair of ends, with its mean where there is one, in a record."""
    if isinstance(value, dict):
        if value.get("low") is not None:
            yield value["low"], value.get("mean", value["low"]), value["high"]
        for inner in value.values():
            yield from ends(inner)


def test_no_interval_of_a_record_leaves_its_range_whatever_the_models():
    rng = np.random.default_rng(11)
    for _ in range(60):
        extremes = [0.0, 1.0, *rng.random(3)]
        models, oracles, originals = (
            [ModelScores(*rng.choice(extremes, 6)) for _ in range(rng.integers(least, 6))]
            for least in (1, 3, 1)
        )
        by_class = ("accuracy_test_forgotten", "accuracy_test_kept")
        sizes = dict.fromkeys([*SIZES, *by_class], int(rng.integers(1, 60)))
        bands = bands_of(oracles, sizes)
        untouched = findings_of(originals, oracles, bands)
        found = judged(findings_of(models, oracles, bands), untouched, lost_utility(models, oracles))
        record = found | {"bands": {name: band.record() for name, band in bands.items()}}
        record |= {"findings": {name: one._asdict() for name, (_, one) in untouched.items()}}
        seen = list(ends(record))
        assert len(seen) >= 2 * len(bands)
        for low, mean, high in seen:
            assert 0 <= low <= mean <= high <= 1
        shown = {name: entry for name, entry in found["metrics"].items() if entry["low"] is not None}
        for name, entry in shown.items():  # ends are joined by a dash, and none has a sign
            assert "-" not in range_text(name, (entry["low"], entry["high"]))
