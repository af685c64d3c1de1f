import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rumfast import Split, TrainConfig, rum
from rumfast.algorithms import ALGORITHMS, Algorithm, SgdConfig
from rumfast.config import PlanConfig
from rumfast.errors import UsageError
from rumfast.models import build_model
from rumfast.plans import (
    bind,
    kept_ids,
    parse_plan,
    plan_text,
    read_plan,
    run_plan,
    same_steps,
    spread_budget,
)
from rumfast.refinement import Group, refine
from rumfast.training import Learner

LOW, MID, HIGH = (
    Group("low", np.array([1, 5])),
    Group("mid", np.array([2, 9, 4])),
    Group("high", np.array([0])),
)
GROUPS = (LOW, MID, HIGH)
RECIPE = TrainConfig(batch_size=64, epochs=30)
RETAIN = np.array([3, 6, 7, 8, 10, 11, 12])


def test_parsing_by_hand():
    steps = parse_plan(" low : none>mid:finetune( lr = 0.1 ,epochs=10 ) > class-3.b: salun(epochs=5,) ")
    assert [(step.group, step.algorithm) for step in steps] == [
        ("low", "none"),
        ("mid", "finetune"),
        ("class-3.b", "salun"),
    ]
    assert steps[1].config == SgdConfig(lr=0.1, epochs=10)
    assert steps[2].config.epochs == 5 and steps[2].config.lr == 0.1
    assert parse_plan("neggrad_plus(alpha=0.5)") == parse_plan("all: neggrad_plus(alpha=0.5)")
    assert parse_plan("finetune()") == parse_plan("finetune")


@pytest.mark.parametrize(
    "text",
    [
        "low: none > mid: finetune(lr=0.1, epochs=3) > high: salun(fraction=0.25)",
        "all: neggrad_plus(alpha=0.99)",
        "each: random_label(epochs=2.5)",
        "reversed: finetune",
        "all: retrain",
    ],
)
def test_printing_parses_back(text):
    steps = parse_plan(text)
    assert " > ".join(map(str, steps)) == text and parse_plan(" > ".join(map(str, steps))) == steps


BAD_PLANS = {
    "": "cannot read step ''",
    "low: none >": "cannot read step ''",
    "low none": "cannot read step 'low none'",
    "low: finetune(lr=0.1": r"cannot read step 'low: finetune\(lr=0.1'",
    "low: finetune lr=0.1": "cannot read step",
    "low: scrubb": "algorithm 'scrubb' is unknown, expected one of none, retrain, finetune",
    "finetune(lr)": r"cannot read 'lr' in step 'finetune\(lr\)', expected key=number",
    "finetune(0.1)": "cannot read '0.1'",
    "finetune(rate=0.1)": "finetune: rate: Extra inputs are not permitted",
    "finetune(lr=fast)": "finetune: lr: .*got 'fast'",
    "finetune(lr=-1)": "finetune: lr: .*greater than or equal to 0",
    "finetune(lr=nan)": "finetune: lr: ",
    "finetune(epochs=0)": "finetune: epochs: .*greater than 0",
    "finetune(epochs=inf)": "finetune: epochs: .*finite",
    "finetune(momentum=1)": "finetune: momentum: ",
    "finetune(lr=0.1, lr=0.2)": "'lr' is given twice",
    "neggrad_plus(alpha=1.5)": "neggrad_plus: alpha: ",
    "salun(fraction=0)": "salun: fraction: ",
    "none(lr=0.1)": "none: lr: Extra inputs",
    "low: none > low: finetune": "each group may have one step, got low, low",
    "all: none > low: finetune": "'all', 'each', 'reversed' each stand alone",
    "none > finetune": "each group may have one step, got all, all",
    "reversed: none > low: none": "'all', 'each', 'reversed' each stand alone",
    "each: finetune > low: none": "'all', 'each', 'reversed' each stand alone",
}


