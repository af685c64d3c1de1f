"""The page of an audit says what its record says, to a person too."""

import re

import pytest

from rumfast.errors import StorageError
from rumfast.reporting.audit import render, write_audit
from rumfast.reporting.audit_text import (
    alarms_text,
    cautions,
    goal_text,
    mark_text,
    number_text,
    sentence,
    shared_band,
    span_text,
    verdict,
)


def model(record, name):
    return next(one for one in record["models"] if one["name"] == name)


def without_figures(record):
    """All but one audit and its figure left out: pages are drawn in a tenth of the time."""
    record |= {
        "ranking": {"metrics": [], "models": [], "tau": []},
        "breakdown": {},
        "roc": {},
        "examples": [],
    }
    for one in record["models"]:
        one["findings"] = {"tow": one["findings"]["tow"]}
    return record


# ---- words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("tow", 0.96649, "0.966"),
        ("accuracy_forget", 0.5, "50.0%"),
        ("klom_forget", 0.3449, "0.345"),
        ("klom_forget", 1.005, "1.00"),
        ("klom_forget", 11.24, "11.2"),
        ("relearning", 1234.4, "1,234"),
        ("tow", None, "–"),
    ],
)
def test_numbers_have_three_digits_or_percent(audit_record, metric, value, expected):
    assert number_text(audit_record, metric, value) == expected


def test_ranges_and_goals(audit_record):
    assert span_text(audit_record, "accuracy_forget", (0.5, 0.58)) == "50.0–58.0%"
    assert span_text(audit_record, "klom_forget", None) == ""
    assert goal_text(audit_record, "tow") == "0 to 1, higher is better"
    assert goal_text(audit_record, "relearning").startswith("0 to no limit, the retrained models' value")


def test_marks_are_those_of_the_verdicts(audit_record):
    marks = {
        name: mark_text(audit_record, model(audit_record, name), "klom_forget") for name in ("none", "salun")
    }
    assert marks == {"none": "8.25 ✗", "salun": "0.505 ?"}
    assert mark_text(audit_record, model(audit_record, "none"), "mia") == "0.430 –"
    del model(audit_record, "none")["findings"]["mia"]
    assert mark_text(audit_record, model(audit_record, "none"), "mia") == "–"


def test_band_is_the_one_of_most_models(audit_record):
    audit_record["models"][0]["findings"]["tow"]["null"] |= {"low": 0.8}
    assert shared_band(audit_record, "tow") == (0.91, 0.97)


def test_every_verdict_of_every_kind_is_a_sentence():
    sentences = {
        sentence({"name": "x", "kind": kind, "verdict": one, "utility": {"passed": useful}})
        for kind in ("oracle", "original", "plan", "control")
        for one in ("pass", "fail", "cannot tell")
        for useful in (True, False)
    }
    assert "“x” fails: these models no longer do their work." in sentences
    assert len(sentences) == 12 + 1 and all(text.startswith("“x” ") and text[-1] == "." for text in sentences)
    assert sum(text.startswith("“x” passes: ") for text in sentences) == 4


def test_headline_follows_the_plans_alone(audit_record):
    assert verdict(audit_record).state == "cannot tell" and "“salun”" in verdict(audit_record).headline
    model(audit_record, "salun")["verdict"] = "fail"
    assert verdict(audit_record).headline == "No plan matches retraining without the 30 examples."
    model(audit_record, "salun")["verdict"] = "pass"
    line = verdict(audit_record).headline
    assert line == "1 of 2 plans cannot be told from retraining without the 30 examples: “salun”."
    audit_record["models"] = [one for one in audit_record["models"] if one["kind"] != "plan"]
    assert verdict(audit_record).state == "cannot tell"


def test_cautions_name_blind_audits_and_models_that_went_the_wrong_way(audit_record):
    (blind,) = cautions(audit_record)
    assert blind.startswith("MIA: no power on this forget set.")
    wrong = {"held-out": "fail", "none": "pass", "constant": "pass"}
    for name, one in wrong.items():
        model(audit_record, name)["verdict"] = one
    audit_record["false_alarms"]["rate"] = 0.051
    notes = cautions(audit_record)
    assert [notes[place].split(" ")[0] for place in range(3)] == ["“held-out”", "“none”", "“constant”"]
    assert notes[4].startswith("More false alarms than the stated level of 5%")


def test_alarms_are_counted_over_audits_and_draws(audit_record):
    said = (
        "1 of 20 draws of held-out oracles raised an alarm (5%; stated level 5%), 2 of 120 verdicts in all."
    )
    assert alarms_text(audit_record) == said


