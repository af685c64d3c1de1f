"""What an audit's figures draw, read back from the SVG itself."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from rumfast.reporting.audit_figures import (
    agreement,
    breakdown_panels,
    finding_rows,
    margin_panels,
    rank_rows,
)
from rumfast.reporting.audit_roc import roc_panels, tpr_at

SVG = "{http://www.w3.org/2000/svg}"


def parts(svg, name):
    """The groups drawn for artists of one id, in order."""
    groups = ET.fromstring(svg).iter(f"{SVG}g")
    return [group for group in groups if re.fullmatch(rf"f\w+-{re.escape(name)}", group.get("id", ""))]


def dot_xy(group):
    use = next(group.iter(f"{SVG}use"))
    return float(use.get("x")), float(use.get("y"))


def path_xy(group):
    """Corners of a path; an area's is drawn by a <use> that moves it."""
    path, use = next(group.iter(f"{SVG}path")).get("d"), next(group.iter(f"{SVG}use"), {})
    offset = [float(use.get(axis, 0)) for axis in "xy"]
    return np.array(re.findall(r"-?[\d.]+", path), dtype=float).reshape(-1, 2) + offset


@pytest.mark.parametrize("metric", ["tow", "accuracy_forget", "klom_forget", "relearning", "mia"])
def test_each_row_holds_its_value_against_its_own_band(audit_record, metric):
    audit_record["models"][0]["findings"][metric]["null"]["high"] *= 1.01
    svg, heights = finding_rows(audit_record, metric), []
    roles = {"inside": "in", "outside": "out", "cannot tell": "muted", "no power": "muted"}
    for place, model in enumerate(audit_record["models"]):
        finding, (dot,) = model["findings"][metric], parts(svg, f"dot-{place}")
        corners = path_xy(parts(svg, f"band-{place}")[0])
        (left, top), (right, bottom) = corners.min(0), corners.max(0)
        x, y = dot_xy(dot)
        null = finding["null"]
        share = (finding["value"] - null["low"]) / (null["high"] - null["low"])
        assert x == pytest.approx(left + share * (right - left), abs=0.02 * max(1, abs(share)))
        assert top < y < bottom
        drawn = ET.tostring(dot, encoding="unicode")
        assert f"stroke: var(--fig-{roles[finding['verdict']]}," in drawn
        hollow = finding["verdict"] in {"no power", "outside"}
        assert ("fill: var(--fig-paper," in drawn) == hollow
        heights.append(y)
    assert heights == sorted(heights)


def test_rows_are_said_aloud_with_their_verdicts(audit_record):
    svg = finding_rows(audit_record, "klom_forget")
    assert "KLoM per model: held-out 0.400 (inside); none 8.25 (outside); salun 0.505 (cannot tell);" in svg
    assert "0 to no limit, lower is better" in svg


def test_a_model_without_the_audit_keeps_its_row(audit_record):
    del audit_record["models"][1]["findings"]["tow"]
    svg = finding_rows(audit_record, "tow")
    assert "no value" in svg and not parts(svg, "dot-1") and parts(svg, "dot-2")


def test_parts_stand_in_one_panel_per_model(audit_record):
    svg = breakdown_panels(audit_record, "class")
    panels = [parts(svg, f"dot-{panel}-2")[0] for panel in range(5)]  # the third class of each model
    values = [parts["class"]["2"]["value"] for parts in audit_record["breakdown"].values()]
    assert len(values) == 5
    first = [dot_xy(group)[1] for group in panels[:4]]  # the first row of panels has one axis of y
    assert np.allclose(np.polyval(np.polyfit(values[:4], first, 1), values[:4]), first, atol=0.01)
    assert "finetune: 0 75.0%, 1 72.0%, 2 69.0%" in svg and "by class" in svg
    assert "by memorization level" in breakdown_panels(audit_record, "level")


def test_many_parts_name_every_few(audit_record):
    one = audit_record["breakdown"]["salun"]["class"]["0"]
    audit_record["breakdown"] = {"salun": {"class": {f"class {index}": one for index in range(25)}}}
    svg = breakdown_panels(audit_record, "class")
    assert re.findall(r">class (\d+)</text>", svg) == [str(index) for index in range(0, 25, 3)]
    assert len(parts(svg, "dot-0-24")) == 1


