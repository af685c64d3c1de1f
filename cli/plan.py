"""``rumfast plan``: search for a plan on surrogate forget sets, and say what to expect of it."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from rumfast.cli.options import (
    After,
    Device,
    EngineName,
    Forget,
    Json,
    Out,
    RecipeArgument,
    Scores,
    Workers,
    recipe_for,
)
from rumfast.cli.output import console, show

GOALS = {"mean": "mean of ToW and ToW-MIA", "tow": "ToW", "tow_mia": "ToW-MIA"}


def plan(
    recipe: RecipeArgument = None,
    *,
    out: Out,
    device: Device = "auto",
    workers: Workers = None,
    engine: EngineName = "local",
    forget: Forget = None,
    after: After = None,
    scores: Scores = None,
    objective: Annotated[
        str | None, typer.Option(help="mean (of ToW and ToW-MIA), tow or tow_mia; overrides the recipe.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Then settle for the best that was tried so far."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Choose algorithms, hyper-parameters and order for the groups of the forget set.

    Candidates unlearn surrogates: other examples with the same profile of scores. Neither the forget set nor
    its oracles are looked at. `rumfast run --plan auto` then uses what was found.
    """
    from rumfast.errors import UsageError
    from rumfast.pipeline import Run
    from rumfast.sweeps import open_engine

    if objective not in (None, "mean", "tow", "tow_mia"):
        raise UsageError(f"--objective: got {objective!r}, expected mean, tow or tow_mia")
    chosen = recipe_for(recipe, out, forget, after, scores)
    given = {"objective": objective, "minutes": minutes}
    changes = {key: value for key, value in given.items() if value is not None}
    chosen = chosen.model_copy(update={"search": chosen.search.model_copy(update=changes)})
    with open_engine(engine, workers=workers, device=device) as pool:
        run = Run(chosen, out, pool, device)
        for stage in (run.pack, run.train, run.sweep, run.score, run.refine):
            stage()
        result = run.search()
    if json_output:
        show(result, True, "search")
    else:
        _show(result)
        for name in run.earlier_choices():
            typer.echo(f"{name}: keeps what an earlier search chose; --plan NAME=auto takes this one.")


def _show(result: Mapping[str, Any]) -> None:
    table = Table(title="What to expect, by family of plans", title_justify="left")
    table.add_column("family")
    table.add_column("its best plan", overflow="fold")
    for label in ("worth", "ToW", "ToW-MIA"):
        table.add_column(label, justify="right", no_wrap=True)
    plans = result["families"] | result["finalists"]
    for name in sorted(plans, key=lambda name: -plans[name]["worth"]):
        found = plans[name]
        marks = [found[key] for key in ("refine", "retain") if found[key]]
        text = found["steps"] + (f" [{', '.join(marks)}]" if marks else "")
        values = [_interval(found["expected"].get(metric)) for metric in ("tow", "tow_mia")]
        table.add_row(name, escape(text), f"{found['worth']:.3f}", *values)
    console().print(table)
    alike = ", ".join(
        f"{name.replace('_', ' ')} {each['forget']:.3g} (surrogates "
        f"{min(each['surrogates']):.3g}–{max(each['surrogates']):.3g})"
        for name, each in result["profile"].items()
    )
    shared = (
        "" if result["overlap"] is None else f", with {result['overlap']:.0%} of their examples in others"
    )
    best = plans[result["best"]]
    checked = len(best["expected"]["tow"]["values"]) if best["expected"] else 0
    console().print(
        f"Chosen: {result['best']}, {best['steps']}\n"
        f"Worth: {GOALS[result['objective']]} on up to {result['pairs']} pairs of original and "
        f"surrogate, less {result['caution']:g} standard deviations; it flatters what was chosen. "
        "ToW and ToW-MIA of the finalists, mean and 95 % t-interval, are "
        f"from {checked} surrogates that no choice depended on{shared}. "
        f"Mean scores of the forget set: {alike}; where surrogates are easier, expect less. "
        f"{result['wall_s']:.0f} s of training and trying.",
        highlight=False,
        soft_wrap=True,
    )


def _interval(interval: Mapping[str, Any] | None) -> str:
    if interval is None:
        return ""
    span = "" if interval["low"] is None else f" {interval['low']:.3f}–{interval['high']:.3f}"
    return f"{interval['mean']:.3f}{span}"
