import numpy as np
import pytest
from populations import population

from rumfast.errors import DataError
from rumfast.evaluation import METRICS, NullBand
from rumfast.evaluation.audit import Auditor, models_needed
from rumfast.evaluation.pairing import offline_a_of
from rumfast.evaluation.rmia import OFFLINE_A
from rumfast.evaluation.verdicts import Finding, judge, without_power

BAND = NullBand(0.5, 0.4, 0.6, 8)


@pytest.fixture(scope="module")
def oracles():
    return population(24, seed=1)


@pytest.fixture(scope="module")
def auditor(oracles):
    return Auditor(oracles, 24, splits=60)


def test_metrics_of_models_and_pairs_are_means_over_thirds(auditor, oracles):
    audited = population(24, forget=1.5, seed=2)
    found = auditor.audit(audited)
    accuracy_M = audited.forget.accuracy_M
    assert found["accuracy_forget"].value == pytest.approx(accuracy_M.mean(), abs=0.01)
    gaps = [
        (1 - abs(one - other)) * (1 - abs(ours - theirs)) * (1 - abs(here - there))
        for one, ours, here in zip(
            accuracy_M, audited.retain.accuracy_M, audited.test.accuracy_M, strict=True
        )
        for other, theirs, there in zip(
            oracles.forget.accuracy_M, oracles.retain.accuracy_M, oracles.test.accuracy_M, strict=True
        )
    ]
    assert found["tow"].value == pytest.approx(np.mean(gaps), abs=0.01)


def test_the_interval_is_that_of_the_mean_of_all_models(auditor):
    audited = population(24, forget=1.5, seed=2)
    found = auditor.audit(audited)["accuracy_forget"]
    deviation = audited.forget.accuracy_M.std(ddof=1) / np.sqrt(24)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * deviation, rel=0.2)
    assert found.low < found.value < found.high


def test_what_forgot_nothing_is_found_by_every_attack_that_can(auditor):
    found = auditor.audit(population(24, forget=4.0, seed=3))
    for name in ("tow_mia", "accuracy_forget", "klom_forget", "u_lira_auc", "rmia_auc", "forgetting_quality"):
        assert found[name].verdict == "outside", name
    for name in ("accuracy_retain", "accuracy_test", "klom_retain", "klom_test"):
        assert found[name].verdict != "outside", name  # these sets it treats as oracles do


@pytest.mark.parametrize("forget, auc", [(6.0, 1.0), (-6.0, 0.0)])
def test_attacks_find_what_forgot_too_little_and_what_forgot_too_much(auditor, forget, auc):
    found = auditor.audit(population(24, forget=forget, seed=3))
    for attack in ("u_lira", "rmia"):
        assert found[f"{attack}_auc"].verdict == "outside"
        assert found[f"{attack}_tpr_1"].verdict == "outside", attack
        assert found[f"{attack}_tpr_01"].verdict != "inside", attack
    assert found["rmia_auc"].value == pytest.approx(auc, abs=0.05)


def test_one_a_for_all_thirds_of_the_same_oracles(auditor, oracles):
    assert auditor.offline_a == offline_a_of(oracles)
    assert auditor.offline_a in OFFLINE_A


def test_genuine_retrains_are_rarely_outside_any_band():
    alarms, beyond = 0, []
    for seed in range(20):
        auditor = Auditor(population(18, seed=100 + seed), 18, splits=60, seed=seed)
        found = auditor.audit(population(18, seed=200 + seed))
        alarms += any(finding.verdict == "outside" for finding in found.values())
        beyond += [finding.verdict != "inside" for finding in found.values()]
    assert alarms <= 1  # of 20, at a level of 5 % for all metrics together
    assert np.mean(beyond) < 0.05


@pytest.mark.parametrize("name", ["accuracy_forget", "disagreement_forget", "tow"])
def test_the_band_is_as_wide_as_retrains_scatter(name):
    bands, values = [], []
    for seed in range(30):
        auditor = Auditor(population(18, seed=300 + seed), 18, metrics={name: METRICS[name]}, splits=60)
        bands.append(auditor.bands[name])
        values.append(auditor.audit(population(18, seed=400 + seed))[name].value)
    gaps = [value - band.mean for value, band in zip(values, bands, strict=True)]
    widths = [band.high - band.low for band in bands]
    assert np.mean(widths) / 2 == pytest.approx(1.96 * np.std(gaps), rel=0.35)


