"""The page is whole, safe, self-contained and says what the summary says."""

import base64
import io
import os
import re

import numpy as np
import pytest
from PIL import Image

from rumfast.errors import StorageError, UsageError
from rumfast.reporting.page import png_uri, render, write_report


def test_page_is_balanced_self_contained_and_has_no_script(result, images, outline):
    text = render(result, images)
    page = outline(text)
    assert "script" not in page.tags and "link" not in page.tags
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"src", "href", "xlink:href"}:
            assert value.startswith(("data:image/png;base64,", "#"))
    # Namespaces are names, not addresses; nothing else may point outside.
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in text and "url(http" not in text


def test_ids_are_unique_and_local_references_resolve(result, images, outline):
    page = outline(render(result, images))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for name, value in page.attributes if name.endswith("href")}
    for name, value in page.attributes:
        if name == "clip-path":
            used.add(value.removeprefix("url(#").removesuffix(")"))
        if name in {"aria-labelledby", "aria-describedby"}:
            used.add(value)
    assert used and used <= set(ids)


def test_same_input_gives_the_same_bytes(result, images, tmp_path):
    first, second = tmp_path / "a.html", tmp_path / "b.html"
    write_report(first, result, images)
    write_report(second, result, images)
    assert first.read_bytes() == second.read_bytes()


def test_every_plan_and_number_is_there_rightly_rounded(result, images, outline):
    page = outline(render(result, images))
    for plan in result["plans"]:
        assert plan["name"] in page.text
        for metric, value in plan["metrics"].items():
            mean = value["mean"]
            assert (f"{100 * mean:.1f}%" if metric.startswith("accuracy") else f"{mean:.3f}") in page.text
    # rum's ToW is 0.96649 ± 0.012, its retain accuracy 0.9962 ± 0.012
    for expected in ("0.966 0.954–0.978 in band", "99.6% 98.4–100.0% no power", "29% 27% – 31%", "2.9 s"):
        assert expected in page.text
    assert "memorization:mixed:150" in page.text and "150 of 1,400 training examples" in page.text


def test_verdict_comes_before_table_before_figures(result, images):
    text = render(result, images)
    marks = ('class="headline"', "<table", "<figure>", 'class="gallery"', "<dl>\n")
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)


def test_tables_and_figures_are_accessible(result, images):
    text = render(result, images)
    assert text.count("<th ") == text.count('<th scope="')
    assert len(re.findall(r"<svg [^>]*role=\"img\" aria-label=\"[^\"]+\"", text)) == text.count("<svg") == 8
    assert len(re.findall(r"<img [^>]*alt=\"[^\"]+\"", text)) == text.count("<img ") == 32


def test_forgotten_examples_stand_before_the_neighbours_that_stay(result, images, outline):
    text = outline(render(result, images)).text
    assert "What stays nearby" in text
    row = [
        text.index(f"id {example}")
        for example in ("1310, to forget", "20, distance 1.25", "24, distance 5.25")
    ]
    assert row == sorted(row)
    assert "0.91" in text and "0.0123" in text
    del images["neighbours"]
    assert "What stays nearby" not in outline(render(result, images)).text


HOSTILE = '<script>alert("x")</script>&amp;$\\frac$ " onload="x'


def test_hostile_names_stay_text(result, images, outline):
    result["name"] = result["command"] = HOSTILE
    result["dataset"]["classes"][3] = HOSTILE
    result["plans"][4]["name"] = result["plans"][4]["steps"] = HOSTILE
    result["metrics"]["tow"]["label"] = result["metrics"]["tow"]["definition"] = HOSTILE
    result["forget"]["groups"][0]["name"] = result["environment"]["hardware"] = HOSTILE
    images["most"][0]["label"] = images["most"][0]["clean_label"] = HOSTILE
    page = outline(render(result, images))
    assert "script" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.text.count(HOSTILE) >= 7


def test_names_from_other_scripts_and_of_any_length(result, images, outline):
    result["plans"][0]["name"] = "忘却の計画"
    result["plans"][1]["name"] = "long-" * 60
    page = outline(render(result, images))
    assert "忘却の計画" in page.text and "long-" * 60 in page.text


def test_nulls_nan_one_plan_and_one_seed(result, images, outline):
    plan = result["plans"][4]
    for value in plan["metrics"].values():
        value |= {"low": None, "high": None}
    plan["metrics"]["mia"] = {"mean": float("nan"), "low": float("nan"), "high": 0.5, "values": [None]}
    plan["cost"], plan["wall_s"] = 0.25, None
    result |= {"plans": [plan], "seeds": 1, "budget_examples": None}
    result["dataset"] |= {"flipped": 0, "classes": [f"class {index}" for index in range(100)]}
    images["flipped_mask_N"] = np.zeros(1400, dtype=bool)
    images["score_N"] = np.full(1400, np.nan)
    images["most"][0] |= {"score": float("nan"), "clean_label": None}
    page = outline(render(result, images))
    assert "25%" in page.text and "One seed per plan" in page.text and "class 99" in page.text
    assert not re.search(r"\b(nan|None)\b", page.text)


def test_the_least_a_summary_can_hold(outline):
    page = outline(render({"plans": []}, {}))
    assert "No verdict" in page.text and "Examples" not in page.text and "Figures" not in page.text


def test_no_bands_means_no_judgement(result, images, outline):
    result["bands"] = {}
    for plan in result["plans"]:
        for value in plan["metrics"].values():
            del value["inside"]
    page = outline(render(result, images))
    assert "No verdict" in page.text and "in band" not in page.text


def test_write_replaces_whole_and_leaves_nothing_behind(result, images, tmp_path):
    target = tmp_path / "report" / "index.html"
    write_report(target, result, images)
    before = target.read_bytes()
    images["most"][0]["image"] = np.zeros((8, 8, 3))  # floats: refused before anything is written
    with pytest.raises(UsageError, match="expected uint8"):
        write_report(target, result, images)
    assert target.read_bytes() == before and os.listdir(target.parent) == ["index.html"]


def test_unwritable_folder_is_a_storage_error(result, images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_report(tmp_path / "file" / "index.html", result, images)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (1, 1, 3)])
def test_png_keeps_every_pixel(shape):
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    data = base64.b64decode(png_uri(pixels).removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))).reshape(shape), pixels)