@pytest.mark.parametrize("text", BAD_PLANS)
def test_plans_that_cannot_be_meant(text):
    with pytest.raises(UsageError, match=BAD_PLANS[text]) as error:
        parse_plan(text)
    assert str(error.value).startswith(f"plan {text!r}: ") and "\n" not in str(error.value)


def bound(text, groups: Sequence[Group] = GROUPS):
    return bind(parse_plan(text), groups)


def test_binding_takes_the_plans_order():
    steps = bound("high: none > low: finetune > mid: salun")
    assert [(step.group, group.ids.tolist()) for step, group in steps] == [
        ("high", [0]),
        ("low", [1, 5]),
        ("mid", [2, 9, 4]),
    ]


def test_all_is_the_whole_set_at_once_and_each_every_group_in_turn():
    ((step, group),) = bound("finetune(epochs=2)")
    assert group.ids.tolist() == [0, 1, 2, 4, 5, 9] and step.config.epochs == 2
    steps = bound("each: finetune(epochs=2)")
    assert [(str(step), group.ids.tolist()) for step, group in steps] == [
        ("low: finetune(epochs=2)", [1, 5]),
        ("mid: finetune(epochs=2)", [2, 9, 4]),
        ("high: finetune(epochs=2)", [0]),
    ]


def test_reversed_visits_the_last_group_first_and_retains_those_to_come():
    steps = bound("reversed: finetune(epochs=2)")
    assert [(str(step), group.ids.tolist()) for step, group in steps] == [
        ("high: finetune(epochs=2)", [0]),
        ("mid: finetune(epochs=2)", [2, 9, 4]),
        ("low: finetune(epochs=2)", [1, 5]),
    ]
    assert kept_ids(steps, 1, RETAIN, "remaining").tolist() == sorted([*RETAIN, 1, 5])


def test_a_plans_text_keeps_every_digit():
    steps = parse_plan("low: finetune(lr=0.123456789, epochs=1e2) > high: none")
    assert plan_text(steps) == "low: finetune(lr=0.123456789, epochs=100.0) > high: none"
    assert parse_plan(plan_text(steps)) == steps
    assert str(steps[0]) == "low: finetune(lr=0.1235, epochs=100)"  # for people


def test_plans_of_the_command_line():
    plan = read_plan("rum = low:none > high:finetune( lr=0.1 )")
    assert (plan.name, plan.steps) == ("rum", "low: none > high: finetune(lr=0.1)")
    unnamed = read_plan("low:none>high:finetune(lr=1e-1)")
    assert unnamed.steps == plan.steps and unnamed.name.startswith("none+finetune-")
    assert unnamed == read_plan("low : none > high : finetune(lr=0.1,)")
    assert unnamed.name != read_plan("low:none > high:finetune(lr=0.1000001)").name
    assert read_plan("finetune(lr=0.1)").steps == "all: finetune(lr=0.1)"  # no plan called "finetune(lr"
    assert (read_plan("auto").name, read_plan("best=auto").name) == ("auto", "best")
    long = read_plan(" > ".join(f"g{index}: random_label" for index in range(40)))
    assert len(long.name) <= 64
    # Names are folders of runs, and outlive versions.
    assert read_plan("low: none > high: finetune(lr=0.1)").name == "none+finetune-7de59380"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read step ''"),
        ("rum=", "cannot read step ''"),
        ("rum=low:scrubb", "'scrubb' is unknown"),
        (".hidden=none", "name: String should match pattern"),
        ("x" * 65 + "=none", "name: String should have at most 64"),
        ("a/b=none", "cannot read step 'a/b=none'"),
        ("auto > none", "'auto' is unknown"),
    ],
)
def test_plans_of_the_command_line_that_cannot_be_meant(text, message):
    with pytest.raises(UsageError, match=message):
        read_plan(text)


def test_the_same_steps_however_written():
    one, other = (
        PlanConfig(name="a", steps=text) for text in ("low:none>high:salun", "low: none > high: salun()")
    )
    assert same_steps(one, other)
    for text in ("low: none > high: salun(lr=0.2)", "high: salun > low: none", "auto"):
        assert not same_steps(one, PlanConfig(name="a", steps=text))


