"""README says what is: its script runs, its commands parse, its tables are those of the committed records."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "amd-epyc-2core"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    inline = re.findall(r"`(rumfast [^`]*)`", README)
    lines = [line.split("#")[0].strip() for line in blocks.splitlines()]
    found = [line for line in [*lines, *inline] if line.startswith("rumfast ")]
    return sorted({line.replace("\\|", "|") for line in found})


def test_readme_names_commands():
    assert len(commands()) > 10


@pytest.mark.parametrize("command", commands())
def test_command_parses(command, monkeypatch):
    """Every command of README has these arguments and options."""
    from typer.main import get_command

    from rumfast.cli.app import app

    words = shlex.split(command)[1:]
    context, group = None, get_command(app)
    while hasattr(group, "commands") and words:
        assert words[0] in group.commands, f"no command {words[0]!r}"
        group = group.commands[words.pop(0)]
    if words:
        context = group.make_context("rumfast", words)
        assert context.params


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE)) | {"records", "readme"}
    assert {"demo", "test"} <= named <= targets


def test_tables_are_those_of_the_records():
    from rumfast.bench.readme import render

    pages = [README, *(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))]
    assert [page.count("<!-- record:") for page in pages] == [14, 7, 5, 2, 2, 5]
    for page in pages:
        assert page.count("<!-- record:") == page.count("<!-- end -->")
        assert render(page, RESULTS.parent) == page


def test_what_readme_says_of_the_audits_is_in_the_record():
    record = json.loads((RESULTS / "digits-audit.json").read_text())
    retrained, original, *_, constant = record["models"]
    assert retrained["verdict"] == "pass"
    assert {finding["verdict"] for finding in retrained["findings"].values()} == {"inside"}
    attacks = [name for name, metric in record["metrics"].items() if metric["membership"]]
    assert original["name"] == "none" and len(attacks) > 10
    assert {original["findings"][name]["verdict"] for name in attacks} == {"outside"}
    assert not constant["utility"]["passed"] and constant["name"] == "constant"
    assert {model["verdict"] for model in record["models"][1:]} == {"fail"}


FAMILIES = {
    "finetune": "v-finetune",
    "finetune+rum-f": "f-finetune",
    "neggrad+": "v-neggrad",
    "neggrad+rum-f": "f-neggrad",
    "salun": "v-salun",
    "salun+rum-f": "f-salun",
    "salun+shuffle": "s-salun",
    "rum": "m-",
}


@pytest.mark.parametrize("name", ["digits", "cifar10-small"])
def test_shipped_plans_won_their_family_in_the_tuning_record(name):
    from rumfast.config import load_recipe, parse_recipe

    record = json.loads((RESULTS / f"{name}-tuning.json").read_text())
    tried = {plan.name: plan for plan in parse_recipe(record["config_toml"], name).plans}
    tow = {plan["name"]: plan["metrics"]["tow"]["mean"] for plan in record["plans"]}
    shipped = {plan.name: plan for plan in load_recipe(f"{name}.toml").plans}
    for plan, family in FAMILIES.items():
        best = max((candidate for candidate in tried if candidate.startswith(family)), key=tow.__getitem__)
        assert (shipped[plan].steps, shipped[plan].refine) == (tried[best].steps, tried[best].refine), best


def test_the_recipe_is_one():
    from rumfast.config import parse_recipe
    from rumfast.plans import parse_plan

    block = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert block is not None
    recipe = parse_recipe(block[1], "README")
    assert [len(parse_plan(plan.steps)) for plan in recipe.plans] == [1, 3]
    assert (recipe.forget.refine, recipe.forget.request) == ("confidence", "ids:request.txt")


@pytest.mark.slow
def test_script_runs(tmp_path):
    script = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert script is not None
    done = subprocess.run(
        [sys.executable, "-c", script[1]], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "'tow':" in done.stdout
