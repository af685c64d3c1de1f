"""What the figures draw, read back from the SVG itself."""

import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from rumfast.errors import UsageError
from rumfast.reporting.figures import cost_scatter, memorization_histogram, metric_bars

SVG = "{http://www.w3.org/2000/svg}"


def part(svg, name):
    """The group drawn for one artist, by the end of its id."""
    groups = ET.fromstring(svg).iter(f"{SVG}g")
    return next(group for group in groups if group.get("id", "").endswith(f"-{name}"))


def dot_xy(svg, name):
    use = next(part(svg, name).iter(f"{SVG}use"))
    return float(use.get("x")), float(use.get("y"))


def band_box(svg):
    """Left, right, top, bottom of the shaded band."""
    path = next(part(svg, "band").iter(f"{SVG}path")).get("d")
    numbers = np.array(re.findall(r"-?[\d.]+", path), dtype=float).reshape(-1, 2)
    return numbers[:, 0].min(), numbers[:, 0].max(), numbers[:, 1].min(), numbers[:, 1].max()


@pytest.mark.parametrize("metric", ["tow", "tow_mia", "accuracy_forget", "accuracy_retain", "mia"])
def test_dots_lie_where_their_means_do_in_the_colour_of_their_verdicts(result, metric):
    plans, band = result["plans"], result["bands"][metric]
    svg = metric_bars(plans, metric, band, metric)
    left, right, top, bottom = band_box(svg)
    heights = []
    for index, plan in enumerate(plans):
        x, y = dot_xy(svg, f"plan-{index}")
        mean = plan["metrics"][metric]["mean"]
        expected = left + (right - left) * (mean - band["low"]) / (band["high"] - band["low"])
        assert x == pytest.approx(expected, abs=0.01)
        assert top < y < bottom
        colours = {"inside": "--fig-in,", "outside": "--fig-out,"}
        colour = colours.get(plan["metrics"][metric]["verdict"], "--fig-muted,")
        assert colour in ET.tostring(part(svg, f"plan-{index}"), encoding="unicode")
        heights.append(y)
    assert heights == sorted(heights)  # the order of the table


def test_summary_flag_wins_over_our_own_comparison():
    plan = {"name": "a", "metrics": {"tow": {"mean": 0.5, "inside": True}}}
    svg = metric_bars([plan], "tow", {"low": 0.9, "high": 1.0}, "ToW")
    assert "a 0.500 (in band)" in svg


def test_a_plan_without_a_value_keeps_its_row():
    plans = [{"name": "a", "metrics": {"tow": {"mean": 0.9}}}, {"name": "b", "metrics": {"tow": None}}]
    svg = metric_bars(plans, "tow", None, "ToW")
    assert "no value" in svg and ">b</text>" in svg and "no oracle band" in svg


def test_scatter_places_points_by_cost_and_tow_and_names_them(result):
    svg = cost_scatter(result["plans"], result["bands"]["tow"])
    xy = [dot_xy(svg, f"point-{index}") for index in range(len(result["plans"]))]
    costs = [plan["cost"]["mean"] for plan in result["plans"]]
    tows = [plan["metrics"]["tow"]["mean"] for plan in result["plans"]]
    left = [x for x, _ in xy]
    assert np.allclose(np.polyval(np.polyfit(costs, left, 1), costs), left, atol=0.01)
    assert list(np.argsort(tows)) == list(np.argsort([-y for _, y in xy]))  # SVG's y runs downwards
    for plan in result["plans"]:
        assert f">{plan['name']}</text>" in svg
    _, _, top, bottom = band_box(svg)
    assert top < xy[4][1] < bottom < xy[0][1]


def test_scatter_leaves_out_what_has_no_cost(result):
    result["plans"][0]["cost"] = None
    svg = cost_scatter(result["plans"])
    assert ">none</text>" not in svg and ">rum</text>" in svg


def test_histogram_counts_what_is_known(images):
    score_N, forget_mask_N = images["score_N"], images["forget_mask_N"]
    known_N = np.isfinite(score_N)
    svg = memorization_histogram(score_N, forget_mask_N, images["flipped_mask_N"])
    assert f"training set ({known_N.sum():,})" in svg
    assert f"forget set ({(forget_mask_N & known_N).sum():,})" in svg
    assert "7 without an estimate" in svg and "flipped labels" in svg
    assert "flipped" not in memorization_histogram(score_N, forget_mask_N, np.zeros(1400, dtype=bool))


@pytest.mark.parametrize("scores", [[], [float("nan")], [-1.0], [1.0, 1.0, -0.3]])
def test_histogram_of_few_scores(scores):
    assert ET.fromstring(memorization_histogram(scores, [True] * len(scores))).tag == f"{SVG}svg"


def test_histogram_refuses_a_mask_of_another_length():
    with pytest.raises(UsageError, match="forget set mask"):
        memorization_histogram([0.1, 0.2], [True])


def test_every_colour_is_a_variable_with_a_light_fallback(result, images):
    for svg in (
        metric_bars(result["plans"], "tow", result["bands"]["tow"], "ToW"),
        cost_scatter(result["plans"], result["bands"]["tow"]),
        memorization_histogram(images["score_N"], images["forget_mask_N"], images["flipped_mask_N"]),
    ):
        assert not re.search(r"(?<!, )#[0-9a-f]{6}\b(?=[;\"])", svg)
        assert "<style" not in svg and "<metadata" not in svg


def test_drawing_leaves_matplotlib_as_it_was(result):
    before = dict(mpl.rcParams)
    metric_bars(result["plans"], "tow", None, "ToW")
    assert dict(mpl.rcParams) == before
