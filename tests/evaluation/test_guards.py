import numpy as np
import pytest
from populations import FORGET, RETAIN, TEST_LABEL, TRAIN_LABEL, population

from rumfast.evaluation import METRICS, NullBand
from rumfast.evaluation.audit import Auditor
from rumfast.evaluation.guards import LEAST_UTILITY, judge_population, utility
from rumfast.evaluation.outputs import collect
from rumfast.evaluation.verdicts import Finding

BAND = NullBand(0.5, 0.4, 0.6, 8)


def finding(verdict):
    return Finding(0.5, 0.4, 0.6, BAND, verdict, None)


def constant(models):
    zeros = np.zeros((len(TRAIN_LABEL), 3), np.float32), np.zeros((len(TEST_LABEL), 3), np.float32)
    one = collect([zeros], TRAIN_LABEL, TEST_LABEL, FORGET, RETAIN, mia_examples=40)
    return one.take(np.zeros(models, int))


def test_utility_by_hand():
    oracles, models = population(8, seed=1), population(8, seed=2)
    expected = (models.retain.accuracy_M.mean() / oracles.retain.accuracy_M.mean()) * (
        models.test.accuracy_M.mean() / oracles.test.accuracy_M.mean()
    )
    assert utility(models, oracles) == pytest.approx(expected)
    assert utility(oracles, oracles) == pytest.approx(1.0)
    thirds = (1 / 3 / oracles.retain.accuracy_M.mean()) * (1 / 3 / oracles.test.accuracy_M.mean())
    assert utility(constant(8), oracles) == pytest.approx(thirds)


def test_a_model_with_one_margin_for_all_fails_by_its_utility():
    oracles = population(12, seed=1)
    models = constant(12)
    found = Auditor(oracles, 12, splits=40).audit(models)
    verdict, reasons = judge_population(found, utility(models, oracles), METRICS)
    assert verdict == "fail" and "no longer does its work" in reasons[0]


@pytest.mark.parametrize("temperature", [0.25, 4.0])
def test_models_of_another_temperature_are_told_however_accurate(temperature):
    oracles, models = population(24, seed=1), population(24, seed=2)
    sets = {which: getattr(models, which) for which in ("forget", "retain", "test")}
    scaled = {
        which: outputs._replace(margin_MN=outputs.margin_MN / temperature) for which, outputs in sets.items()
    }
    models = models._replace(**scaled)
    assert utility(models, oracles) >= LEAST_UTILITY
    verdict, (reason,) = judge_population(
        Auditor(oracles, 24, splits=40).audit(models), utility(models, oracles), METRICS
    )
    assert verdict == "fail" and "U-LiRA AUC" in reason


@pytest.mark.parametrize(
    "verdicts, useful, verdict",
    [
        (["inside", "inside", "no power"], 1.0, "pass"),
        (["inside", "outside"], 1.0, "fail"),
        (["inside", "inside"], 0.89, "fail"),
        (["inside", "inside"], float("nan"), "fail"),
        (["inside", "cannot tell"], 0.95, "cannot tell"),
        (["no power", "no power"], 1.0, "cannot tell"),
    ],
)
def test_what_is_said_of_a_population(verdicts, useful, verdict):
    found = dict(zip(("mia", "tow", "rmia_auc"), map(finding, verdicts), strict=False))
    judgement = judge_population(found, useful, METRICS)
    assert judgement.verdict == verdict and judgement.reasons
    if "outside" in verdicts:
        assert "ToW" in judgement.reasons[0]
    if verdict == "pass":
        assert judgement.reasons == ("like retraining by all 2 metrics that have power here",)


def test_likeness_without_an_audit_of_membership_is_no_pass():
    # Originals learned from more data, so that accuracy tells them from oracles: not what was forgotten.
    found = {"mia": finding("no power"), "accuracy_test": finding("inside")}
    verdict, (reason,) = judge_population(found, 1.0, METRICS)
    assert verdict == "cannot tell" and "no metric of membership" in reason
    assert judge_population(found | {"klom_forget": finding("inside")}, 1.0, METRICS).verdict == "pass"


def test_retrains_are_like_retraining_by_every_audit():
    found = {"mia": finding("inside"), "tow": finding("inside")}
    assert judge_population(found, 1.0, METRICS) == ("pass", ("like retraining by all 2 metrics",))
