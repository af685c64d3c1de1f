"""Recipes: what to run, as frozen pydantic models read from TOML."""

import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rumfast.errors import UsageError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Refine = Literal[  # a score, see ``rumfast.scores.SCORES``, or one of the last three
    "memorization",
    "margin_memorization",
    "confidence",
    "max_confidence",
    "entropy",
    "binary_accuracy",
    "curvature",
    "holdout",
    "distance",
    "class",
    "random",
    "none",
]
Retain = Literal["remaining", "final"]
Design = Literal["fixed", "independent", "pairs"]  # of random subsets, see PopulationSpec.subset
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """A frozen model that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Strict):
    """Which packed data set, or which source to pack first."""

    path: str | None = None  # packed folder, or a source to load unpacked, e.g. "npz:FILE"; None: RUN/data
    source: str | None = None  # what to pack there when it is missing, e.g. "digits"
    label_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of training labels to flip when packing
    train_examples: Positive | None = None  # stratified subset; None: all
    test_examples: Positive | None = None
    seed: int = 0  # of label noise and subset

    @model_validator(mode="after")
    def _has_origin(self) -> "DataConfig":
        if self.path is None and self.source is None:
            raise ValueError("give path (a packed data set) or source (what to pack)")
        return self


class TrainConfig(Strict):
    """One training recipe: architecture, SGD and schedule (see ``training.train``)."""

    arch: Literal["resnet8", "resnet9", "resnet18", "resnet50"] = "resnet18"
    width: Positive | None = None  # channels of the stem; None: the architecture's own
    stem_stride: Literal[1, 2] = 1  # 2 quarters the cost on 32×32 images
    epochs: Positive = 30
    batch_size: Positive = 256  # about: batches are of even size, with at most 5 % more (see loaders.base)
    micro_batches: Positive = 1  # parts a batch is split into where a step needs more memory than there is
    lr: Rate = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Rate = 5e-4
    schedule: Literal["constant", "cosine", "multistep"] = "cosine"
    milestones: tuple[Positive, ...] = ()  # epochs, for multistep
    gamma: Fraction = 0.1  # factor on lr at each milestone
    warmup_epochs: Rate = 0.0  # linear from 0
    flip: bool = False
    crop_padding: Annotated[int, Field(ge=0, le=16)] = 0  # pixels
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # fp32 trains convolutions in TF32 on CUDA
    loader: Literal["auto", "resident", "streaming"] = "auto"  # resident where the images fit; same batches
    compile: Literal["auto", "on", "off"] = "auto"  # auto: on CUDA; on a CPU it costs 100 s and gains nothing
    cuda_graphs: Literal["auto", "off"] = "auto"  # auto: on CUDA each step is recorded once and replayed
    seed: int = 0


def check_design(design: Design, include: float | None) -> None:
    """Refuse complementary pairs that are not halves."""
    if design == "pairs" and include != 0.5:
        raise ValueError(f"design: pairs are complementary halves, so include must be 0.5, got {include}")


class SweepConfig(Strict):
    """A population of models on random subsets, from which memorization is estimated."""

    members: Positive = 400
    include: Fraction = 0.7  # share of the training set each member sees
    design: Design = "fixed"
    margins: Literal["fp16", "fp32"] = "fp16"  # as stored
    events: bool = False  # also store what each example's loss said during training (see MemberRecord)
    seed: int = 0
    scores: str | None = None  # a published score file to read instead of training members

    @model_validator(mode="after")
    def _pairs_are_halves(self) -> "SweepConfig":
        check_design(self.design, self.include)
        return self


class ForgetConfig(Strict):
    """Which examples to forget, and how to refine them into groups."""

    # ids:FILE | class:3 | random:3000 | memorization:LEVEL:3000 | entanglement:LEVEL:3000 | mislabeled
    request: str
    refine: Refine = "memorization"
    groups: Positive = 3
    # An earlier request's unlearned models, RUN/unlearned/PLAN: beside the recipe, or else where one stands.
    after: str | None = None
    seed: int = 0  # of random requests and random refinement


AUTO = "auto"  # a plan's steps where plan search chooses them


class PlanConfig(Strict):
    """A named plan, e.g. ``steps = "low:none > mid:finetune(lr=0.1) > high:salun(epochs=5)"``, or "auto"."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=64)]  # a folder's name
    steps: str
    refine: Refine | None = None  # None: as the recipe's forget section; "random" is the shuffle control
    retain: Retain | None = None  # None: as the recipe's unlearn section

    @model_validator(mode="after")
    def _search_chooses_all(self) -> "PlanConfig":
        if self.steps == AUTO and (self.refine, self.retain) != (None, None):
            raise ValueError("steps: auto chooses refine and retain too; leave them out")
        return self


