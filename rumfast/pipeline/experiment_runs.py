"""The runs of an experiment: a base that all forget sets share, and one run upon it for each of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from rumfast.algorithms import ALGORITHMS
from rumfast.config import ForgetConfig, PlanConfig, Positive, Recipe, Strict
from rumfast.errors import DivergedError, UsageError
from rumfast.pipeline.search import search
from rumfast.pipeline.stages import Run
from rumfast.pipeline.variation import Candidate
from rumfast.reporting.experiment import write_experiments
from rumfast.runtime import environment
from rumfast.store import read_json, write_json
from rumfast.sweeps import Engine
from rumfast.sweeps.journal import read_history

NONE = PlanConfig(name="none", steps="none")
HEADLINE = ("tow", "tow_mia")  # metrics that claims are about
NOTES = (
    "Intervals are 95 % t-intervals over seeds, each another original. All seeds of a forget set are held "
    "against the same oracles, whose own luck the intervals leave out.",
    "Hyper-parameters were chosen on surrogate forget sets of the same score profile, never on this one.",
)

Choose = Callable[[Mapping[str, Any]], list[PlanConfig]]


class ExperimentConfig(Strict):
    """What to change of the recipe, and how much to search; None leaves it to the recipe."""

    seeds: Positive | None = None
    oracles: Annotated[int, Field(ge=3)] | None = None
    size: Positive | None = None  # examples to forget
    budget_epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    algorithms: tuple[str, ...] | None = None  # None: all but retrain, which the oracles are
    search_minutes: float | None = None  # for each forget set's plans


class Measured(NamedTuple):
    """One forget set: its evaluation, what the search found, and the plans that diverged."""

    summary: dict[str, Any]
    search: dict[str, Any]
    diverged: list[str]


class Experiment:
    """A recipe, changed as the experiment says, over a folder.

    Raises:
        UsageError: an unknown algorithm, or no budget that all plans could take.
    """

    def __init__(
        self, recipe: Recipe, out: str | Path, config: ExperimentConfig, engine: Engine, device: str
    ) -> None:
        self.config = config
        self.out = Path(out)
        self.engine = engine
        self.device = device
        self.algorithms = _known(config.algorithms)
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
                "unlearn.budget_epochs: the recipe has none, and plans are compared at equal budget; "
                "give --budget-epochs"
            )

    @property
    def base(self) -> Path:
        """Folder of the run that all forget sets share."""
        return self.out / "base"

    def prepare(self) -> None:
        """Train originals and sweep, and score."""
        # Any request would do: only those with a memorization refinement have a sweep.
        forget = self.recipe.forget.model_copy(
            update={"request": "random:1", "refine": "memorization", "groups": 1}
        )
        run = Run(self.recipe.model_copy(update={"forget": forget}), self.base, self.engine, self.device)
        for stage in (run.pack, run.train, run.sweep, run.score):
            stage()

    def run(self, forget: ForgetConfig, folder: Path, plans: Sequence[PlanConfig] = (NONE,)) -> Run:
        """A run of one forget set upon the base."""
        recipe = self.recipe.model_copy(update={"forget": forget, "plans": tuple(plans)})
        return Run(recipe, folder, self.engine, self.device, base=self.base)

    def size(self) -> int:
        """Examples to forget: as configured, or as many as the recipe's own request."""
        forget = self.recipe.forget
        return self.config.size or len(self.run(forget, self.out / "rum").split.forget)

    def measure(
        self, forget: ForgetConfig, folder: Path, families: Mapping[str, Sequence[Candidate]], choose: Choose
    ) -> Measured:
        """Search, unlearn by the plans that ``choose`` makes of what was found, and evaluate."""
        first = self.run(forget, folder)
        first.pack()
        first.refine()
        found = search(first, families) if families else {"families": {}}
        found.pop("wall_s", None)  # the only part that another call would not repeat
        run = self.run(forget, folder, choose(found))
        run.pack()
        run.oracles()
        run, diverged = self._unlearn(run)
        run.evaluate()
        return Measured(read_json(run.dir.evaluation), found, diverged)

    def _unlearn(self, run: Run) -> tuple[Run, list[str]]:
        """Run every plan; one that diverges is left out, and named, instead of ending the experiment."""
        try:
            run.unlearn()
            return run, []
        except DivergedError:
            seeds = range(run.recipe.evaluate.seeds)
            done = [p for p in run.recipe.plans if len(run.plan_population(p).done(seeds)) == len(seeds)]
            diverged = [plan.name for plan in run.recipe.plans if plan not in done]
            return self.run(run.recipe.forget, run.dir.root, done), diverged

    def finish(self, name: str, record: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Add what all records have, store it, and write the page of all experiments in the folder."""
        count = record["intervals"]
        chance = (
            f"{count} intervals at 95 % each: if nothing differed, about {record['expected_by_chance']:.1f} "
            "would exclude zero all the same. With Bonferroni: those that hold for all of them together."
        )
        record |= {
            "notes": [*NOTES, chance],
            "environment": dict(environment()),
            "timing": {
                "worker_s": _worker_seconds(self.base, folder),
                "workers": self.engine.workers,
            },
        }
        write_json(self.out / f"{name}.json", record)
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
