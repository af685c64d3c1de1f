import numpy as np
import pytest
from populations import FORGET, RETAIN, TEST, TEST_LABEL, TRAIN, TRAIN_LABEL, population
from scipy.special import logsumexp, softmax

from rumfast.errors import DataError
from rumfast.evaluation import METRICS, Auditor, score_model
from rumfast.evaluation.membership import FEATURES
from rumfast.evaluation.metrics import scores_of
from rumfast.evaluation.model_scores import scored_by
from rumfast.evaluation.outputs import collect


def some_logits(seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(0, 3, (TRAIN, 3)).astype(np.float32), draw.normal(0, 3, (TEST, 3)).astype(np.float32)


def test_outputs_are_rows_of_models_and_columns_of_the_sets():
    models = [some_logits(seed) for seed in range(3)]
    found = collect(models, TRAIN_LABEL, TEST_LABEL, FORGET, RETAIN)
    assert found.models == 3 and found.probability_MFC.shape == (3, len(FORGET), 3)
    train_NC, test_NC = models[1]
    own_N = train_NC[RETAIN, TRAIN_LABEL[RETAIN]]
    others_NC = np.where(np.arange(3) == TRAIN_LABEL[RETAIN, None], -np.inf, train_NC[RETAIN])
    np.testing.assert_allclose(found.retain.margin_MN[1], own_N - logsumexp(others_NC, axis=1), atol=1e-5)
    np.testing.assert_array_equal(found.test.prediction_MN[1], test_NC.argmax(1))
    np.testing.assert_allclose(found.probability_MFC[1], softmax(train_NC[FORGET], axis=1), rtol=1e-5)
    by_hand = score_model(train_NC, test_NC, TRAIN_LABEL, TEST_LABEL, FORGET, RETAIN)
    np.testing.assert_allclose([each[1] for each in scores_of(found)[:4]], by_hand[:4])


def test_taking_models_takes_their_rows_of_everything():
    found = population(4, extra={"relearning": np.array([5.0, 6.0, 7.0, 8.0])})
    some = found.take(np.array([2, 0]))
    assert some.models == 2 and some.extra["relearning"].tolist() == [7.0, 5.0]
    np.testing.assert_array_equal(some.forget.margin_MN, found.forget.margin_MN[[2, 0]])
    np.testing.assert_array_equal(some.probability_MFC, found.probability_MFC[[2, 0]])
    assert set(some.mia) == set(FEATURES)
    for name in FEATURES:
        np.testing.assert_array_equal(some.mia[name], found.mia[name][[2, 0]])


def test_no_models_and_broken_logits_are_refused():
    with pytest.raises(DataError, match="no models"):
        collect([], TRAIN_LABEL, TEST_LABEL, FORGET, RETAIN)
    train_NC, test_NC = some_logits()
    train_NC[3, 1] = np.nan
    with pytest.raises(DataError, match="model 1 has logits that are not finite"):
        collect([some_logits(), (train_NC, test_NC)], TRAIN_LABEL, TEST_LABEL, FORGET, RETAIN)


WHOLE = np.flatnonzero(TRAIN_LABEL == 1)  # a class that is forgotten as a whole
OTHERS = np.flatnonzero(TRAIN_LABEL != 1)


@pytest.mark.parametrize("by_audit", [False, True])
def test_a_class_forgotten_as_a_whole_is_no_non_member_and_scored_apart(by_audit):
    def scores(test_NC):
        """Test accuracy of forgotten classes, of kept ones, and MIA."""
        if not by_audit:
            found = score_model(train_NC, test_NC, TRAIN_LABEL, TEST_LABEL, WHOLE, OTHERS)
            return found.accuracy_test_forgotten, found.accuracy_test_kept, found.mia
        outputs = collect([(train_NC, test_NC)], TRAIN_LABEL, TEST_LABEL, WHOLE, OTHERS)
        named = ("accuracy_test_forgotten", "accuracy_test_kept", "mia")
        return tuple(float(METRICS[name].function(outputs)[0]) for name in named)

    train_NC, test_NC = some_logits()
    gone_N, correct_N = TEST_LABEL == 1, test_NC.argmax(1) == TEST_LABEL
    found = scores(test_NC)
    assert found[:2] == pytest.approx((correct_N[gone_N].mean(), correct_N[~gone_N].mean()))
    sure_NC = test_NC.copy()
    sure_NC[gone_N] = 50 * np.eye(3, dtype=np.float32)[1]  # the forgotten class's test images do not matter
    assert scores(sure_NC) == pytest.approx((1.0, found[1], found[2]))


def test_by_class_metrics_apply_only_where_a_class_is_gone():
    logits = [some_logits(seed) for seed in range(6)]
    whole, some = (
        collect(logits, TRAIN_LABEL, TEST_LABEL, forget, retain)
        for forget, retain in ((WHOLE, OTHERS), (FORGET, RETAIN))
    )
    by_class = {"accuracy_test_forgotten", "accuracy_test_kept"}
    assert by_class <= set(Auditor(whole, 6).metrics) and not by_class & set(Auditor(some, 6).metrics)
    scored = [
        scored_by(score_model(*logits[0], TRAIN_LABEL, TEST_LABEL, *split))
        for split in ((WHOLE, OTHERS), (FORGET, RETAIN))
    ]
    assert by_class <= set(scored[0]) and not by_class & set(scored[1])
