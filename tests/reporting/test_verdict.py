"""The sentence a reader quotes must follow from the numbers."""

import pytest

from rumfast.plans import parse_plan
from rumfast.reporting.verdict import cautions, is_steps, verdict


def keep(result, *names):
    result["plans"] = [plan for plan in result["plans"] if plan["name"] in names]
    return result


def plan_of(result, name):
    return next(plan for plan in result["plans"] if plan["name"] == name)


def move(result, name, metric, mean, half=0.012):
    """Give a plan another value of a metric."""
    entry = plan_of(result, name)["metrics"][metric]
    entry |= {"mean": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}


def test_best_plan_that_matches_is_named_and_retraining_never_is(result):
    found = verdict(result)
    assert found.state == "matches"
    assert found.headline == (
        "After “rum”, the model matches one retrained without the 150 examples on ToW, ToW-MIA, "
        "Forget accuracy and MIA."
    )
    assert "ToW is 0.966 (0.954–0.978) where a retrained model is expected at 0.930–0.990" in found.detail
    assert "hence no power" in found.detail and "Retain accuracy and Test accuracy" in found.detail
    assert "29% of the gradients of one retraining" in found.detail


def test_no_plan_matches_and_the_closest_is_named_with_what_gives_it_away(result):
    found = verdict(keep(result, "none", "finetune", "salun", "retrain"))
    assert found.state == "differs"
    assert found.headline.startswith("No plan compared here matches retraining without the 150 examples.")
    assert (
        "“salun”, still remembers: Forget accuracy is 58.6% (57.4–59.8%) where a retrained model is expected "
        "at 51.0–57.0%." in found.headline
    )
    for metric in result["metrics"].values():
        metric["forgotten"] = None
    assert "“salun”, differs by ToW, ToW-MIA, Forget accuracy and MIA." in verdict(result).headline


def test_an_overshooting_plan_is_said_to_over_forget(result, judge_again):
    move(result, "rum", "accuracy_forget", 0.1)
    move(result, "rum", "tow", 0.5)
    found = verdict(keep(judge_again(result), "none", "rum"))
    assert found.state == "differs"
    assert "“rum”, over-forgets: Forget accuracy is 10.0% (8.8–11.2%)" in found.headline
    assert any("over-forgets by Forget accuracy" in caution for caution in cautions(result))


def test_where_the_original_scores_like_retrained_models_nothing_can_be_told(result, judge_again):
    result["forget"]["size"] = 3
    like_oracles = {"tow": 0.95, "tow_mia": 0.95, "accuracy_forget": 0.54, "mia": 0.45}
    for metric, mean in like_oracles.items():
        result["reference"]["original"][metric] |= {"mean": mean, "low": mean - 0.004, "high": mean + 0.004}
        move(result, "none", metric, mean)
    result["bands"]["accuracy_forget"] |= {"low": 0.0, "high": 1.0}
    found = verdict(judge_again(result))
    assert found.state == "cannot tell" and found.headline == (
        "Cannot tell whether any plan forgot the 3 examples: the model that plans start from, which was "
        "trained on them, already scores like one that was not, by every metric that looks at them."
    )
    assert "one more retrained model would score 0.0–100.0% in Forget accuracy" in found.detail
    assert "About 12 seeds and 12 oracles would tell" in found.detail
    for row in result["power"].values():
        row["needed"] = None
    assert "Not even 200 seeds and oracles would tell" in verdict(result).detail
    assert "`rumfast audit`" in verdict(result).detail


def test_an_interval_that_reaches_into_the_band_cannot_tell(result, judge_again):
    move(result, "rum", "tow", 0.92, half=0.03)
    found = verdict(keep(judge_again(result), "none", "rum"))
    assert found.state == "cannot tell"
    assert "ToW is 0.920 (0.890–0.950) where a retrained model is expected at 0.930–0.990" in found.headline
    assert "more seeds or oracles would settle it" in found.headline


def test_accuracy_alone_does_not_match(result, judge_again):
    for metric, mean in {"tow_mia": 0.95, "mia": 0.45}.items():
        result["reference"]["original"][metric] |= {"mean": mean, "low": mean - 0.004, "high": mean + 0.004}
    found = verdict(keep(judge_again(result), "rum"))
    assert found.state == "cannot tell"
    assert "scores like one on ToW and Forget accuracy, but no membership attack" in found.headline


def test_only_retraining_is_no_verdict(result):
    found = verdict(keep(result, "retrain"))
    assert found.state == "cannot tell" and found.headline.startswith("No verdict")


def test_an_evaluation_that_fails_a_retraining_is_called_broken(result, judge_again):
    assert not any("genuine" in caution for caution in cautions(result))
    move(result, "retrain", "tow_mia", 0.6)
    notes = cautions(judge_again(result))
    assert any("genuine retraining and lies outside by ToW-MIA" in caution for caution in notes)


def test_few_oracles_one_seed_and_divergence_are_said(result):
    keep(result, "rum")
    result |= {"oracles": 2, "seeds": 1}
    result["sweep"]["diverged"] = 3
    assert [caution.split()[0] for caution in cautions(result)] == ["One", "The", "3"]


@pytest.mark.parametrize("size, words", [(1, "the example:"), (2, "the 2 examples:")])
def test_one_example_is_not_called_examples(result, judge_again, size, words):
    result["forget"]["size"] = size
    for metric, band in result["bands"].items():
        middle = (band["low"] + band["high"]) / 2
        result["reference"]["original"][metric] |= {"mean": middle, "low": middle, "high": middle}
    assert words in verdict(keep(judge_again(result), "rum")).headline


def test_steps_are_recognised_as_plans_write_them():
    for algorithm in ("none", "retrain"):
        steps = " > ".join(map(str, parse_plan(f"low: {algorithm} > high: {algorithm}")))
        assert is_steps({"steps": steps}, algorithm)
        assert is_steps({"steps": str(parse_plan(algorithm)[0])}, algorithm)
    assert not is_steps({"steps": "low: none > high: finetune(lr=0.1)"}, "none")
    assert not is_steps({}, "none")
