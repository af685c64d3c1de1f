"""A recipe's plans on scores that were measured before, plan by plan, with few models each."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rumfast.bench.ledger import Rung
from rumfast.bench.record import described
from rumfast.bench.setting import limited
from rumfast.config import PlanConfig, Recipe
from rumfast.data import load_dataset
from rumfast.errors import UsageError
from rumfast.pipeline import STAGES, Run
from rumfast.store import read_json, read_npz, write_json
from rumfast.store.paths import RunDir
from rumfast.store.reads import content_digest
from rumfast.sweeps import LocalEngine

SEEDS, ORACLES = 2, 3
COMMAND = "bench/gpu.sh plans"


def climb_plans(rung: Rung, recipe: Recipe, source: str, scores: Path, path: Path) -> None:
    """Evaluate the recipe's plans one after another into the evaluation at ``path``.

    Oracles and originals that ``rung.work`` lacks are trained again, in cases of their own. Scores that
    changed since the last plan choose another forget set: then all plans are evaluated anew.

    Raises:
        UsageError: there are no scores yet.
    """
    if not scores.exists():
        raise UsageError(f"{scores}: missing; climb the rung memorization first")
    digest = content_digest(scores)
    if rung.record.get("scores") != digest:
        rung.record |= {"scores": digest, "cases": {}}
        path.unlink(missing_ok=True)
    small = on_scores(recipe, source, scores)
    folder = rung.work / digest[:12]
    train_again(rung, folder)
    with ExitStack() as stack:
        engine = stack.enter_context(LocalEngine(1 if rung.dry else None))
        climb = partial(advance, folder=folder, engine=engine, path=path)
        cases: dict[str, Callable[[], Any]] = {
            stage: partial(climb, small, small.plans[:1], until=stage) for stage in ("train", "oracles")
        }
        for plan in small.plans:
            cases[f"plan {plan.name}"] = partial(climb, small, [plan], until="evaluate")
        rung.run(cases)


def train_again(rung: Rung, folder: Path) -> None:
    """Ask again for models that were trained, but are not in ``folder``, as on another machine."""
    paths = RunDir(folder)
    for stage, models in (("train", paths.original), ("oracles", paths.oracles)):
        found = rung.record["cases"].get(stage, {"status": "untried"})
        if found["status"] == "ok" and not models.exists():
            found["status"] = "again"


def on_scores(recipe: Recipe, source: str, scores: Path) -> Recipe:
    """The recipe on published scores, with few models; it forgets the same share of what data there is."""
    data = limited(load_dataset(source), recipe.data)
    asked = recipe.data.train_examples or len(data)
    *request, size = recipe.forget.request.split(":")
    forgotten = max(1, int(size) * len(data) // asked)
    train, test, seed = data.taken
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(
                update={
                    "path": source,
                    "source": None,
                    "label_noise": 0.0,  # of data that is not packed
                    "train_examples": train,
                    "test_examples": test,
                    "seed": seed,
                }
            ),
            "sweep": recipe.sweep.model_copy(update={"scores": str(scores)}),
            "forget": recipe.forget.model_copy(update={"request": ":".join([*request, str(forgotten)])}),
            "evaluate": recipe.evaluate.model_copy(update={"seeds": SEEDS, "oracles": ORACLES}),
        }
    )


def advance(
    recipe: Recipe, plans: Sequence[PlanConfig], *, until: str, folder: Path, engine: LocalEngine, path: Path
) -> dict[str, Any]:
    """Do the stages up to ``until`` with these plans; an evaluation is merged into the one at ``path``."""
    run = Run(recipe.model_copy(update={"plans": tuple(plans)}), folder, engine)
    run.command = COMMAND
    for name, stage in STAGES.items():
        result = stage(run)
        if name == until:
            break
    if until != "evaluate":
        return {"folder": folder.name}
    earlier = read_json(path)["plans"] if path.exists() else []
    names = {plan["name"] for plan in result["plans"]}
    result["plans"] = [plan for plan in earlier if plan["name"] not in names] + result["plans"]
    write_json(path, result | _told(recipe, result))
    (row,) = (plan for plan in result["plans"] if plan["name"] in names)
    return {metric: found["mean"] for metric, found in row["metrics"].items()}


def _told(recipe: Recipe, result: dict[str, Any]) -> dict[str, Any]:
    """Entries that the evaluation lacks: the sweep behind the scores, and the commit; folders left out."""
    scores = Path(str(recipe.sweep.scores))
    stored = read_npz(scores)
    members = int((stored["included"] + stored["excluded"]).max())
    return {
        "sweep": result["sweep"] | {"members": members, "include": recipe.sweep.include},
        "config_toml": result["config_toml"].replace(f"{scores.parent}/", ""),
        "environment": described(),
    }
