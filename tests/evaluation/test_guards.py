import numpy as np
import pytest
from populations import FORGET, RETAIN, TEST_LABEL, TRAIN_LABEL, population

from rumfast.evaluation import NullBand
from rumfast.evaluation.audit import Auditor, Finding
from rumfast.evaluation.guards import judge_population, utility
from rumfast.evaluation.outputs import collect

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
    verdict, reasons = judge_population(found, utility(models, oracles), dict.fromkeys(found, "x"))
    assert verdict == "fail" and "no longer does its work" in reasons[0]


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
    found = {str(number): finding(each) for number, each in enumerate(verdicts)}
    judgement = judge_population(found, useful, {name: f"metric {name}" for name in found})
    assert judgement.verdict == verdict and judgement.reasons
    if "outside" in verdicts:
        assert "metric 1" in judgement.reasons[0]
