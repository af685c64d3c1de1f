"""What ``rumfast audit`` prints."""

import json

from rumfast.cli.audit_output import show_audit


def test_json_is_the_record(audit_record, capsys):
    show_audit(audit_record, True)
    assert json.loads(capsys.readouterr().out) == audit_record


def test_table_has_a_row_per_audit_and_a_sentence_per_model(audit_record, capsys):
    show_audit(audit_record, False)
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "KLoM" in line)
    cells = [cell.strip() for cell in line.strip("│┃ ").split("│")]
    assert cells == ["KLoM", "0.300–0.500", "0.400 ✓", "8.25 ✗", "0.505 ?", "2.50 ✗", "11.2 ✗"]
    assert "✓ inside the band of retrained models; ✗ outside" in out
    assert "“salun” is undecided: too few models, or too weak audits, to tell whether they forgot.\n" in out
    assert "    ToW is outside the band of retrained models\n" in out
    assert "1 of 20 draws of held-out oracles raised an alarm" in out and "MIA: no power" in out
    assert max(map(len, out.split("✓ inside the band")[0].splitlines())) <= 120


def test_many_models_make_several_tables(audit_record, capsys):
    plan = audit_record["models"][2]
    names = [f"a-plan-of-a-long-name-{index}" for index in range(8)]
    audit_record["models"] += [plan | {"name": name} for name in names]
    show_audit(audit_record, False)
    tables = capsys.readouterr().out.split("✓ inside the band")[0]
    assert tables.count("KLoM") == 3 and max(map(len, tables.splitlines())) <= 120
    assert tables.count("0.505 ?") == 1 + 8


def test_names_are_not_markup(audit_record, capsys):
    audit_record["models"][2]["name"] = "[bold]"
    audit_record["metrics"]["tow"]["label"] = "[red]ToW"
    show_audit(audit_record, False)
    out = capsys.readouterr().out
    assert "[bold]" in out.split("✓ inside the band")[0] and "[red]ToW" in out
