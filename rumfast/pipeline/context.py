"""What a run is about: its data, forget set, groups and populations, each resolved when first asked for."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rumfast.config import DataConfig, PlanConfig, Recipe
from rumfast.data import Dataset, Split, dataset_info, load_dataset, pack
from rumfast.errors import DataError, MismatchError
from rumfast.inference import embeddings_of
from rumfast.kernels.centroids import centroid_distances
from rumfast.kernels.moments import moments
from rumfast.models import build_model
from rumfast.pipeline.request import budget_of, regroup, resolve
from rumfast.refinement import Group
from rumfast.runtime import cpu_threads, pick_device, resolve_precision
from rumfast.score_files import read_scores
from rumfast.scores import Memorization
from rumfast.store import RunDir, read_npz, require_same, write_npz
from rumfast.sweeps import DataRef, Engine, Population, PopulationSpec
from rumfast.sweeps.run import sweep_spec
from rumfast.sweeps.spec import GroupSpec


class Context:
    """A recipe over a folder, and the engine that trains for it."""

    def __init__(self, recipe: Recipe, out: str | Path, engine: Engine, device: str = "auto") -> None:
        self.recipe = recipe
        self.dir = RunDir(out)
        self.engine = engine
        self.device = device

    @cached_property
    def data(self) -> Dataset:
        """The data set, packed first if the recipe names a source."""
        config = self.recipe.data
        where = config.path or str(self.dir.data)
        if config.source is not None and not (Path(where) / "dataset.json").exists():
            pack(config.source, where, label_noise=config.label_noise, seed=config.seed)
        elif config.source is not None:
            _require_pack(where, config)
        return load_dataset(where).take(config.train_examples, config.test_examples, config.seed)

    @property
    def needs_sweep(self) -> bool:
        """Does the request or a refinement read memorization scores?"""
        forget = self.recipe.forget
        refinements = {forget.refine, *(plan.refine for plan in self.recipe.plans)}
        return forget.request.startswith("memorization:") or "memorization" in refinements

    @cached_property
    def excluded(self) -> tuple[int, ...]:
        """Ids that earlier requests deleted."""
        if self.recipe.forget.after is None:
            return ()
        earlier = Population.open(Path(self.recipe.forget.after)).spec
        if earlier.data.fingerprint != self.data.fingerprint:
            raise DataError(
                f"{self.recipe.forget.after}: unlearned from other data than {self.recipe.data.path}"
            )
        return tuple(sorted({*earlier.excluded, *earlier.forget}))

    @cached_property
    def originals(self) -> Population:
        """The models to unlearn from: trained on everything, or an earlier request's result."""
        after = self.recipe.forget.after
        if after is None:
            return Population.create(self.dir.original, self._spec("original"))
        earlier = Population.open(Path(after))
        require_same(Path(after), self._spec("original").train, earlier.spec.train)
        return earlier

    def _spec(self, kind: str, **fields: Any) -> PopulationSpec:
        train = self.recipe.train
        precision = resolve_precision(train.precision, self.device)
        return PopulationSpec.model_validate(
            {
                "kind": kind,
                "data": DataRef.to(self.data),
                "train": train,
                "seed": train.seed,
                "precision": precision,
                "excluded": self.excluded,
                **fields,
            }
        )

    @cached_property
    def sweep_population(self) -> Population:
        """The folder of the sweep."""
        sweep = self.recipe.sweep
        return Population.create(
            self.dir.sweep,
            sweep_spec(
                self.data,
                self.recipe.train,
                include=sweep.include,
                design=sweep.design,
                margins=sweep.margins,
                events=sweep.events,
                seed=sweep.seed,
                device=self.device,
                excluded=self.excluded,
            ),
        )

    @cached_property
    def memorization(self) -> Memorization | None:
        """Scores as stored by the score stage."""
        if not self.needs_sweep:
            return None
        return read_scores(self.dir.memorization, self.data.train.label_N)

    @cached_property
    def split(self) -> Split:
        """Forget and retain set; ids that earlier requests deleted are in neither."""
        return resolve(self.recipe, self.data, self._score_N(), self.excluded)

    def _score_N(self) -> np.ndarray | None:
        return None if self.memorization is None else self.memorization.score_N

    def groups(self, kind: str | None = None) -> tuple[Group, ...]:
        """The forget set, refined as ``kind`` says (None: as the recipe does)."""
        return regroup(self.recipe, self.data, self.split, self._score_of, kind)

    def _score_of(self, kind: str) -> np.ndarray:
        score_N = self.distance_N if kind == "distance" else self._score_N()
        assert score_N is not None
        return score_N

    @cached_property
    def embedding_ND(self) -> Tensor:
        """Embeddings of the training set in original 0."""
        train = self.recipe.train
        model = build_model(
            train.arch, len(self.data.classes), width=train.width, stem_stride=train.stem_stride
        )
        model.load_state_dict(self.originals.state(0))
        model = model.to(pick_device(self.device))
        with cpu_threads(1):  # as the workers: sums then do not depend on the number of cores
            return torch.from_numpy(embeddings_of(model, self.data, self.data.train))

    @cached_property
    def distance_N(self) -> np.ndarray:
        """Distance of each embedding to the mean of all, as it was when first asked for."""
        if not self.dir.distance.exists():
            centre_1D = moments(self.embedding_ND).mean_GD
            distance_N = centroid_distances(self.embedding_ND, centre_1D)
            write_npz(self.dir.distance, {"distance_N": distance_N.numpy()})
        return read_npz(self.dir.distance)["distance_N"]

    @cached_property
    def oracle_population(self) -> Population:
        """The folder of the oracles."""
        return Population.create(self.dir.oracles, self._spec("oracle", forget=self.split.forget.tolist()))

    @property
    def budget(self) -> int | None:
        """Examples whose gradient each plan may take."""
        return budget_of(self.recipe, self.split)

    def plan_population(self, plan: PlanConfig) -> Population:
        """The folder of the models that ``plan`` unlearned."""
        root = self.dir.plan(plan.name)
        groups = [
            GroupSpec(name=group.name, ids=tuple(group.ids.tolist())) for group in self.groups(plan.refine)
        ]
        return Population.create(
            root,
            self._spec(
                "unlearned",
                forget=self.split.forget.tolist(),
                groups=groups,
                plan=plan.steps,
                budget=self.budget,
                retain=plan.retain or self.recipe.unlearn.retain,
                parent=os.path.relpath(self.originals.root.resolve(), root.resolve()),
            ),
        )


def _require_pack(path: str, config: DataConfig) -> None:
    """Refuse a packed folder that the recipe's source would not have given."""
    record = dataset_info(path)
    for field, ours in (
        ("source", config.source),
        ("label_noise", config.label_noise),
        ("seed", config.seed),
    ):
        if record[field] != ours and (field != "seed" or config.label_noise):
            raise MismatchError(
                f"{path}: packed with {field} {record[field]}, the recipe says {ours}; use another data.path"
            )