@pytest.mark.parametrize(
    "text",
    [
        "low: none > mid: none",
        "low: none",
        "low: none > mid: none > top: none",
        "low: none > mid: none > high: none > top: none",
    ],
)
def test_a_plan_names_each_group_once(text):
    with pytest.raises(
        UsageError, match="the groups are low, mid, high; the plan must name each of them once"
    ):
        bound(text)


FEW = (Group("low", LOW.ids[:0]), Group("mid", np.array([4])), Group("high", np.array([0])))


@pytest.mark.parametrize(
    "text, steps",
    [
        ("low: none > mid: finetune > high: salun", {"mid: finetune": [4], "high: salun": [0]}),
        ("high: salun > mid: finetune", {"high: salun": [0], "mid: finetune": [4]}),
        ("each: finetune", {"mid: finetune": [4], "high: finetune": [0]}),
        ("reversed: finetune", {"high: finetune": [0], "mid: finetune": [4]}),
        ("finetune", {"all: finetune": [0, 4]}),
    ],
)
def test_steps_of_empty_groups_are_left_out(text, steps):
    assert {str(step): group.ids.tolist() for step, group in bound(text, FEW)} == steps


@pytest.mark.parametrize("text", ["low: none > mid: none", "lo: none > mid: none > high: none"])
def test_a_plan_for_empty_groups_names_no_others_and_each_that_holds_examples(text):
    with pytest.raises(UsageError, match="the groups are low, mid, high; the plan must name each of them"):
        bound(text, FEW)


def test_empty_groups_take_no_share_of_the_budget():
    retain = np.arange(100, 1000)
    steps = bound("low: finetune(epochs=7) > mid: finetune(epochs=1) > high: finetune(epochs=3)", FEW)
    spread = spread_budget(steps, retain, "final", 3600, RECIPE)
    assert [(step.group, step.config.epochs) for step, _ in spread] == [("mid", 1), ("high", 3)]


def test_what_counts_as_retained():
    steps = bound("low: none > mid: none > high: none")
    final = [kept_ids(steps, index, RETAIN, "final").tolist() for index in range(3)]
    assert final == [RETAIN.tolist()] * 3
    remaining = [kept_ids(steps, index, RETAIN, "remaining").tolist() for index in range(3)]
    assert remaining == [sorted([*RETAIN, 2, 9, 4, 0]), sorted([*RETAIN, 0]), RETAIN.tolist()]
    backwards = bound("high: none > mid: none > low: none")
    assert kept_ids(backwards, 0, RETAIN, "remaining").tolist() == sorted([*RETAIN, 1, 2, 4, 5, 9])


def big_groups():
    return refine(np.arange(90), np.arange(90) / 90, 3), np.arange(90, 1000)


def cost_of(steps, retain, mode, batch):
    total = 0.0
    for index, (step, group) in enumerate(steps):
        per_epoch, once = ALGORITHMS[step.algorithm].cost(
            len(group.ids), len(kept_ids(steps, index, retain, mode)), batch, step.config
        )
        total += once + per_epoch * getattr(step.config, "epochs", 0)
    return total


@pytest.mark.parametrize("mode", ["remaining", "final"])
@pytest.mark.parametrize(
    "text",
    [
        "finetune",
        "neggrad_plus",
        "salun",
        "each: neggrad_plus",
        "each: salun(epochs=3)",
        "low: none > mid: finetune(epochs=10) > high: salun(epochs=5)",
    ],
)
def test_a_budget_is_spent_exactly_and_in_the_plans_proportions(text, mode):
    groups, retain = big_groups()
    before = bound(text, groups)
    after = spread_budget(before, retain, mode, 3000, RECIPE)
    assert cost_of(after, retain, mode, 64) == pytest.approx(3000, rel=1e-12)
    ratios = [
        new.config.epochs / old.config.epochs
        for (old, _), (new, _) in zip(before, after, strict=True)
        if isinstance(old.config, SgdConfig)
    ]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    for (old, group), (new, same) in zip(before, after, strict=True):
        assert group is same and old.group == new.group
        assert old.config.model_dump(exclude={"epochs"}) == new.config.model_dump(exclude={"epochs"})