# ---- the page ---------------------------------------------------------------------------------------------


def test_page_is_balanced_self_contained_and_the_same_twice(audit_record, outline):
    text = render(audit_record)
    page = outline(text)
    assert text == render(audit_record)
    assert "script" not in page.tags and "link" not in page.tags
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = {value for name, value in page.attributes if name in {"aria-labelledby", "aria-describedby"}}
    assert named and named <= set(ids)
    assert text.count("<th ") == text.count('<th scope="')
    described = len(re.findall(r"<svg [^>]*role=\"img\" aria-label=\"[^\"]+\"", text))
    assert described == text.count("<svg") == 6 + 2 + 1 + 1 + 1  # audits, parts, ROC, an example, ranks


def test_page_says_every_verdict_reason_value_and_definition(audit_record, outline):
    model(audit_record, "salun")["time"] = 0.375
    page = outline(render(audit_record)).text
    assert page.count("that retraining takes") == 2  # of the plans alone
    assert "25% of the gradients and 38% of the time that retraining takes" in page
    for one in audit_record["models"]:
        assert sentence(one) in page and all(reason in page for reason in one["reasons"])
        for metric, finding in one["findings"].items():
            text = number_text(audit_record, metric, finding["value"])
            span = span_text(audit_record, metric, (finding["low"], finding["high"]))
            assert re.search(rf"{re.escape(text)} {re.escape(span)} . {finding['verdict']}", page)
    assert "0.505 0.497–0.513 ? cannot tell about 250 needed" in page
    assert "KLoM what KLoM is; 0 to no limit, lower is better. Source: a paper." in page
    assert "2 plans, each on 64 models" in page and "20 more of these to test the audits" in page
    assert "constant 0.110 0.900 ✗ no fail" in page and "held-out 1.000 0.900 ✓ yes pass" in page
    assert "U-LiRA AUC yes yes 1 of 20" in page and "MIA yes no power 0 of 20" in page
    assert "-0.70 -0.90 to -0.40 disagree" in page and "-0.20 -0.50 to +0.10 either" in page
    assert "relearning steps of fresh models, mean 90.0" in page and "stated level 5%" in page


def test_colour_never_speaks_alone(audit_record):
    text = render(audit_record)
    for tone, marks in (
        ("good", {"✓", "a"}),
        ("bad", {"✗", "d"}),
    ):  # inside, agree; outside, disagree
        assert {words[0] for words in re.findall(rf'<small class="{tone}">([^<]+)', text)} == marks


def test_a_cell_tells_its_own_band_where_it_is_another(audit_record, outline):
    audit_record["models"][0]["findings"]["tow"]["null"] |= {"low": 0.8, "high": 0.99}
    page = outline(render(without_figures(audit_record))).text
    assert page.count("band 0.800–0.990") == 1 and page.count("band 0.910–0.970") == 0


def test_hostile_names_stay_text(audit_record, outline):
    hostile = '<script>alert("x")</script>&amp;$\\frac$ " onload="x'
    audit_record["name"] = audit_record["models"][2]["name"] = hostile
    audit_record["metrics"]["tow"]["label"] = audit_record["models"][1]["reasons"][0] = hostile
    audit_record["examples"][0]["label"] = hostile
    page = outline(render(audit_record))
    assert "script" not in page.tags and page.text.count(hostile) >= 6
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_what_was_not_made_leaves_no_section(audit_record, outline):
    without_figures(audit_record)
    audit_record["models"][1]["findings"]["tow"] |= {"value": None, "low": None, "high": None}
    text = render(audit_record)
    page = outline(text).text
    for title in (
        "Parts of the forget set",
        "Membership attacks",
        "Margins of single",
        "order the models alike",
    ):
        assert title not in page
    matrix = text[text.index('id="matrix"') : text.index("How it was made")]
    assert "relearning" not in matrix and text.count("<svg") == 1
    assert not re.search(r"\b(nan|None)\b", page)


def test_write_puts_the_page_or_says_why_not(audit_record, tmp_path):
    without_figures(audit_record)
    write_audit(tmp_path / "audit" / "index.html", audit_record)
    assert (tmp_path / "audit" / "index.html").read_text(encoding="utf-8") == render(audit_record)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_audit(tmp_path / "file" / "index.html", audit_record)


def test_rmia_a_is_shown_where_it_was_chosen(audit_record):
    assert "RMIA&#39;s a, chosen on the oracles" not in render(audit_record)  # audits of before
    page = render(audit_record | {"rmia_a": 0.3})
    assert re.search(r"RMIA&#39;s a, chosen on the oracles.{0,40}0\.3<", page, re.DOTALL)
