import numpy as np
from scipy.stats import kendalltau

from rumfast.evaluation import METRICS
from rumfast.evaluation.ranking import badness, rank_agreement


def test_agreement_is_kendalls_tau_b():
    draw = np.random.default_rng(0)
    bad_PSQ = draw.integers(0, 5, (7, 3, 4)).astype(float)  # with ties
    found_SQQ = rank_agreement(bad_PSQ)
    for s in range(3):
        for i in range(4):
            for j in range(4):
                expected = kendalltau(bad_PSQ[:, s, i], bad_PSQ[:, s, j]).statistic
                np.testing.assert_allclose(found_SQQ[s, i, j], expected, rtol=1e-12)


def test_a_metric_that_puts_all_level_agrees_with_none():
    bad_PSQ = np.stack([np.zeros((3, 1)), np.arange(3.0)[:, None]], axis=-1)
    found_SQQ = rank_agreement(bad_PSQ)
    assert np.isnan(found_SQQ[0, 0]).all() and found_SQQ[0, 1, 1] == 1


def test_worse_is_larger_whatever_the_metrics_direction():
    metrics = [METRICS[name] for name in ("tow", "klom_forget", "accuracy_forget")]
    values_PSQ = np.array([[[0.9, 0.3, 0.6]], [[0.7, 0.5, 0.2]]])
    found = badness(values_PSQ, np.array([0.0, 0.0, 0.5]), metrics)
    np.testing.assert_allclose(found, [[[-0.9, 0.3, 0.1]], [[-0.7, 0.5, 0.3]]])
