"""What a population is: everything that a member is a pure function of, besides its index."""

import hashlib
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from rumfast.config import Design, Retain, Strict, TrainConfig, check_design
from rumfast.data import Dataset, load_dataset
from rumfast.errors import MismatchError, UsageError
from rumfast.runtime import derive_seed

Kind = Literal["subsets", "original", "oracle", "unlearned", "trials", "proxies", "probes"]
HOLDOUTS = 10  # parts of the pool, of which a ``proxies`` member holds out one


class DataRef(Strict):
    """How a worker finds the training data, and how it knows that it is the same."""

    location: str  # packed folder, or a source
    fingerprint: str  # SHA-256 of the decoded content of what is trained on
    train_examples: int | None = None
    test_examples: int | None = None
    seed: int = 0

    @classmethod
    def to(cls, data: Dataset) -> "DataRef":
        """Refer to a data set that lies on disk or can be loaded from its source.

        Raises:
            UsageError: it was made in memory, where worker processes cannot find it.
        """
        if data.location is None:
            raise UsageError(
                "data: made in memory, where worker processes cannot load it; pack it to a folder first"
            )
        train_examples, test_examples, seed = data.taken
        return cls(
            location=data.location,
            fingerprint=data.fingerprint,
            train_examples=train_examples,
            test_examples=test_examples,
            seed=seed,
        )

    def load(self) -> Dataset:
        """The data set.

        Raises:
            MismatchError: what lies there is something else.
        """
        data = load_dataset(self.location).take(self.train_examples, self.test_examples, self.seed)
        if data.fingerprint != self.fingerprint:
            raise MismatchError(
                f"{self.location}: content is {data.fingerprint[:12]}, the population was made "
                f"with {self.fingerprint[:12]}"
            )
        return data


class GroupSpec(Strict):
    """A refined group, as stored."""

    name: str
    ids: tuple[int, ...]


class RequestSpec(Strict):
    """A deletion request, as recorded in the models it led to."""

    request: str | None  # as asked; None in records of before 0.4, which tell the ids alone
    size: int
    sha256: str  # of the ids, see ``ids_digest``
    plan: str | None
    path: str  # folder of the unlearned models, relative to the one this is recorded in


class CandidateSpec(Strict):
    """A plan to try, and how it refines the forget set."""

    steps: str
    refine: str
    retain: Retain


class SurrogateSpec(Strict):
    """A forget set to try plans on: its groups, by refinement."""

    groups: dict[str, tuple[GroupSpec, ...]]


class ProbeSpec(Strict):
    """How a model's relearning is measured; ``train`` says with which batch size, lr, momentum and decay."""

    target: Annotated[float, Field(ge=0, le=1)]  # accuracy on the forget set that counts as relearned
    every: Annotated[int, Field(gt=0)]  # steps between two looks at it
    most: Annotated[int, Field(gt=0)]  # steps, after which it ends


