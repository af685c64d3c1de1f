"""Markdown of a made-up record of two scores."""

from rumfast.bench.readme import TABLES
from rumfast.bench.score_tables import classes_table, scores_table

COST = {"marginal_s": 1234.5, "marginal_share": 1.0, "whole_s": 1234.5, "whole_share": 1.0}
RECORD = {
    "schema": "rumfast/scores/1",
    "name": "tiny",
    "dataset": {"examples": 5000},
    "sweep": {"members": 64},
    "ceiling": 0.97149,
    "names": ["memorization", "confidence"],
    "spearman": {
        "rho": [[1.0, -0.7], [-0.7, 1.0]],
        "low": [[1.0, -0.75], [-0.75, 1.0]],
        "high": [[1.0, -0.65], [-0.65, 1.0]],
    },
    "scores": [
        {"name": "memorization", "label": "memorization", "cost": COST},
        {
            "name": "confidence",
            "label": "confidence",
            "cost": {"marginal_s": 0.5, "marginal_share": 0.0004, "whole_s": 20.0, "whole_share": 0.0162},
        },
    ],
    "classes": [
        {
            "name": "cat",
            "count": 1500,
            "flipped": 0.125,
            "interval": [0.2, 0.4],
            "means": {"memorization": 0.3, "confidence": 0.75},
        },
        {
            "name": "dog",
            "count": 1,
            "flipped": 0.0,
            "interval": None,
            "means": {"memorization": None, "confidence": None},
        },
    ],
    "environment": {"gpu": None, "cpu": "a CPU, 2 cores", "torch": "2.11", "rumfast": "1", "commit": "abc"},
}


def test_each_score_has_its_correlation_and_cost():
    rows = scores_table(RECORD).splitlines()
    assert rows[2] == "| memorization |  | 1,234 | 100.00% | 100.00% |"
    assert rows[3] == "| confidence | -0.700 [-0.750, -0.650] | 0.5 | 0.04% | 1.62% |"
    assert (
        "5,000 examples of tiny, 64 sweep members; the noise of this estimate bounds any score's at 0.971"
        in rows[5]
    )
    assert "commit abc" in rows[5] and TABLES["scores", None] is scores_table


def test_each_class_has_its_interval_or_none():
    rows = classes_table(RECORD).splitlines()
    assert rows[2] == "| cat | 1,500 | 12.5% | 0.300 [0.200, 0.400] | 0.750 |"
    assert rows[3] == "| dog | 1 | 0.0% | – | – |"


def test_published_scores_have_neither_cost_nor_ceiling():
    cost = dict.fromkeys(COST)
    scores = [row | {"cost": cost} for row in RECORD["scores"]]
    text = scores_table(RECORD | {"sweep": {"published": "x.npz"}, "ceiling": None, "scores": scores})
    assert "| confidence | -0.700 [-0.750, -0.650] | – | – | – |" in text
    assert "5,000 examples of tiny, published scores. 95 %" in text
