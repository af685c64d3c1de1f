"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of the run; what it holds already is not redone.")
]
RecipeArgument = Annotated[
    str | None,
    typer.Argument(help="Recipe file or shipped name; default: the one in --out.", metavar="[RECIPE]"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:INDEX.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Training processes; default: one per core, or per GPU.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Forget = Annotated[
    str | None,
    typer.Option(
        help="ids:FILE, class:K, random:N, memorization:low|mid|high|mixed:N, entanglement:low|mid|high:N, "
        "mislabeled; overrides the recipe."
    ),
]
After = Annotated[
    str | None,
    typer.Option("--from", help="Unlearned models of an earlier request (RUN/unlearned/PLAN) to start from."),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="local, ray(address=auto, gpus=0.25), slurm(partition=gpu, slots=64): where models are trained.",
    ),
]
Scores = Annotated[
    str | None,
    typer.Option(help="Published memorization scores (npz) to read instead of training the sweep."),
]
Plans = Annotated[
    list[str] | None,
    typer.Option(
        "--plan",
        help="STEPS or NAME=STEPS, as 'low:none > mid:finetune(lr=0.1,epochs=10) > high:salun(epochs=5)', or "
        "auto. Instead of RECIPE's plans; without RECIPE, besides those of the run. Repeatable.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Say what is left to train and how long it takes, then stop; nothing is written."
    ),
]
Members = Annotated[str | None, typer.Option(help="Part of the sweep, e.g. 0:400.")]


def recipe_for(
    recipe: str | None,
    out: Path,
    forget: str | None = None,
    after: str | None = None,
    scores: str | None = None,
    plans: list[str] | None = None,
) -> Any:
    """The recipe that a command works with: the given one, or the run's own, with overrides."""
    from rumfast.config import load_recipe
    from rumfast.errors import UsageError
    from rumfast.store import RunDir

    stored = RunDir(out).recipe
    if recipe is None and not stored.exists():
        raise UsageError(f"recipe: {out} holds no run yet; name a recipe, e.g. digits.toml")
    loaded = load_recipe(recipe or stored)
    changes = {key: value for key, value in {"request": forget, "after": after}.items() if value is not None}
    updated: dict[str, Any] = {"forget": loaded.forget.model_copy(update=changes)}
    if scores is not None:
        updated["sweep"] = loaded.sweep.model_copy(update={"scores": scores})
    if plans:
        updated["plans"] = _with_plans(() if recipe else loaded.plans, plans)
    return loaded.model_copy(update=updated)


def _with_plans(stored: tuple[Any, ...], texts: list[str]) -> tuple[Any, ...]:
    from rumfast.errors import UsageError
    from rumfast.plans import read_plan, same_steps

    given = [read_plan(text) for text in texts]
    by_name = {plan.name: plan for plan in stored}
    for plan in given:
        if sum(plan.name == other.name for other in given) > 1:
            raise UsageError(f"--plan: {plan.name} is given twice; names must differ")
        if plan.name in by_name and same_steps(by_name[plan.name], plan):
            continue  # as the run has it, perhaps spaced otherwise
        by_name[plan.name] = plan
    return tuple(by_name.values())


def member_range(text: str | None) -> range | None:
    """Parse ``A:B``."""
    from rumfast.errors import UsageError

    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UsageError(f"--members: got {text!r}, expected FIRST:END such as 0:400")
    return range(int(first), int(last))
