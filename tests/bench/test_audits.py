from rumfast.bench import audits


def test_populations_of_the_asked_sizes_are_audited_and_the_originals_found():
    record = audits.measure(9, forget=60, retain=200, test=120, splits=40)
    assert (record["models"], record["forget"], record["retain"], record["test"]) == (9, 60, 200, 120)
    assert record["none_outside"] > 5 and record["held-out_outside"] <= 1
    # Neither what is measured on weights nor what is of classes that are forgotten as a whole.
    assert record["metrics"] == record["of"] - 4
    assert record["collect_s"] > 0 and record["audit_s"] > 0 and record["peak_mb"] >= 0