class PopulationSpec(Strict):
    """A population of models.

    ``subsets`` members are trained on random subsets of the pool, ``original`` ones on the pool, ``oracle``
    ones on the pool without ``forget``; ``unlearned`` member i is original i after the plan. The pool is the
    training set without ``excluded``, the ids that earlier requests deleted.

    ``proxies`` members are trained on the pool without a tenth, on which they are then trained further; they
    keep scores of the training examples and no model.

    ``trials`` keep no model: member i is what became of candidate i // pairs on pair i % pairs, where pair p
    is surrogate p % S, unlearned from one of its originals, see :meth:`pair`.

    ``probes`` keep none either: member i is what is measured on model i of the parent besides its logits, or
    on a fresh, untrained model where there is no parent.
    """

    kind: Kind
    data: DataRef
    train: TrainConfig
    seed: int = 0
    precision: str  # resolved, since "auto" differs between machines
    include: Annotated[float, Field(gt=0, lt=1)] | None = None
    design: Design = "fixed"
    margins: Literal["fp16", "fp32"] = "fp16"
    events: bool = False
    excluded: tuple[int, ...] = ()
    forget: tuple[int, ...] = ()
    groups: tuple[GroupSpec, ...] = ()
    plan: str | None = None
    retain: Retain = "remaining"
    budget: int | None = None  # examples
    parent: str | None = None  # folder of the originals, or models to probe, relative to the population's own
    requests: tuple[RequestSpec, ...] = ()  # of unlearned models: all that they met, theirs last
    candidates: tuple[CandidateSpec, ...] = ()
    surrogates: tuple[SurrogateSpec, ...] = ()
    pairs: int = 0
    originals: int = 0  # that there are to unlearn surrogates from
    mia_examples: int = 0  # most that the attack on a trial's model is fitted on
    probe: ProbeSpec | None = None

    @model_validator(mode="after")
    def _pairs_are_halves(self) -> "PopulationSpec":
        check_design(self.design, self.include)
        return self

    def pool(self, examples: int) -> np.ndarray:
        """Ids that may be trained on, of a training set of ``examples``."""
        return np.setdiff1d(np.arange(examples), np.array(self.excluded, np.int64))

    def retained(self, examples: int) -> np.ndarray:
        """Ids of the retain set: the pool without the forget set."""
        return np.setdiff1d(self.pool(examples), np.array(self.forget, np.int64))

    def subset(self, index: int, examples: int) -> np.ndarray:
        """Sorted ids of member ``index``'s random subset of the pool.

        ``fixed``: ⌊include · |pool|⌋ of them, drawn anew for each member. ``independent``: each of them with
        probability ``include``. ``pairs``: member 2k has ⌊|pool| / 2⌋ of them, member 2k + 1 all others.

        Depends on the seed, the index and the pool alone.
        """
        assert self.include is not None
        pool = self.pool(examples)
        drawn = index // 2 if self.design == "pairs" else index
        draw = np.random.Generator(np.random.PCG64(derive_seed("subset", self.seed, drawn)))
        if self.design == "independent":
            return pool[draw.random(len(pool)) < self.include]
        chosen = np.sort(draw.choice(pool, _share(self.include, len(pool)), replace=False))
        return np.setdiff1d(pool, chosen) if self.design == "pairs" and index % 2 else chosen

    def subset_size(self, index: int, examples: int) -> int:
        """Number of ids in :meth:`subset`; nothing is drawn where the design fixes it."""
        assert self.include is not None
        if self.design == "independent":
            return len(self.subset(index, examples))
        pool = examples - len(self.excluded)
        size = _share(self.include, pool)
        return pool - size if self.design == "pairs" and index % 2 else size

    def holdout(self, index: int, examples: int) -> np.ndarray:
        """Sorted ids of the tenth of the pool that ``proxies`` member ``index`` is not trained on at first.

        Members 10k … 10k + 9 hold out tenths that do not overlap. Depends on the seed, the index and the pool
        alone.
        """
        pool = self.pool(examples)
        seed = derive_seed("holdout", self.seed, index // HOLDOUTS)
        shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(pool)
        return np.sort(shuffled[index % HOLDOUTS :: HOLDOUTS])

    def pair(self, number: int) -> tuple[int, int]:
        """Surrogate and original of a pair; surrogates have originals of their own while there are any left.

        Originals differ more than seeds of one plan do, so that choices must see as many as possible.
        """
        time, surrogate = divmod(number, len(self.surrogates))
        times = self.pairs // len(self.surrogates)
        return surrogate, (surrogate * times + time) % self.originals

    def member_seed(self, index: int) -> int:
        """Seed of member ``index``'s weights, order and relabelling."""
        return derive_seed(self.kind, self.seed, index)

    def identity(self) -> str:
        """SHA-256 of all that members follow from; not of where the data lies, nor of requests before."""
        fields = self.model_copy(update={"requests": ()}).model_dump_json(exclude={"data": {"location"}})
        return hashlib.sha256(fields.encode()).hexdigest()


def _share(include: float, pool: int) -> int:
    return int(round(include * pool, 9))  # 0.7 · 90 is 62.99…