def test_margins_are_shares_of_models_in_common_bins(audit_record):
    svg = margin_panels(audit_record["examples"][0])
    ours = [*parts(svg, "margins-unlearned-0"), *parts(svg, "margins-unlearned-1")]
    (oracles,) = parts(svg, "margins-oracle-1")
    assert len(ours) == 2 and parts(svg, "margins-original-1")
    # SalUn's two margins, −1.5 and −0.5, lie among the oracles'; fine-tuning's, 3 to 5, to their right.
    heights = [path_xy(group)[:, 1] for group in (*ours, oracles)]
    tall = [values.max() - values.min() for values in heights]
    assert np.allclose(np.array(tall) / tall[0], [1.0, (1 / 3) / (1 / 2), (1 / 4) / (1 / 2)], atol=0.01)
    assert "Median margin, nats: oracle -0.50; original 9.00; salun -1.00; finetune 4.00." in svg
    assert "memorization 0.93" in svg
    audit_record["examples"][0]["memorization"] = None
    assert "memorization" not in margin_panels(audit_record["examples"][0])


def test_populations_that_are_all_alike_have_a_picture():
    margins = {name: [2.0, 2.0] for name in ("original", "oracle", "salun")}
    assert len(parts(margin_panels({"id": 1, "label": "0", "margins": margins}), "margins-unlearned-0")) == 1


def test_roc_axes_are_logarithmic_and_marks_lie_on_the_curve(audit_record):
    svg = roc_panels(audit_record)
    (low,), (high,) = parts(svg, "tpr-u_lira-0-0.001"), parts(svg, "tpr-u_lira-0-0.01")
    (other,) = parts(
        svg, "tpr-u_lira-1-0.001"
    )  # of none: 0.225, nine times held-out's 0.025, in the same row
    (x0, y0), (x1, y1), (_, y2) = dot_xy(low), dot_xy(high), dot_xy(other)
    assert x1 > x0 and y0 > y1  # held-out: 0.025 at 0.1 %, 0.05 at 1 %
    assert (y0 - y2) / (y0 - y1) == pytest.approx(np.log(9) / np.log(2), abs=0.02)
    assert "none, U-LiRA: 45.0% at 0.01 false positives, 22.5% at 0.001 false positives" in svg
    assert "$" not in svg and ">0.1%</text>" in svg


def test_a_curve_of_many_corners_is_drawn_with_few(audit_record):
    fpr = np.sort(np.random.default_rng(0).random(20_000))
    curve = {"fpr": fpr.tolist(), "tpr": np.sqrt(fpr).tolist()}
    svg = roc_panels({"roc": {"salun": {"u_lira": curve}}})
    corners = path_xy(parts(svg, "roc-u_lira-0")[0])
    assert 200 < len(corners) < 1000
    (x0, y0), (x1, y1) = corners[0], corners[-1]
    slope = np.polyfit((corners[:, 0] - x0) / (x1 - x0), (corners[:, 1] - y0) / (y1 - y0), 1)
    assert slope == pytest.approx([1.0, 0.0], abs=0.02)  # a root is a straight line on logarithmic axes


def test_true_positive_rate_never_looks_ahead():
    curve = {"fpr": [0.0, 0.002, 0.5], "tpr": [0.1, 0.4, 0.9]}
    assert tpr_at(curve, np.array([0.001, 0.002, 0.01, 1.0])).tolist() == [0.1, 0.4, 0.4, 0.9]
    assert tpr_at({"fpr": [0.5, 1.0], "tpr": [0.9, 1.0]}, np.array([0.01])).tolist() == [0.0]


def test_audits_that_agree_least_come_first(audit_record):
    svg = rank_rows(audit_record, ("tow", "klom_forget", "u_lira_auc", "relearning"))
    pairs = ["KLoM and U-LiRA AUC -0.700", "ToW and U-LiRA AUC -0.200", "ToW and KLoM +0.600"]
    places = [svg.index(pair) for pair in pairs]
    assert places == sorted(places)
    xs = [dot_xy(parts(svg, f"difference-{row}")[0])[0] for row in (1, 2, 3)]
    assert np.allclose(np.diff(xs) / (xs[2] - xs[0]), [0.5 / 1.3, 0.8 / 1.3], atol=0.01)
    for row, role in ((1, "out"), (2, "muted"), (3, "in")):
        assert f"--fig-{role}," in ET.tostring(parts(svg, f"difference-{row}")[0], encoding="unicode")
    assert "Kendall’s τ" in svg


def test_agreement_needs_an_interval_on_one_side_of_zero():
    taus = [(0.1, 0.9), (-0.9, -0.1), (-0.1, 0.9), (None, None)]
    found = [agreement({"mean": 0.0, "low": low, "high": high}) for low, high in taus]
    assert found == ["held", "contradicted", "undecided", "undecided"]


@pytest.mark.parametrize("draw", [finding_rows, breakdown_panels])
def test_no_models_are_still_a_picture(audit_record, draw):
    audit_record |= {"models": [], "breakdown": {}}
    assert ET.fromstring(draw(audit_record, "tow" if draw is finding_rows else "class")).tag == f"{SVG}svg"
