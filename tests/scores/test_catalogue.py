"""The scores by name: which way each points, and that refinement knows all of them."""

from typing import get_args

import numpy as np
import pytest

from rumfast import load_recipe, refine
from rumfast.config import Refine
from rumfast.errors import UsageError
from rumfast.pipeline.request import needs_of
from rumfast.scores import SCORES, ProxyScores, rising


def test_refinement_knows_every_score_and_no_other():
    assert get_args(Refine) == (*SCORES, "class", "random", "none")
    for name, score in SCORES.items():
        assert score.label and score.definition and score.source, name
        assert score.high is None or score.low < score.high


def test_refined_by_any_score_the_groups_go_from_low_to_high_memorization():
    memorized_N = np.array([0.9, 0.0, 0.5, 0.2])
    by_hand = {
        "confidence": 1 - memorized_N,
        "max_confidence": 1 - memorized_N,
        "binary_accuracy": 1 - memorized_N,
    }
    for name in SCORES:
        low, high = refine(np.arange(4), rising(name, by_hand.get(name, memorized_N)), groups=2)
        assert low.ids.tolist() == [1, 3] and high.ids.tolist() == [0, 2], name
    with pytest.raises(UsageError, match="got 'es', expected one of memorization, "):
        rising("es", memorized_N)


def test_columns_are_proxies_with_entropy_as_it_is_defined():
    scores = ProxyScores(*(np.array([value, np.nan]) for value in (0.5, 0.75, -0.25, 1.0)))
    columns = scores.columns()
    assert list(columns) == [name for name, score in SCORES.items() if score.needs == "original"]
    np.testing.assert_array_equal(columns["entropy"], [0.25, np.nan])
    np.testing.assert_array_equal(columns["confidence"], [0.5, np.nan])


def test_only_sweep_scores_need_a_sweep():
    recipe = load_recipe("digits.toml")

    def needs(refinement):
        forget = recipe.forget.model_copy(update={"refine": refinement})
        return needs_of(recipe.model_copy(update={"forget": forget, "plans": recipe.plans[:1]}))

    found = {name: needs(name) for name in get_args(Refine)}
    assert found["memorization"] == found["margin_memorization"] == {"sweep"}
    assert found["confidence"] == found["entropy"] == {"original"} and found["distance"] == {"embedding"}
    assert found["curvature"] == found["holdout"] == {"proxies"}
    assert found["class"] == found["random"] == found["none"] == set()