def test_the_same_seed_gives_the_same_findings(oracles):
    audited = population(12, seed=5)
    one, other = (Auditor(oracles, 12, splits=40, seed=7).audit(audited) for _ in range(2))
    assert one == other
    assert Auditor(oracles, 12, splits=40, seed=8).audit(audited) != one


def test_measured_metrics_are_audited_where_the_oracles_have_them(oracles):
    assert "relearning" not in Auditor(oracles, 24).metrics
    steps = {"relearning": np.random.default_rng(0).normal(20, 2, 24)}
    auditor = Auditor(oracles._replace(extra=steps), 24, splits=40)
    fast = oracles._replace(extra={"relearning": np.random.default_rng(1).normal(5, 2, 24)})
    assert auditor.audit(fast)["relearning"].verdict == "outside"


@pytest.mark.parametrize(
    "value, low, high, better, verdict",
    [
        (0.55, 0.3, 0.7, "oracle", "inside"),
        (0.65, 0.61, 0.69, "oracle", "outside"),
        (0.65, 0.58, 0.72, "oracle", "cannot tell"),
        (0.35, 0.31, 0.39, "oracle", "outside"),
        (0.35, 0.25, 0.45, "oracle", "cannot tell"),
        (0.65, 0.61, 0.69, "higher", "inside"),  # beyond the good end
        (0.35, 0.31, 0.39, "higher", "outside"),
        (0.35, 0.31, 0.39, "lower", "inside"),
        (0.65, 0.61, 0.69, "lower", "outside"),
    ],
)
def test_verdicts(value, low, high, better, verdict):
    metric = METRICS["tow"]._replace(better=better)
    assert judge(value, low, high, BAND, metric).verdict == verdict


@pytest.mark.parametrize(
    "value, low, high, better",
    [
        (0.65, 0.58, 0.72, "oracle"),
        (0.61, 0.50, 0.72, "lower"),
        (0.35, 0.28, 0.42, "higher"),
        (0.521, 0.421, 0.621, "oracle"),
        (0.98, 0.935, 1.0, "oracle"),  # the upper halves are cut to the range
    ],
)
def test_with_the_models_needed_it_would_be_outside_and_with_fewer_not(value, low, high, better):
    metric = METRICS["accuracy_forget"]._replace(better=better)
    band = BAND if value < 0.9 else NullBand(0.9, 0.75, 1.0, 16)

    def verdict(models):
        """With this many models, value and mean as they are and all half widths smaller by the root."""
        scale = np.sqrt(16 / models)
        half, wide = max(high - value, value - low) * scale, (band.mean - band.low) * scale
        narrower = NullBand(band.mean, band.mean - wide, band.mean + wide, models)
        return judge(value, value - half, value + half, narrower, metric).verdict

    found = models_needed(Finding(value, low, high, band, "cannot tell", None), metric, 16)
    assert verdict(found + 1) == "outside" != verdict(found - 1)


def test_needed_by_hand():
    metric = METRICS["accuracy_forget"]
    found = judge(0.65, 0.58, 0.72, BAND, metric)
    # Half widths 0.1 of the band and 0.07, the value 0.15 from the band's mean: 16 · (17/15)² = 20.6
    assert (found.verdict, models_needed(found, metric, 16)) == ("cannot tell", 21)


def test_inside_says_nothing_where_the_originals_are_inside():
    band = NullBand(0.5, 0.25, 0.75, 8)
    inside = Finding(0.5, 0.45, 0.55, band, "inside", None)
    near = Finding(0.625, 0.5, 0.75, band, "inside", None)
    caught = Finding(0.9, 0.85, 0.95, band, "outside", None)
    originals = {"a": near, "b": caught, "c": near, "d": near}
    metrics = dict.fromkeys("abc", METRICS["mia"]) | {"d": METRICS["tow"]}
    needed = {name: models_needed(one, metrics[name], 8) for name, one in originals.items()}
    found = without_power({"a": inside, "b": inside, "c": caught, "d": inside}, originals, needed)
    assert [found[name].verdict for name in "abcd"] == ["no power", "inside", "outside", "no power"]
    # With 8 models a band of ±1/4 and an interval of ±1/8, the originals 1/8 from its mean: 8 · 3².
    assert found["a"].needed == 72
    assert found["d"].needed is None  # they lie towards ToW's good end: no number of models finds them out


def test_too_few_models_are_refused(oracles):
    with pytest.raises(DataError, match="got 3 models and 24 oracles, expected 6 of each"):
        Auditor(oracles, 3)
    with pytest.raises(DataError, match="got 12 models, expected 24"):
        Auditor(oracles, 24).values(population(12))