def test_a_budget_by_hand():
    groups, retain = big_groups()
    # low costs nothing; mid trains on 910 + 30 examples for 2 epochs, high on 910 + 30 for 4 and 30 once.
    steps = bound("low: none > mid: finetune(epochs=2) > high: salun(epochs=4)", groups)
    factor = (3000 - 30) / (2 * 940 + 4 * 940)
    epochs = [step.config.epochs for step, _ in spread_budget(steps, retain, "remaining", 3000, RECIPE)[1:]]
    assert epochs == pytest.approx([2 * factor, 4 * factor])


def test_plans_without_training_take_no_budget_and_small_budgets_are_refused():
    groups, retain = big_groups()
    for text in ("none", "each: none"):
        steps = bound(text, groups)
        assert spread_budget(steps, retain, "final", 10, RECIPE) == steps
    with pytest.raises(
        UsageError, match="budget_epochs: 60 examples do not cover the plan's fixed cost of 90"
    ):
        spread_budget(bound("salun", groups), retain, "final", 60, RECIPE)


def test_retraining_counts_in_full():
    """The recipe's 30 epochs on 910 examples, or on 940 while 30 are still to come."""
    groups, retain = refine(np.arange(90), np.arange(90) / 90, 3), np.arange(90, 1000)
    alone = bound("retrain", groups)
    assert spread_budget(alone, retain, "final", 30 * 910, RECIPE) == alone
    with pytest.raises(UsageError, match="27299 examples do not cover .* 27300; retrain runs the recipe's"):
        spread_budget(alone, retain, "final", 30 * 910 - 1, RECIPE)
    mixed = bound("low: none > mid: retrain > high: finetune(epochs=2)", groups)
    *_, (step, _) = spread_budget(mixed, retain, "remaining", 30 * 940 + 455, RECIPE)
    assert step.config.epochs == pytest.approx(0.5)
    with pytest.raises(UsageError, match="fixed cost of 28200; retrain"):
        spread_budget(mixed, retain, "remaining", 30 * 940, RECIPE)


@pytest.mark.parametrize("mode", ["remaining", "final"])
@pytest.mark.parametrize(
    "text", ["neggrad_plus", "each: neggrad_plus", "low: none > mid: finetune > high: salun"]
)
def test_plans_of_one_budget_take_it_within_a_batch_per_step(digits, mode, text):
    config = TrainConfig(arch="resnet8", width=4, batch_size=64, precision="fp32")
    split = Split.from_ids(range(45), 300)
    groups = refine(split.forget, np.arange(300) / 300, 3)
    result = rum(
        build_model("resnet8", 10, width=4),
        digits,
        split,
        groups,
        text,
        config,
        retain=mode,
        budget=1500,
        device="cpu",
    )
    assert 1500 - 1 <= result.examples <= 1500 + 3 * 128
    asked = [record.asked for record in result.records]
    assert sum(asked) == pytest.approx(1500) and result.examples == sum(
        one.examples for one in result.records
    )
    assert all(0 <= one.examples - one.asked < 128 + 1 for one in result.records)


@pytest.fixture
def calls(monkeypatch):
    """Replaces fine-tuning by something that notes what it was given and marks the model."""
    seen = []

    def run(learner, forget, retain, config, seed):
        seen.append((forget.tolist(), retain.tolist(), config.epochs, seed, learner.model.fc.bias[0].item()))
        with torch.no_grad():
            learner.model.fc.bias[0] += 1

    monkeypatch.setitem(ALGORITHMS, "finetune", Algorithm(SgdConfig, run, lambda *_: (0, 0), "a test"))
    return seen