class UnlearnConfig(Strict):
    """What all plans share."""

    retain: Retain = "remaining"  # are groups still to come trained on meanwhile?
    # Passes over the training set that each plan may take in all; None: as its steps say.
    budget_epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class SearchConfig(Strict):
    """Plan search: how much to try, and what counts as good."""

    algorithms: tuple[str, ...] | None = None  # to try; None: all
    objective: Literal["mean", "tow", "tow_mia"] = "mean"  # the mean of ToW and ToW-MIA, or one of them
    # Standard deviations over pairs taken off a plan's mean: one model is unlearned, not the average of many.
    caution: Rate = 1.0
    surrogates: Positive = 3  # forget sets to choose each family's best on
    finals: Annotated[int, Field(ge=0)] = 2  # further ones, for the choice among the best of all
    checks: Annotated[int, Field(ge=0)] = 3  # further ones, on which no choice depends: what to expect
    originals: Positive = 3  # models that each surrogate is unlearned from
    oracles: Positive = 3  # of each surrogate
    generations: Annotated[int, Field(ge=0)] = 4  # of mixed plans
    children: Positive = 24  # mixed plans per generation
    minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = (
        None  # of training and trying, after which no further rung or generation begins
    )
    seed: int = 0


class EvaluateConfig(Strict):
    """How many models each number rests on."""

    seeds: Positive = 3  # originals, each unlearned by every plan
    oracles: Annotated[int, Field(ge=3)] = 5  # fewer make null bands that mean little
    mia_examples: Annotated[int, Field(ge=10)] = (
        5000  # most members, and non-members, the attack is fitted on
    )


class Recipe(Strict):
    """Everything that ``rumfast run`` needs to know."""

    name: str = "run"
    data: DataConfig
    train: TrainConfig = TrainConfig()
    sweep: SweepConfig = SweepConfig()
    forget: ForgetConfig
    unlearn: UnlearnConfig = UnlearnConfig()
    plans: tuple[PlanConfig, ...] = Field(min_length=1)
    search: SearchConfig = SearchConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _plan_names_differ(self) -> "Recipe":
        names = [plan.name for plan in self.plans]
        if len(set(names)) < len(names):
            raise ValueError(f"plans: names must differ, got {', '.join(names)}")
        return self


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a TOML file, or by name from the recipes that ship with rumfast.

    Raises:
        UsageError: no such file, not TOML, or a field is unknown, missing or out of range; names the field.
    """
    file = Path(path)
    if not os.path.exists(file):
        shipped = resources.files("rumfast.recipes") / file.name
        if file.parent != Path(".") or file.suffix != ".toml" or not shipped.is_file():
            raise UsageError(
                f"recipe: no file {file} and none shipped of that name; "
                f"shipped: {', '.join(shipped_recipes())}"
            )
        return parse_recipe(shipped.read_text(encoding="utf-8"), str(path))
    try:
        return _located(parse_recipe(file.read_text(encoding="utf-8"), str(path)), file.parent)
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path}: not a readable TOML text file: {error}") from None


def _located(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the path of an earlier request's models made absolute."""
    after = recipe.forget.after
    if after is None:
        return recipe
    # A run names them relative to its own folder; recipes of people, and of runs before 0.4, to where one is.
    beside = folder / after
    found = os.path.realpath(beside if (beside / "spec.json").exists() else after)
    return recipe.model_copy(update={"forget": recipe.forget.model_copy(update={"after": found})})


def parse_recipe(text: str, origin: str) -> Recipe:
    """Parse recipe TOML; ``origin`` names it in errors."""
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise UsageError(f"{origin}: {explain(error)}") from None
    except (ValueError, RecursionError) as error:  # integers may be too long for int(), tables too deep
        raise UsageError(f"{origin}: not valid TOML: {error}") from None


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as TOML with every default spelled out."""
    import tomli_w  # here, so that the benchmarks run where it is not installed

    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def shipped_recipes() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(
        file.name for file in resources.files("rumfast.recipes").iterdir() if file.name.endswith(".toml")
    )


def explain(error: ValidationError) -> str:
    """One line for a pydantic error: each field with what was wrong and what was found."""
    parts = []
    for issue in error.errors():
        field = ".".join(str(key) for key in issue["loc"]) or "recipe"
        found = "" if issue["type"] == "missing" else f" (got {str(issue['input'])[:60]!r})"
        parts.append(f"{field}: {issue['msg']}{found}")
    return "; ".join(parts)
