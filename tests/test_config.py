import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rumfast.config import Recipe, TrainConfig, dump_recipe, load_recipe, parse_recipe, shipped_recipes
from rumfast.errors import UsageError
from rumfast.plans import bind, parse_plan
from rumfast.refinement import refine, refine_by_class

MINIMAL = """
[data]
source = "digits"
[forget]
request = "random:10"
[[plans]]
name = "vanilla"
steps = "finetune"
"""


def refused(text):
    with pytest.raises(UsageError) as error:
        parse_recipe(text, "my.toml")
    message = str(error.value)
    assert message.startswith("my.toml: ") and "\n" not in message
    return message


def test_defaults_are_the_papers():
    recipe = parse_recipe(MINIMAL, "-")
    train, sweep = recipe.train, recipe.sweep
    assert (train.batch_size, train.lr, train.momentum, train.weight_decay) == (256, 0.1, 0.9, 5e-4)
    assert (train.arch, train.epochs, train.schedule, train.flip, train.crop_padding) == (
        "resnet18",
        30,
        "cosine",
        False,
        0,
    )
    assert (sweep.members, sweep.include, recipe.forget.groups) == (400, 0.7, 3)
    assert recipe.unlearn.retain == "remaining" and recipe.forget.refine == "memorization"


WRONG = {
    "unknown field": ("[train]\nlearning_rate = 1.0", "train.learning_rate: Extra inputs are not permitted"),
    "unknown section": ("[tarin]\nlr = 1.0", "tarin: Extra inputs"),
    "wrong type": ('[train]\nepochs = "many"', "train.epochs: .*integer.*got 'many'"),
    "fraction of an epoch": ("[train]\nepochs = 1.5", "train.epochs: .*got '1.5'"),
    "no epochs": ("[train]\nepochs = 0", "train.epochs: .*greater than 0"),
    "negative rate": ("[train]\nlr = -0.1", "train.lr: .*greater than or equal to 0"),
    "infinite rate": ("[train]\nlr = inf", "train.lr: .*finite"),
    "rate that is no number": ("[train]\nlr = nan", "train.lr: "),
    "momentum 1": ("[train]\nmomentum = 1.0", "train.momentum: .*less than 1"),
    "unknown architecture": ('[train]\narch = "vgg"', "train.arch: .*'resnet18'.*got 'vgg'"),
    "unknown schedule": ('[train]\nschedule = "step"', "train.schedule: "),
    "stride 3": ("[train]\nstem_stride = 3", "train.stem_stride: "),
    "whole set": ("[sweep]\ninclude = 1.0", "sweep.include: .*less than 1"),
    "share that is no number": ("[sweep]\ninclude = nan", "sweep.include: "),
    "endless budget": ("[unlearn]\nbudget_epochs = inf", "unlearn.budget_epochs: .*finite"),
    "unknown retain": ('[unlearn]\nretain = "all"', "unlearn.retain: .*'remaining' or 'final'"),
    "two oracles": ("[evaluate]\noracles = 2", "evaluate.oracles: .*greater than or equal to 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_named_with_what_was_found(name):
    text, message = WRONG[name]
    with pytest.raises(UsageError, match=f"^my.toml: {message}"):
        parse_recipe(MINIMAL + text, "my.toml")


def test_missing_fields_are_named():
    assert "forget: Field required" in refused(MINIMAL.replace('[forget]\nrequest = "random:10"', ""))
    assert "forget.request: Field required" in refused(MINIMAL.replace('request = "random:10"', ""))
    assert "data: " in (found := refused(MINIMAL.replace('source = "digits"', ""))) and "give path" in found
    assert "plans: " in refused("plans = []\n" + MINIMAL[: MINIMAL.index("[[")])


def test_plan_names_are_distinct_folder_names():
    twice = MINIMAL + '[[plans]]\nname = "vanilla"\nsteps = "none"'
    assert "names must differ, got vanilla, vanilla" in refused(twice)
    for name in ("..", ".", "a/b", "", "a b", "-x", ".hidden", "x" * 65):
        assert "plans.0.name: " in refused(MINIMAL.replace('"vanilla"', f'"{name}"'))
    assert parse_recipe(MINIMAL.replace('"vanilla"', '"rum-f_2.a+b"'), "-").plans[0].name == "rum-f_2.a+b"


@pytest.mark.parametrize(
    "text", ["[data", "= 3", "a = 1\na = 2", "\x00", "a = " + "1" * 5000, "a = " + "[" * 10000]
)
def test_what_is_not_toml(text):
    assert "not valid TOML" in refused(text)


def test_files(tmp_path):
    good = tmp_path / "good.toml"
    good.write_text(MINIMAL)
    assert load_recipe(good) == load_recipe(str(good)) == parse_recipe(MINIMAL, "-")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, message in (
        (binary, "not a readable TOML text file"),
        (tmp_path, "not a readable TOML text file"),
        (tmp_path / "none.toml", "no file .*none.toml and none shipped.*digits.toml"),
        ("x" * 5000, "no file"),
    ):
        with pytest.raises(UsageError, match=message):
            load_recipe(path)


def test_shipped_recipes_load_by_name_but_a_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("digits.toml").name == "digits"
    (tmp_path / "digits.toml").write_text('name = "mine"\n' + MINIMAL)
    assert load_recipe("digits.toml").name == "mine"
    for name in ("../recipes/digits.toml", "digits", "__init__.py"):
        with pytest.raises(UsageError):
            load_recipe(name)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_hold_together(name):
    recipe = load_recipe(name)
    assert parse_recipe(dump_recipe(recipe), "-") == recipe
    ids = np.arange(60)
    for plan in recipe.plans:
        kind = plan.refine or recipe.forget.refine
        groups = (
            refine_by_class(ids, ids % 10) if kind == "class" else refine(ids, ids / 60, recipe.forget.groups)
        )
        assert bind(parse_plan(plan.steps), groups)


def test_dump_spells_out_defaults_and_parses_back():
    recipe = parse_recipe(MINIMAL + "[train]\nmilestones = [3, 5]\nlr = 0.30000000000000004\n", "-")
    text = dump_recipe(recipe)
    assert parse_recipe(text, "-") == recipe
    assert tomllib.loads(text)["train"]["batch_size"] == 256 and recipe.train.lr == 0.1 + 0.2


def test_recipes_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().lr = 1.0


SHIPPED = [dump_recipe(load_recipe(name)) for name in shipped_recipes()]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_mutated_recipes_raise_usage_errors_alone(data):
    text = data.draw(st.sampled_from(SHIPPED))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 12)))
        new = data.draw(
            st.one_of(
                st.text(max_size=5),
                st.sampled_from(
                    [
                        "-1",
                        "nan",
                        "1e999",
                        '"',
                        "[",
                        "]]",
                        "{}",
                        "=",
                        "\n",
                        "true",
                        "1979-05-27",
                        "\\u0000",
                        "0x7",
                        "''",
                    ]
                ),
            )
        )
        text = text[:start] + new + text[stop:]
    try:
        recipe = parse_recipe(text, "mutant.toml")
    except UsageError as error:
        assert str(error).startswith("mutant.toml: ")
    else:
        assert isinstance(recipe, Recipe) and parse_recipe(dump_recipe(recipe), "-") == recipe
