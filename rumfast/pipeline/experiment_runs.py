"""The runs of an experiment: a base that all forget sets share, and one run upon it for each of them."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from rumfast.algorithms import ALGORITHMS
from rumfast.config import AUTO, ForgetConfig, PlanConfig, Positive, Recipe, Strict, dump_recipe
from rumfast.errors import UsageError
from rumfast.pipeline.request import needs_of, rehearse
from rumfast.pipeline.scoring import train_proxies
from rumfast.pipeline.search import search_plans
from rumfast.pipeline.stages import Run
from rumfast.pipeline.variation import Candidate
from rumfast.refinement import Group
from rumfast.reporting.experiment import write_experiments
from rumfast.runtime import environment
from rumfast.store import read_json, write_json, write_text
from rumfast.sweeps import Engine
from rumfast.sweeps.journal import read_history

NONE = PlanConfig(name="none", steps="none")
HEADLINE = ("tow", "tow_mia")  # metrics that claims are about
NOTES = (
    "Intervals are 95 % t-intervals over seeds, each another original. All seeds of a forget set are held "
    "against the same oracles, whose own luck the intervals leave out.",
    "Hyper-parameters were chosen on surrogate forget sets, as near in score profile as other examples allow "
    "(see the profile), never on this one.",
    "Each plan takes at most the budget: a step without epochs, as influence and ssd, cannot spend it, and "
    "none takes nothing. What each took is its cost.",
)

Choose = Callable[[Mapping[str, Any]], list[PlanConfig]]


class ExperimentConfig(Strict):
    """What to change of the recipe, and how much to search; None leaves it to the recipe."""

    seeds: Positive | None = None
    oracles: Annotated[int, Field(ge=3)] | None = None
    size: Positive | None = None  # examples to forget
    budget_epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    # None: search.algorithms, and where there are none all but retrain, which the oracles are
    algorithms: tuple[str, ...] | None = None
    search_minutes: float | None = None  # for each forget set's plans


class Measured(NamedTuple):
    """One forget set: its evaluation, what the search found, and the plans that diverged."""

    summary: dict[str, Any]
    search: dict[str, Any]
    diverged: list[str]


class Experiment:
    """A recipe, changed as the experiment says, over a folder.

    Args:
        name: ``difficulty`` or ``rum``.

    Raises:
        UsageError: an unknown algorithm, or no budget that all plans could take.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        out: str | Path,
        config: ExperimentConfig,
        engine: Engine,
        device: str,
    ) -> None:
        self.name = name
        self.config = config
        self.out = Path(out)
        self.engine = engine
        self.device = device
        self.algorithms = _known(config.algorithms or recipe.search.algorithms)
        evaluate = {"seeds": config.seeds, "oracles": config.oracles}
        self.recipe = recipe.model_copy(
            update={
                "evaluate": _changed(recipe.evaluate, evaluate),
                "unlearn": _changed(recipe.unlearn, {"budget_epochs": config.budget_epochs}),
                "search": _changed(recipe.search, {"minutes": config.search_minutes}),
                "plans": (NONE,),
            }
        )
        if self.recipe.unlearn.budget_epochs is None:
            raise UsageError(
                "unlearn.budget_epochs: the recipe has none, and plans are compared within one; "
                "give --budget-epochs"
            )

    @property
    def base(self) -> Path:
        """Folder of the run that all forget sets share."""
        return self.out / "base"

    @property
    def recipe_path(self) -> Path:
        """Where the recipe is kept, changed as the experiment says."""
        return self.out / self.name / "experiment.toml"

    @property
    def command(self) -> str:
        """What makes this experiment again, or goes on with it."""
        asked = {
            "--size": self.config.size,
            "--algorithms": self.config.algorithms and ",".join(self.algorithms),
        }
        options = [text for key, value in asked.items() if value for text in (key, str(value))]
        recipe, out = str(self.recipe_path), str(self.out)
        return shlex.join(["rumfast", "experiment", self.name, recipe, "--out", out, *options])

    @property
    def trained(self) -> list[str]:
        """The algorithms that there is something to choose for."""
        return [name for name in self.algorithms if name != NONE.name]

    @cached_property
    def shared(self) -> Run:
        """The base run, which all forget sets share."""
        # Any request would do: only those with a memorization refinement have a sweep.
        changes = {"request": "random:1", "refine": "memorization", "groups": 1}
        forget = self.recipe.forget.model_copy(update=changes)
        recipe = self.recipe.model_copy(update={"forget": forget})
        return Run(recipe, self.base, self.engine, self.device)

    def rehearse(self, forget: ForgetConfig) -> tuple[Group, ...]:
        """Resolve a forget set as far as that goes without scores, so that a mistake costs no training.

        Raises:
            UsageError, DataError: as :func:`rumfast.pipeline.request.rehearse`.
        """
        searched = [PlanConfig(name=AUTO, steps=AUTO)] if self.trained else []
        recipe = self.recipe.model_copy(update={"forget": forget, "plans": (NONE, *searched)})
        return rehearse(recipe, self.shared.data, self.shared.excluded)

    def prepare(self, forgets: Iterable[ForgetConfig]) -> None:
        """Train originals, sweep and what else the scores of these forget sets need, and score."""
        run, needs = self.shared, set()
        for forget in forgets:
            self.rehearse(forget)
            needs |= needs_of(self.recipe.model_copy(update={"forget": forget}))
        run.pack()
        write_text(self.recipe_path, dump_recipe(self.recipe))
        run.train()
        run.sweep()
        if "proxies" in needs:
            train_proxies(run)
        run.score()

    def run(self, forget: ForgetConfig, folder: Path, plans: Sequence[PlanConfig] = (NONE,)) -> Run:
        """A run of one forget set upon the base."""
        recipe = self.recipe.model_copy(update={"forget": forget, "plans": tuple(plans)})
        run = Run(recipe, folder, self.engine, self.device, base=self.base)
        run.command = self.command
        return run

    def size(self) -> int:
        """Examples to forget: as configured, or as many as the recipe's own request."""
        if self.config.size is not None:
            return self.config.size
        return sum(len(group.ids) for group in self.rehearse(self.recipe.forget))

    def measure(
        self, forget: ForgetConfig, folder: Path, families: Mapping[str, Sequence[Candidate]], choose: Choose
    ) -> Measured:
        """Search, unlearn by the plans that ``choose`` makes of what was found, and evaluate."""
        first = self.run(forget, folder)
        first.pack()
        first.refine()
        found = search_plans(first, families) if families else {"families": {}}
        found.pop("wall_s", None)  # the only part that another call would not repeat
        run = self.run(forget, folder, choose(found))
        run.pack()
        run.oracles()
        run, diverged = self._unlearn(run)
        run.evaluate()
        return Measured(read_json(run.dir.evaluation), found, diverged)

    def _unlearn(self, run: Run) -> tuple[Run, list[str]]:
        """Run every plan; one that diverges is left out, and named, instead of ending the experiment."""
        done, diverged = run.unlearn_convergent()
        return (self.run(run.recipe.forget, run.dir.root, done) if diverged else run), diverged

    def finish(self, record: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Add what all records have, store it, and write the page of all experiments in the folder."""
        count = record["intervals"]
        chance = (
            f"{count} intervals at 95 % each: if nothing differed, about {record['expected_by_chance']:.1f} "
            "would exclude zero all the same. With Bonferroni: those that hold for all of them together."
        )
        record |= {
            "notes": [*NOTES, *record.get("notes", ()), chance],
            "environment": dict(environment()),
            "timing": {
                "worker_s": _worker_seconds(self.base, folder),
                "workers": self.engine.workers,
            },
        }
        write_json(self.out / f"{self.name}.json", record)
        stored = [self.out / f"{each}.json" for each in ("difficulty", "rum")]
        write_experiments(
            self.out / "report" / "index.html", [read_json(path) for path in stored if path.exists()]
        )
        return record


def _known(names: Sequence[str] | None) -> tuple[str, ...]:
    chosen = tuple(name for name in ALGORITHMS if name != "retrain") if names is None else tuple(names)
    for name in chosen:
        if name not in ALGORITHMS or name == "retrain":
            raise UsageError(f"algorithms: got {name!r}, expected some of {', '.join(_known(None))}")
    return chosen


def _changed(config: Any, values: Mapping[str, Any]) -> Any:
    return config.model_copy(update={key: value for key, value in values.items() if value is not None})


def _worker_seconds(*folders: Path) -> float:
    """Seconds that workers spent on all populations below the folders, over all calls."""
    roots = sorted(spec.parent for folder in folders for spec in folder.rglob("spec.json"))
    return sum(sum(read_history(root).seconds.values()) for root in roots)
