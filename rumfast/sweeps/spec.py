"""What a population is: everything that a member is a pure function of, besides its index."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from rumfast.config import Retain, Strict, TrainConfig
from rumfast.data import Dataset
from rumfast.errors import UsageError
from rumfast.runtime import derive_seed

Kind = Literal["subsets", "original", "oracle", "unlearned"]


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


class GroupSpec(Strict):
    """A refined group, as stored."""

    name: str
    ids: tuple[int, ...]


class PopulationSpec(Strict):
    """A population of models.

    ``subsets`` members are trained on random subsets of the pool, ``original`` ones on the pool, ``oracle``
    ones on the pool without ``forget``; ``unlearned`` member i is original i after the plan. The pool is the
    training set without ``excluded``, the ids that earlier requests deleted.
    """

    kind: Kind
    data: DataRef
    train: TrainConfig
    seed: int = 0
    precision: str  # resolved, since "auto" differs between machines
    include: Annotated[float, Field(gt=0, lt=1)] | None = None
    excluded: tuple[int, ...] = ()
    forget: tuple[int, ...] = ()
    groups: tuple[GroupSpec, ...] = ()
    plan: str | None = None
    retain: Retain = "remaining"
    budget: int | None = None  # examples
    parent: str | None = None  # folder of the originals, relative to the population's own

    def pool(self, examples: int) -> np.ndarray:
        """Ids that may be trained on, of a training set of ``examples``."""
        return np.setdiff1d(np.arange(examples), np.array(self.excluded, np.int64))

    def retained(self, examples: int) -> np.ndarray:
        """Ids of the retain set: the pool without the forget set."""
        return np.setdiff1d(self.pool(examples), np.array(self.forget, np.int64))

    def subset(self, index: int, examples: int) -> np.ndarray:
        """Sorted ids of member ``index``'s random subset: ⌊include · |pool|⌋ of the pool.

        Depends on the seed, the index and the pool alone.
        """
        assert self.include is not None
        pool = self.pool(examples)
        draw = np.random.Generator(np.random.PCG64(derive_seed("subset", self.seed, index)))
        size = int(round(self.include * len(pool), 9))  # 0.7 · 90 is 62.99…
        return np.sort(draw.choice(pool, size, replace=False))

    def member_seed(self, index: int) -> int:
        """Seed of member ``index``'s weights, order and relabelling."""
        return derive_seed(self.kind, self.seed, index)
