"""The page of an experiment, and its figures read back from the SVG."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from rumfast.errors import StorageError
from rumfast.reporting.experiment import finding_text, render, write_experiments
from rumfast.reporting.experiment_figures import difference_rows, level_panels

SVG = "{http://www.w3.org/2000/svg}"


def dot_xy(svg, name):
    groups = ET.fromstring(svg).iter(f"{SVG}g")
    group = next(group for group in groups if group.get("id", "").endswith(f"-{name}"))
    use = next(group.iter(f"{SVG}use"))
    return float(use.get("x")), float(use.get("y")), ET.tostring(group, encoding="unicode")


def on_axis(record, axis):
    return [each for each in record["sets"] if each["axis"] == axis]


def test_panels_place_means_by_value_and_levels_by_what_was_measured(difficulty_record):
    sets = on_axis(difficulty_record, "entanglement")  # low measured 30, mid 20, high 40
    svg = level_panels(sets, "entanglement", "tow", "ToW")
    by_level = {each["level"]: each["algorithms"]["salun"]["metrics"]["tow"]["mean"] for each in sets}
    means = [by_level[level] for level in ("mid", "low", "high")]
    dots = [dot_xy(svg, f"dot-2-{x}") for x in range(3)]  # salun is the third algorithm
    assert [x for x, _, _ in dots] == sorted(x for x, _, _ in dots)
    heights = [y for _, y, _ in dots]
    assert np.allclose(np.polyval(np.polyfit(means, heights, 1), means), heights, atol=0.01)
    assert heights[1] > heights[0] > heights[2]  # SVG's y runs downwards
    assert "mid 20, low 30, high 40" in svg
    assert "salun: mid 0.703, low 0.603, high 0.803" in svg


def test_panels_colour_by_the_null_band_of_their_own_set(difficulty_record):
    svg = level_panels(on_axis(difficulty_record, "memorization"), "memorization", "tow", "ToW")
    inside, outside = dot_xy(svg, "dot-1-0")[2], dot_xy(svg, "dot-1-2")[2]  # finetune: 0.913 and 0.513
    assert "--fig-out," in outside and "--fig-out," not in inside


def test_an_algorithm_missing_on_one_set_keeps_its_other_dots(difficulty_record):
    sets = on_axis(difficulty_record, "memorization")
    del sets[1]["algorithms"]["finetune"]
    svg = level_panels(sets, "memorization", "tow", "ToW")
    assert dot_xy(svg, "dot-1-0") and dot_xy(svg, "dot-1-2")
    with pytest.raises(StopIteration):
        dot_xy(svg, "dot-1-1")


def test_differences_lie_left_or_right_of_zero_under_their_claim(difficulty_record):
    rows = [row for row in difficulty_record["differences"] if row["one"].startswith("memorization:")]
    svg = difference_rows(rows, "Differences")
    lines, xs = [], {}
    for claim in dict.fromkeys(row["claim"] for row in rows):
        lines += [None, *(row for row in rows if row["claim"] == claim)]
        assert f">{claim}</text>" in svg
    for y, row in enumerate(lines):
        if row is not None:
            x, _, drawn = dot_xy(svg, f"difference-{y}")
            xs[row["subject"], row["metric"]] = x
            role = {"held": "in", "contradicted": "out", "undecided": "muted"}[row["verdict"]]
            assert f"--fig-{role}," in drawn
    assert xs["salun", "tow"] < xs["none", "tow"] < xs["finetune", "tow"]


def test_a_difference_of_one_seed_is_drawn_without_an_interval():
    row = {
        "claim": None, "subject": "a − b", "metric": "tow", "one": "a", "other": "b", "verdict": "undecided",
        "interval": {"mean": 0.1, "low": None, "high": None, "values": [0.1]},
    }  # fmt: skip
    svg = difference_rows([row], "One")
    assert dot_xy(svg, "difference-1") and "also measured" in svg and "a − b +0.100 (undecided)" in svg


@pytest.mark.parametrize("draw", [level_panels, difference_rows])
def test_no_rows_are_still_a_picture(draw):
    arguments = ("memorization", "tow") if draw is level_panels else ()
    assert ET.fromstring(draw([], *arguments, "Nothing")).tag == f"{SVG}svg"


# ---- the page ---------------------------------------------------------------------------------------------


def test_page_of_both_experiments_is_balanced_and_self_contained(difficulty_record, rum_record, outline):
    text = render([difficulty_record, rum_record])
    page = outline(text)
    assert "script" not in page.tags and "link" not in page.tags
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    labelled = {value for name, value in page.attributes if name == "aria-labelledby"}
    assert labelled and labelled <= set(ids)
    assert text == render([difficulty_record, rum_record])
    assert text.count("<svg") == 6 + 4 and text.count("<th ") == text.count('<th scope="')


def test_page_says_every_finding_number_and_what_is_left_out(difficulty_record, rum_record, outline):
    page = outline(render([difficulty_record, rum_record]))
    for record in (difficulty_record, rum_record):
        for finding in record["findings"]:
            assert finding_text(finding) in page.text
    assert "ToW falls as memorization rises: held (finetune); with Bonferroni 1 held." in page.text
    assert "RUM^F beats vanilla in ToW, 1 of 2 compared: held (finetune+rum-f − finetune)" in page.text
    assert "salun diverged on" not in page.text and "salun diverged and is left out." in page.text
    why = "cost more than the budget or failed with every setting"
    assert f"influence {why} on entanglement:low:20 and is left out." in page.text
    for plan in rum_record["plans"]:
        assert plan["name"] in page.text and f"{plan['metrics']['tow']['mean']:.3f}" in page.text
    assert page.text.count("memorization:low:20, mean memorization 0.123, of its surrogates 0.119") == 1
    assert "memorization:mixed:30, mean distance 2.5, of its surrogates 2.75" in page.text
    assert "auto (40) − finetune (4)" in page.text and "rum − rum+reversed" in page.text
    assert "6 forget sets of 20 among 200 training examples of digits; 3 seeds, 4 oracles" in page.text


def test_dots_of_plans_come_best_first(rum_record):
    text = render([rum_record])
    figure = text[text.index("ToW, best first per plan:") :]
    order = [figure.index(f" {name} 0.") for name in ("auto", "rum", "finetune", "none")]
    assert order == sorted(order)


def test_hostile_names_stay_text(difficulty_record, outline):
    hostile = '<script>alert("x")</script>&amp;$\\frac$ " onload="x'
    difficulty_record["name"] = difficulty_record["notes"][0] = hostile
    difficulty_record["findings"][0]["claim"] = difficulty_record["differences"][0]["claim"] = hostile
    page = outline(render([difficulty_record]))
    assert "script" not in page.tags and page.text.count(hostile) >= 3
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_a_folder_that_cannot_be_written_is_a_storage_error(rum_record, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_experiments(tmp_path / "file" / "index.html", [rum_record])
