"""The commands. Heavy imports stay inside them, so that ``--help`` answers at once."""

from pathlib import Path
from typing import Any

import typer

from rumfast.cli import data, experiment, sweep
from rumfast.cli.audit import audit
from rumfast.cli.benchmarks import bench
from rumfast.cli.estimate_output import show_estimate, tell_estimate
from rumfast.cli.options import (
    After,
    Device,
    DryRun,
    EngineName,
    Forget,
    Json,
    Out,
    Plans,
    RecipeArgument,
    Scores,
    Workers,
    recipe_for,
)
from rumfast.cli.output import show, show_evaluation
from rumfast.cli.plan import plan
from rumfast.cli.scores import score

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Refined unlearning (RUM), fast: score, refine, unlearn, audit and report.",
)
app.add_typer(data.app, name="data")
app.add_typer(sweep.app, name="sweep")
app.add_typer(experiment.app, name="experiment")


@app.command()
def doctor(json_output: Json = False) -> None:
    """Say what this machine can do, and what to install for the rest."""
    from rumfast.doctor import examine

    checks = examine()
    if json_output:
        show({"checks": [check._asdict() for check in checks]}, True, "doctor")
        return
    for check in checks:
        typer.echo(f"{'ok  ' if check.ok else 'MISS'}  {check.what}: {check.found}")
        if check.advice:
            typer.echo(f"      → {check.advice}")


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    device: Device = "auto",
    workers: Workers = None,
    dry_run: DryRun = False,
    json_output: Json = False,
) -> None:
    """Run the whole pipeline on scikit-learn's digits, in about two minutes on two CPU cores."""
    _stages(recipe_for("digits.toml", out), out, "report", device, workers, "local", dry_run, json_output)


# verb → (last stage, help); every verb does the stages before it that the folder lacks
VERBS = {
    "run": ("report", "Run every stage of a recipe in order; resumes where it stopped."),
    "train": ("train", "Train the original models (and pack the data, if the recipe names a source)."),
    "refine": ("refine", "Choose the forget set and refine it into groups (after the stages before it)."),
    "unlearn": ("unlearn", "Run every plan from every original (after the stages before it)."),
    "evaluate": ("evaluate", "Compare every unlearned model with the oracles (after the stages before it)."),
    "report": ("report", "Write the HTML report (after the stages before it)."),
}


def _add_verb(name: str, until: str, text: str) -> None:
    @app.command(name, help=text)
    def verb(
        recipe: RecipeArgument = None,
        *,
        out: Out,
        device: Device = "auto",
        workers: Workers = None,
        engine: EngineName = "local",
        forget: Forget = None,
        after: After = None,
        scores: Scores = None,
        plan: Plans = None,
        dry_run: DryRun = False,
        json_output: Json = False,
    ) -> None:
        chosen = recipe_for(recipe, out, forget, after, scores, plan)
        _stages(chosen, out, until, device, workers, engine, dry_run, json_output)


for _name, (_until, _text) in VERBS.items():
    _add_verb(_name, _until, _text)
for _command in (score, plan, audit, bench):
    app.command()(_command)


def _stages(
    recipe: Any,
    out: Path,
    until: str,
    device: str,
    workers: int | None,
    engine: str,
    dry_run: bool,
    json_output: bool,
) -> None:
    from rumfast.pipeline import Run
    from rumfast.pipeline import run as run_stages
    from rumfast.pipeline.estimate import Rehearsal, estimate
    from rumfast.sweeps import open_engine

    chosen = open_engine(engine, workers=workers, device=device)
    if dry_run:
        with chosen as pool:
            show_estimate(estimate(Rehearsal(recipe, out, pool, device), until), json_output)
        return

    def tell(run: Run) -> None:
        tell_estimate(estimate(Rehearsal.of(run), until))

    results = run_stages(recipe, out, until=until, device=device, engine=chosen, before_training=tell)
    if "evaluate" in results:
        show_evaluation(results["evaluate"], json_output)
        if "report" in results and not json_output:
            typer.echo(f"report: {results['report']['report']}")
    else:
        show(results[until], json_output, until)