@pytest.fixture
def original():
    model = build_model("resnet8", 10, width=4)
    with torch.no_grad():
        model.fc.bias.zero_()
    return model


def test_steps_run_one_after_another_each_on_the_last_ones_model(digits, calls, original):
    split = Split.from_ids([0, 1, 2, 4, 5, 9], 300)
    plan = "high: finetune(epochs=1) > mid: finetune(epochs=2) > low: finetune(epochs=3)"
    result = rum(original, digits, split, GROUPS, plan, device="cpu", seed=1)
    kept = split.retain.tolist()
    assert [call[:3] for call in calls] == [
        ([0], sorted([*kept, 1, 5, 2, 9, 4]), 1),
        ([2, 9, 4], sorted([*kept, 1, 5]), 2),
        ([1, 5], kept, 3),
    ]
    assert (
        [call[4] for call in calls] == [0, 1, 2] and result.model.fc.bias[0] == 3 and original.fc.bias[0] == 0
    )
    assert len({call[3] for call in calls}) == 3
    assert result.steps == ("high: finetune(epochs=1)", "mid: finetune(epochs=2)", "low: finetune(epochs=3)")


def test_a_plan_goes_on_after_the_steps_that_are_done(digits, calls, original):
    steps = bound("low: finetune(epochs=1) > mid: finetune(epochs=2) > high: finetune(epochs=3)")
    seen = []

    def run(**options):
        learner = Learner(digits, TrainConfig(arch="resnet8", width=4), "cpu", model=copy.deepcopy(original))
        return run_plan(learner, steps, RETAIN, mode="remaining", seed=1, **options)

    whole = run(after_step=lambda records: seen.append(tuple(records)))
    assert [len(records) for records in seen] == [1, 2]  # what follows the last step is the model itself
    every = list(calls)
    calls.clear()
    rest = run(done=seen[1])
    assert [call[:4] for call in calls] == [every[2][:4]] and rest.records[:2] == whole.records[:2]
    assert rest.steps == whole.steps


def test_retain_final_keeps_all_groups_out_of_every_step(digits, calls, original):
    split = Split.from_ids([0, 1, 2, 4, 5, 9], 300)
    rum(original, digits, split, GROUPS, "each: finetune", retain="final", device="cpu")
    assert [call[1] for call in calls] == [split.retain.tolist()] * 3


def test_one_algorithm_per_group_may_be_given_as_a_list(digits, calls, original):
    split = Split.from_ids([0, 1, 2, 4, 5, 9], 300)
    result = rum(original, digits, split, GROUPS, ("none", "finetune", "finetune(epochs=3)"), device="cpu")
    assert result.steps == ("low: none", "mid: finetune", "high: finetune(epochs=3)")
    with pytest.raises(UsageError, match="plan: got 2 algorithms for 3 groups, expected one each"):
        rum(original, digits, split, GROUPS, ("none", "finetune"), device="cpu")


def test_mistakes_are_found_before_anything_runs(digits, calls, original):
    split = Split.from_ids([0, 1, 2, 4, 5, 9], 300)
    for plan, options, message in (
        ("low: finetune", {}, "must name each"),
        ("nothing", {}, "is unknown"),
        ("finetune", {"retain": "later"}, "retain: got 'later', expected one of remaining"),
    ):
        with pytest.raises(UsageError, match=message):
            rum(original, digits, split, GROUPS, plan, device="cpu", **options)
    assert calls == []


def test_a_step_without_memory_says_which_and_what_to_do(digits, original, monkeypatch):
    def run(learner, forget, retain, config, seed):
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    monkeypatch.setitem(ALGORITHMS, "finetune", Algorithm(SgdConfig, run, lambda *_: (0, 0), "a test"))
    split = Split.from_ids([0, 1, 2, 4, 5, 9], 300)
    with pytest.raises(
        UsageError, match="all: finetune: does not fit into cpu's memory.*80 GiB.*micro_batches"
    ):
        rum(original, digits, split, GROUPS, "finetune", device="cpu")
