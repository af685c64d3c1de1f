"""Populations with known margins, for tests of audits."""

import numpy as np

from rumfast.evaluation.outputs import Outputs, collect

CLASSES = 3
TRAIN, TEST = 90, 60
FORGET, RETAIN = np.arange(30), np.arange(30, 90)
TRAIN_LABEL = np.arange(TRAIN) % CLASSES
TEST_LABEL = np.arange(TEST) % CLASSES


def logits_at(margin_N, label_N):
    """Logits with the given margins: m + log 2 for the label, 0 for the two others."""
    logits_NC = np.zeros((len(label_N), CLASSES), np.float32)
    logits_NC[np.arange(len(label_N)), label_N] = margin_N + np.log(CLASSES - 1)
    return logits_NC


def population(models, *, forget=0.5, seed=0, extra=None) -> Outputs:
    """Models with margins around 2 on retain and 1 on test examples, and ``forget`` on the forget set."""
    draw = np.random.default_rng(seed)

    def one():
        level_N = np.where(np.arange(TRAIN) < len(FORGET), forget, 2.0)
        return (
            logits_at(level_N + draw.normal(size=TRAIN), TRAIN_LABEL),
            logits_at(1 + draw.normal(size=TEST), TEST_LABEL),
        )

    return collect(
        (one() for _ in range(models)), TRAIN_LABEL, TEST_LABEL, FORGET, RETAIN, mia_examples=40, extra=extra
    )
