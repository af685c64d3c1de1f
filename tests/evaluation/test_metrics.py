import numpy as np
import pytest

from rumfast.evaluation import METRICS, SCORED, ModelScores, compare, score_model
from rumfast.evaluation.model_scores import scored_by

ORACLE = ModelScores(0.6, 0.99, 0.93, 0.45)


def logits(own, label, other=0.0):
    """Two classes: the label's logit is ``own``, the other's ``other``."""
    out = np.full((len(label), 2), other, np.float32)
    out[np.arange(len(label)), label] = own
    return out


def test_score_model_by_hand():
    label = np.array([0, 1] * 40)
    own = np.full(80, 6.0)
    own[[60, 61]] = -1.0  # two retained examples are wrong: 2 of 60
    own[:20] = 0.5  # the forget set looks as the test set does
    own[[0, 1, 2, 3, 4]] = -0.5
    test_label = np.array([1, 0] * 20)
    test_own = np.where(np.arange(40) < 10, -0.5, 0.5)
    found = score_model(
        logits(own, label), logits(test_own, test_label), label, test_label, np.arange(20), np.arange(20, 80)
    )
    assert found[:3] == (0.75, pytest.approx(58 / 60), 0.75)
    assert found.mia == 1.0
    own[:20] = 6.0  # remembered: the attack says so
    found = score_model(
        logits(own, label), logits(test_own, test_label), label, test_label, np.arange(20), np.arange(20, 80)
    )
    assert found.accuracy_forget == 1.0 and found.mia == 0.0


def test_excluded_examples_are_in_neither_set():
    label = np.zeros(30, int)
    own = np.where(np.arange(30) < 10, -3.0, 3.0)  # ids 0–9 were deleted earlier, and are wrong
    arguments = logits(own, label), logits(np.ones(10), label[:10]), label, label[:10]
    found = score_model(*arguments, np.arange(10, 15), np.arange(15, 30))
    assert found.accuracy_forget == found.accuracy_retain == 1.0


def test_an_oracle_equals_itself():
    assert compare("tow", ORACLE, [ORACLE]) == compare("tow_mia", ORACLE, [ORACLE, ORACLE]) == 1.0


def test_tow_is_the_mean_over_oracles_not_the_value_at_their_mean():
    model = ModelScores(0.5, 1.0, 1.0, 0.5)
    oracles = [ModelScores(0.4, 1.0, 1.0, 0.9), ModelScores(0.6, 1.0, 1.0, 0.1)]
    assert compare("tow", model, oracles) == pytest.approx(0.9)
    assert compare("tow_mia", model, oracles) == pytest.approx(0.6)


@pytest.mark.parametrize(
    "field, metrics",
    [
        ("accuracy_forget", {"tow", "accuracy_forget"}),
        ("mia", {"tow_mia", "mia"}),
        ("accuracy_retain", {"tow", "tow_mia", "accuracy_retain"}),
        ("accuracy_test", {"tow", "tow_mia", "accuracy_test"}),
    ],
)
def test_each_score_moves_its_own_metrics(field, metrics):
    changed = ORACLE._replace(**{field: getattr(ORACLE, field) - 0.1})
    applying = scored_by(ORACLE)
    moved = {name for name in applying if compare(name, changed, [ORACLE]) != compare(name, ORACLE, [ORACLE])}
    assert moved == metrics
    assert all(
        compare(name, changed, [ORACLE]) == pytest.approx(0.9) for name in metrics if name.startswith("tow")
    )


def test_every_metric_stays_in_range_and_says_what_is_better():
    rng = np.random.default_rng(0)
    for _ in range(200):
        model, *oracles = (ModelScores(*rng.choice([0, 1, rng.random()], 6)) for _ in range(4))
        for name in SCORED:
            assert 0 <= compare(name, model, oracles) <= 1
            assert METRICS[name].better == ("higher" if name.startswith("tow") else "oracle")


def test_every_metric_says_what_it_is_and_where_it_comes_from():
    for name, metric in METRICS.items():
        assert metric.label and metric.definition and "arXiv" in metric.source, name
        assert metric.better in ("higher", "lower", "oracle") and metric.range[0] == 0
    assert len({metric.label for metric in METRICS.values()}) == len(METRICS)
    assert set(SCORED) <= set(METRICS)
