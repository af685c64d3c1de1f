"""Verdicts of a run on genuine retrains: ``python -m rumfast.bench.held_out RECIPE --out RUN [--save FILE]``.

Trains 20 oracles more than the recipe asks for, puts each in the place of a plan, and counts
the verdicts; then the same of groups, each of as many as there are seeds. *Differs* is a false alarm.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rumfast.bench.machine import taken
from rumfast.config import Recipe, load_recipe
from rumfast.evaluation import ModelScores
from rumfast.pipeline import Run
from rumfast.pipeline.judging import bands_of, findings_of, judged, score_population, set_sizes
from rumfast.pipeline.stages import STAGES
from rumfast.runtime import environment
from rumfast.store import write_json
from rumfast.sweeps import LocalEngine

HELD_OUT = 20
VERDICTS = ("matches", "cannot tell", "differs")
BEFORE = ("train", "sweep", "score", "refine", "oracles")


def held_out_verdicts(recipe: Recipe, out: str | Path, workers: int | None = None) -> dict[str, Any]:
    """Verdicts on held-out oracles, alone and in groups, and on the untouched originals.

    Returns:
        ``alone`` and ``grouped``: one verdict, with its reasons, of each plan that oracles stand in for;
        ``none``: that of the originals.
    """
    settings = recipe.evaluate
    number = settings.oracles + HELD_OUT
    changed = recipe.model_copy(update={"evaluate": settings.model_copy(update={"oracles": number})})
    with LocalEngine(workers) as engine:
        Run(recipe, out, engine).pack()  # the folder keeps the recipe as it is
        run = Run(changed, out, engine)
        for name in BEFORE:
            STAGES[name](run)
    pool = score_population(run.oracle_population, number, run.data, run.split, settings.mia_examples)
    originals = score_population(run.originals, settings.seeds, run.data, run.split, settings.mia_examples)
    oracles, held = pool[: settings.oracles], pool[settings.oracles :]
    bands = bands_of(oracles, set_sizes(run.data, run.split))

    def verdict(models: Sequence[ModelScores]) -> dict[str, Any]:
        # The originals are as many as the models, as in a run: a single one is judged as one.
        untouched = findings_of(originals[: len(models)], oracles, bands)
        found = judged(findings_of(models, oracles, bands), untouched)
        return {key: found[key] for key in ("verdict", "reasons")}

    groups = [held[start : start + settings.seeds] for start in range(0, HELD_OUT, settings.seeds)]
    return {
        "schema": "rumfast/held-out/1",
        "name": recipe.name,
        "seeds": settings.seeds,
        "oracles": settings.oracles,
        "alone": [verdict([one]) for one in held],
        "grouped": [verdict(group) for group in groups if len(group) == settings.seeds],
        "none": verdict(originals),
        "environment": dict(environment()),
    }


def held_out_table(record: Mapping[str, Any]) -> str:
    """Markdown table of a record: how often each verdict was said, of what."""
    lines = [f"| in a plan's place | {' | '.join(VERDICTS)} |", "|---|" + "---:|" * len(VERDICTS)]
    rows = {
        "one held-out oracle": record["alone"],
        f"{record['seeds']} held-out oracles": record["grouped"],
        "the originals": [record["none"]],
    }
    for name, found in rows.items():
        said = [one["verdict"] for one in found]
        lines.append(f"| {name} | {' | '.join(str(said.count(verdict)) for verdict in VERDICTS)} |")
    note = f"{record['name']}, against {record['oracles']} oracles; {taken(record)}"
    return "\n".join([*lines, "", note]) + "\n"


def main() -> None:
    """Print the verdicts, and keep them where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--out", required=True)
    parser.add_argument("--save")
    arguments = parser.parse_args()
    record = held_out_verdicts(load_recipe(arguments.recipe), arguments.out)
    if arguments.save:
        write_json(Path(arguments.save), record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
