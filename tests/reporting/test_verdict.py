"""The sentence a reader quotes must follow from the numbers."""

import pytest

from rumfast.plans import parse_plan
from rumfast.reporting.verdict import cautions, is_steps, verdict


def keep(result, *names):
    result["plans"] = [plan for plan in result["plans"] if plan["name"] in names]
    return result


def test_best_plan_that_passes_is_named_and_retraining_never_is(result):
    found = verdict(result)
    assert found.state == "met"
    expected = "After “rum”, the model matches one retrained without the 150 examples on ToW and ToW-MIA."
    assert found.headline == expected
    assert "ToW is 0.966 (95% interval 0.954–0.978)" in found.detail and "29% of retraining" in found.detail


def test_no_plan_passes(result):
    found = verdict(keep(result, "none", "finetune", "salun", "retrain"))
    assert found.state == "unmet" and "“salun”" in found.detail


def test_accuracy_alone_is_only_part(result):
    result["plans"][4]["metrics"]["tow_mia"] |= {"mean": 0.7, "inside": False}
    found = verdict(result)
    assert found.state == "partly" and found.headline.endswith("on ToW, but not on ToW-MIA.")


def test_only_retraining_is_no_verdict(result):
    assert verdict(keep(result, "retrain")).state == "unjudged"


@pytest.mark.parametrize("mean, state", [(0.995, "met"), (0.93, "met"), (0.9299, "unmet")])
def test_above_the_band_passes_and_its_ends_belong_to_it(result, mean, state):
    result["bands"] = {"tow": result["bands"]["tow"]}
    keep(result, "rum")["plans"][0]["metrics"]["tow"] = {"mean": mean}
    assert verdict(result).state == state


def test_an_interval_that_leaves_the_band_is_said(result):
    result["plans"][4]["metrics"]["tow"]["low"] = 0.9
    assert "more seeds would settle it" in verdict(result).detail


def test_an_audit_that_fails_a_retraining_is_called_broken(result):
    assert cautions(result) == []
    result["plans"][-1]["metrics"]["tow_mia"] |= {"mean": 0.6, "inside": False}
    assert any("genuine retraining and fails ToW-MIA" in caution for caution in cautions(result))


def test_an_audit_that_passes_the_original_is_called_blunt(result):
    for metric in ("tow", "tow_mia"):
        result["plans"][0]["metrics"][metric] |= {"mean": 0.95, "inside": True}
    assert any("doing nothing" in caution for caution in cautions(result))


def test_few_oracles_one_seed_and_divergence_are_said(result):
    result |= {"oracles": 2, "seeds": 1}
    result["sweep"]["diverged"] = 3
    assert [caution.split()[0] for caution in cautions(result)] == ["One", "The", "3"]


def test_steps_are_recognised_as_plans_write_them():
    for algorithm in ("none", "retrain"):
        steps = " > ".join(map(str, parse_plan(f"low: {algorithm} > high: {algorithm}")))
        assert is_steps({"steps": steps}, algorithm)
        assert is_steps({"steps": str(parse_plan(algorithm)[0])}, algorithm)
    assert not is_steps({"steps": "low: none > high: finetune(lr=0.1)"}, "none")
    assert not is_steps({}, "none")
