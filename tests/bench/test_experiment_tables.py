"""Tables of experiments say what the record says."""

import pytest

from rumfast.bench.experiment_tables import (
    differences_table,
    difficulty_table,
    findings_table,
    plans_table,
)
from rumfast.bench.readme import TABLES


def rows(text):
    """First cell → the other cells, of a table's lines."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    assert len({len(row) for row in cells}) == 1
    return {row[0]: row[1:] for row in cells}


def test_difficulty_table_has_a_column_for_each_set_in_its_order(difficulty_record):
    table = rows(difficulty_table("tow")(difficulty_record))
    assert table["ToW"][:2] == ["memorization low", "memorization mid"] and len(table["ToW"]) == 6
    assert table["*memorization, mean*"][:3] == ["0.10", "0.50", "0.90"]
    assert table["*ES*"][3:] == ["30", "20", "40"]
    # finetune at low: 0.90, 0.91, 0.93; their mean is 0.9133, and t(0.975, 2) s/√3 = 0.038
    assert table["`finetune`"][0] == "**0.913** [0.875, 0.951]"
    assert table["*retrained*"][0] == "0.850 – 0.950"


def test_what_is_left_out_is_named_with_its_reason(difficulty_record, rum_record):
    assert "`influence` at entanglement low cost more than the budget or failed" in difficulty_table("tow")(
        difficulty_record
    )
    assert "Left out: `salun` diverged." in plans_table(rum_record)
    del difficulty_record["sets"][0]["algorithms"]["salun"]
    assert rows(difficulty_table("tow_mia")(difficulty_record))["`salun`"][0] == ""


def test_setting_reckons_minutes_from_the_workers_seconds(difficulty_record):
    text = difficulty_table("tow")(difficulty_record)
    assert "3 seeds, 4 oracles; 2 minutes of training by 2 workers" in text and "commit abc" in text


def test_plans_in_the_band_are_bold(rum_record):
    table = rows(plans_table(rum_record))
    assert table["`auto`"][0].startswith("**0.933**") and table["`rum`"][0].startswith("0.850 [")
    assert table["`auto`"][-2:] == ["25%", "40"] and table["`rum`"][-1] == "4"
    assert "`auto` is `all: auto`" in plans_table(rum_record)


def test_differences_are_bold_where_the_interval_excludes_zero(rum_record):
    table = rows(differences_table(rum_record))
    # 0.10, 0.11, 0.10: mean 0.1033, half 4.303 · 0.00577 / √3 = 0.0143
    assert table["`finetune+rum-f` − `finetune`"] == ["**+0.103** [+0.089, +0.118] †"] * 2 + [""]
    assert table["`finetune+rum-f` − `finetune+shuffle`"] == ["+0.000 [+0.000, +0.000]"] * 2 + [""]
    assert table["`rum` − `rum+reversed`"][0].startswith("+0.010")
    assert all(table["`auto` (40) − `finetune` (4)"])  # and the mean of both
    assert f"{rum_record['intervals']} intervals at 95 %" in differences_table(rum_record)


def test_a_difference_that_does_not_hold_for_all_together_has_no_mark(rum_record):
    rum_record["differences"][0]["simultaneous"] = "undecided"
    row = rows(differences_table(rum_record))["`finetune+rum-f` − `finetune`"]
    assert row[0] == "**+0.103** [+0.089, +0.118]"


def test_findings_table_counts_and_names(difficulty_record, rum_record):
    table = rows(findings_table(difficulty_record))
    assert table["ToW falls as memorization rises"] == ["1: `finetune` †", "0", "0", "held"]
    assert "RUM^F beats vanilla in ToW, 1 of 2 compared" in rows(findings_table(rum_record))
    relabelling = table["ToW falls as memorization rises, relabelling methods"]
    assert relabelling[1].startswith("1: `salun`") and relabelling[3] == "contradicted"


@pytest.mark.parametrize("part", [None, "mia", "findings", "differences"])
def test_readme_knows_every_part(part, difficulty_record, rum_record):
    for kind, record in (("difficulty", difficulty_record), ("rum", rum_record)):
        if (kind, part) in TABLES:
            assert TABLES[kind, part](record).endswith("\n")
        else:
            assert (kind, part) in {("difficulty", "differences"), ("rum", "mia")}
