"""``rumfast audit``: does any audit tell the unlearned models from retrained ones?"""

from typing import Annotated

import typer

from rumfast.cli.audit_output import show_audit
from rumfast.cli.options import (
    After,
    Device,
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


def audit(
    recipe: RecipeArgument = None,
    *,
    out: Out,
    population: Annotated[
        int,
        typer.Option(min=8, help="Originals, and models of each plan; twice as many oracles."),
    ] = 64,
    probes: Annotated[
        bool, typer.Option(help="Fine-tune every model on the forget set: steps to relearn, entanglement.")
    ] = True,
    device: Device = "auto",
    workers: Workers = None,
    engine: EngineName = "local",
    forget: Forget = None,
    after: After = None,
    scores: Scores = None,
    plan: Plans = None,
    json_output: Json = False,
) -> None:
    """Compare whole populations of models with oracles by every metric, each beside what retraining gives."""
    from rumfast.pipeline.audits import AuditConfig, audit
    from rumfast.sweeps import open_engine

    chosen = recipe_for(recipe, out, forget, after, scores, plan)
    opened = open_engine(engine, workers=workers, device=device)
    config = AuditConfig(population=population, probes=probes)
    record = audit(chosen, out, config, device=device, engine=opened)
    show_audit(record, json_output)
    if not json_output:
        typer.echo(f"report: {out / 'audit' / 'index.html'}")
