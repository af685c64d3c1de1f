"""Tables of an audit say what the record says."""

import pytest

from rumfast.bench.audit_tables import (
    audit_alarms,
    audit_all,
    audit_matrix,
    audit_metrics,
    audit_ranking,
    audit_speed,
)
from rumfast.bench.readme import TABLES, render
from rumfast.store import write_text


def rows(text):
    """First cell → the other cells, of a table's lines."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    return {row[0]: row[1:] for row in cells}


def test_matrix_marks_the_headline_audits_of_each_model(audit_record):
    table = rows(audit_matrix(audit_record))
    labels = ["utility", "ToW", "MIA", "KLoM", "U-LiRA AUC", "relearning", "verdict"]
    assert table["model"] == labels  # forget accuracy is none of the headline
    assert table["`salun`"] == [
        "1.000 ✓",
        "0.930 ✓",
        "0.440 –",
        "0.505 ?",
        "0.520 ✓",
        "33.0 ✓",
        "cannot tell",
    ]
    assert table["`constant`"][0] == "0.110 ✗" and table["`constant`"][-1] == "fail"
    assert table["*retrained*"][:2] == ["≥ 0.900", "0.910–0.970"]
    assert list(table)[2:-1] == ["`held-out`", "`none`", "`salun`", "`finetune`", "`constant`"]


def test_matrix_of_all_has_every_audit(audit_record):
    table = rows(audit_all(audit_record))
    assert table["forget accuracy"] == ["50.0–58.0%", "54.0% ✓", "100.0% ✗", "56.0% ✓", "75.0% ✗", "10.0% ✗"]
    assert table["*verdict*"] == ["", "pass", "fail", "cannot tell", "fail", "fail"]


def test_metrics_are_defined(audit_record):
    audit_record["metrics"]["tow"]["definition"] = "product of 1 − |difference|"
    text = audit_metrics(audit_record)
    assert "| ToW | product of 1 − \\|difference\\| | higher | a paper |" in text
    assert "| forget accuracy | what forget accuracy is | as oracles | a paper |" in text


def test_speed_is_of_all_populations():
    environment = {"gpu": None, "cpu": "a CPU", "torch": "2.11", "rumfast": "1", "commit": "abc"}
    sizes = {"forget": 1000, "retain": 7000, "test": 2000, "models": 64, "metrics": 25}
    text = audit_speed(
        {"environment": environment, "collect_s": 24.71, "audit_s": 9.0, "peak_mb": 370.4} | sizes
    )
    assert rows(text)["null bands, intervals and verdicts, s"] == ["9.0"]
    assert "25 audits of 3 × 64 models, 10,000 examples, made-up logits; a CPU, torch 2.11" in text


def test_alarms_and_power(audit_record):
    del audit_record["false_alarms"]["counts"]["relearning"], audit_record["power"]["relearning"]
    table = rows(audit_alarms(audit_record))
    assert table["ToW"] == ["1 of 20", "yes"] and table["MIA"] == ["0 of 20", "no power"]
    assert table["relearning"] == ["–", "–"]
    assert "2 of 100 verdicts in all" in audit_alarms(audit_record)


def test_ranking_is_bold_where_the_interval_excludes_zero(audit_record):
    table = rows(audit_ranking(audit_record))
    assert table["Kendall's τ"] == ["KLoM", "U-LiRA AUC"]
    assert table["ToW"] == ["**+0.60** [+0.20, +0.90]", "-0.20 [-0.50, +0.10]"]
    assert table["KLoM"] == ["", "**-0.70** [-0.90, -0.40]"]
    assert "Over `none`, `salun`, `finetune`" in audit_ranking(audit_record)


def test_ranking_without_a_value_has_a_dash(audit_record):
    audit_record["ranking"]["tau"][0][1] = {"mean": None, "low": None, "high": None}
    assert rows(audit_ranking(audit_record))["ToW"][0] == "–"


@pytest.mark.parametrize("table", [audit_matrix, audit_all, audit_alarms, audit_ranking])
def test_every_table_tells_its_setting(audit_record, table):
    last = table(audit_record).splitlines()[-1]
    assert "30 of 200 training examples forgotten; 64 models of each kind, 20 held-out oracles" in last
    assert "a CPU, torch 2.11, rumfast 1, commit abc." in last


def test_readme_knows_every_part(audit_record, tmp_path):
    import json

    write_text(tmp_path / "audit.json", json.dumps(audit_record))
    for part in (None, "all", "alarms", "ranking"):
        block = f"<!-- record: audit.json{f' {part}' if part else ''} -->\nold\n<!-- end -->"
        assert TABLES["audit", part](audit_record) in render(block, tmp_path)
