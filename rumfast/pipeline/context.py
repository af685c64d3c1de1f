"""What a run is about: its data, forget set, groups and populations, each resolved when first asked for."""

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rumfast.config import AUTO, DataConfig, PlanConfig, Recipe, dump_recipe
from rumfast.data import Dataset, Split, dataset_info, ids_digest, load_dataset, pack
from rumfast.data.splits import ENTANGLEMENT_LEVELS
from rumfast.errors import DataError, MismatchError
from rumfast.inference import embeddings_of
from rumfast.kernels.centroids import centroid_distances
from rumfast.kernels.moments import moments
from rumfast.models import build_model
from rumfast.pipeline import scoring
from rumfast.pipeline.request import budget_of, earlier_requests, needs_of, pool_of, regroup, resolve
from rumfast.refinement import Group
from rumfast.runtime import cpu_threads, pick_device, resolve_precision
from rumfast.score_files import read_scores
from rumfast.scores import Memorization, rising
from rumfast.scores.windows import Windows, measure_windows
from rumfast.store import RunDir, read_json, read_npz, require_same, write_json, write_npz
from rumfast.sweeps import DataRef, Engine, Population, PopulationSpec
from rumfast.sweeps.run import sweep_spec
from rumfast.sweeps.spec import GroupSpec, RequestSpec


class Context:
    """A recipe over a folder, and the engine that trains for it.

    Args:
        base: folder of a run of the same data and training recipe, whose data, originals, sweep and scores
            this one shares.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: str | Path,
        engine: Engine,
        device: str = "auto",
        *,
        base: str | Path | None = None,
    ) -> None:
        self.recipe = _with_after(recipe, os.path.realpath)
        self.dir = RunDir(out, base)
        self.engine = engine
        self.device = device
        self.command = f"rumfast run {self.dir.recipe} --out {self.dir.root}"  # which makes it again
        self.all_scores = False  # compute all of them, whatever the recipe reads

    @cached_property
    def data(self) -> Dataset:
        """The data set, packed first if the recipe names a source."""
        config = self.recipe.data
        where = config.path or str(self.dir.data)
        if config.source is not None and not (Path(where) / "dataset.json").exists():
            whole = self.pack_data(config.source, where)
        else:
            if config.source is not None:
                _require_pack(where, config)
            whole = load_dataset(where)
        return whole.take(config.train_examples, config.test_examples, config.seed)

    def pack_data(self, source: str, where: str) -> Dataset:
        """Pack the source into the folder ``where``."""
        config = self.recipe.data
        return pack(source, where, label_noise=config.label_noise, seed=config.seed)

    def population(self, root: Path, spec: PopulationSpec) -> Population:
        """Make a population's folder, or reopen it."""
        return Population.create(root, spec)

    @property
    def needs_sweep(self) -> bool:
        """Does the request or a refinement read memorization scores, or are all scores wanted?"""
        by_request = self.recipe.forget.request.startswith("memorization:")
        return self.all_scores or by_request or "sweep" in needs_of(self.recipe)

    @cached_property
    def excluded(self) -> tuple[int, ...]:
        """Ids that earlier requests deleted."""
        if self.earlier is None:
            return ()
        spec = self.earlier.spec
        if spec.data.fingerprint != self.data.fingerprint:
            raise DataError(f"{self.earlier.root}: unlearned from other data than {self.recipe.data.path}")
        return tuple(sorted({*spec.excluded, *spec.forget}))

    @cached_property
    def earlier(self) -> Population | None:
        """The unlearned models of the request before this one."""
        after = self.recipe.forget.after
        return None if after is None else Population.open(Path(after))

    def requests(self, root: Path) -> tuple[RequestSpec, ...]:
        """The requests before this one, in order, with paths relative to ``root``."""
        return () if self.earlier is None else earlier_requests(self.earlier, root)

    def recipe_text(self) -> str:
        """The recipe as TOML; the models of an earlier request are named relative to this run's folder."""
        root = self.dir.root.resolve()
        return dump_recipe(_with_after(self.recipe, lambda after: os.path.relpath(after, root)))

    @cached_property
    def originals(self) -> Population:
        """The models to unlearn from: trained on everything, or an earlier request's result."""
        if self.earlier is None:
            return self.population(self.dir.original, self.spec("original"))
        require_same(self.earlier.root, self.spec("original").train, self.earlier.spec.train)
        return self.earlier

    def spec(self, kind: str, **fields: Any) -> PopulationSpec:
        """Spec of a population of this run's data and training recipe."""
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
        return self.population(
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
    def proxy_population(self) -> Population:
        """The folder of the models that loss curvature and holdout retraining are measured on."""
        return self.population(self.dir.proxies, self.spec("proxies"))

    @cached_property
    def memorization(self) -> Memorization | None:
        """Scores as stored by the score stage."""
        if not self.needs_sweep:
            return None
        return read_scores(self.dir.memorization, self.data.train.label_N)

    @cached_property
    def split(self) -> Split:
        """Forget and retain set; ids that earlier requests deleted are in neither."""
        return resolve(self.recipe, self.data, self._score_N(), self.excluded, self._window)

    def _window(self, level: str, size: int) -> np.ndarray:
        pool = pool_of(self.data, self.excluded)
        order_P = np.argsort(self.distance_N[pool], kind="stable")
        windows = self.windows(order_P, size)
        start = windows.start_W[windows.at(level)]
        return order_P[start : start + size]

    def windows(self, order_P: np.ndarray, size: int) -> Windows:
        """Windows of the pool in ``order_P``, with their entanglement as it was when first asked for."""
        if not self.dir.windows.exists():
            pool = pool_of(self.data, self.excluded)
            with cpu_threads(1):  # as the embeddings
                found = measure_windows(self.embedded(pool), order_P, size)
            content = {
                "size": size,
                "start": found.start_W.tolist(),
                "entanglement": [es if np.isfinite(es) else None for es in found.entanglement_W.tolist()],
                "levels": {level: found.at(level) for level in ENTANGLEMENT_LEVELS},
            }
            write_json(self.dir.windows, content)
        stored = read_json(self.dir.windows)
        entanglement_W = np.array([np.inf if es is None else es for es in stored["entanglement"]])
        return Windows(stored["size"], np.array(stored["start"]), entanglement_W)

    def _score_N(self) -> np.ndarray | None:
        return None if self.memorization is None else self.memorization.score_N

    def groups(self, kind: str | None = None) -> tuple[Group, ...]:
        """The forget set, refined as ``kind`` says (None: as the recipe does)."""
        return regroup(self.recipe, self.data, self.split, self.score_of, kind)

    def score_of(self, kind: str) -> np.ndarray:
        """The score [N] that a refinement orders by, from low to high memorization."""
        return rising(kind, scoring.score_of(self, kind))

    def profile(self) -> dict[str, np.ndarray]:
        """The scores [N] in which a surrogate must resemble the forget set."""
        kinds = {"distance"} if self.recipe.forget.request.startswith("entanglement:") else set()
        if self.memorization is not None:
            kinds.add("memorization")
        elif self.recipe.forget.refine not in ("class", "random", "none"):
            kinds.add(self.recipe.forget.refine)
        return {kind: self.score_of(kind) for kind in sorted(kinds) or ["distance"]}

    @cached_property
    def embedding_ND(self) -> Tensor:
        """Embeddings of the training set in original 0, float32, kept on the device that computed them."""
        return self.embed()

    def embedded(self, ids: np.ndarray) -> Tensor:
        """Rows ``ids`` of :attr:`embedding_ND`, on its device."""
        return self.embedding_ND[torch.as_tensor(ids, device=self.embedding_ND.device)]

    def embed(self) -> Tensor:
        """Recompute :attr:`embedding_ND`, uncached."""
        train = self.recipe.train
        model = build_model(
            train.arch, len(self.data.classes), width=train.width, stem_stride=train.stem_stride
        )
        model.load_state_dict(self.originals.state(0))
        model = model.to(pick_device(self.device))
        with cpu_threads(1):  # as the workers: sums then do not depend on the number of cores
            return embeddings_of(model, self.data, self.data.train)

    @cached_property
    def distance_N(self) -> np.ndarray:
        """Distance of each embedding to the mean of the pool's, as it was when first asked for."""
        if not self.dir.distance.exists():
            with cpu_threads(1):  # as the embeddings
                centre_1D = moments(self.embedded(pool_of(self.data, self.excluded))).mean_GD
                distance_N = centroid_distances(self.embedding_ND, centre_1D)
            write_npz(self.dir.distance, {"distance_N": distance_N.cpu().numpy()})
        return read_npz(self.dir.distance)["distance_N"]

    @cached_property
    def oracle_population(self) -> Population:
        """The folder of the oracles."""
        return self.population(self.dir.oracles, self.spec("oracle", forget=self.split.forget.tolist()))

    @property
    def budget(self) -> int | None:
        """Examples whose gradient each plan may take."""
        return budget_of(self.recipe, self.split)

    def chosen(self, plan: PlanConfig) -> PlanConfig:
        """The plan, with what plan search chose where it is left to it: the same from its first use on."""
        if plan.steps != AUTO:
            return plan
        path = self.dir.plan(plan.name) / "chosen.json"
        if not path.exists():
            write_json(path, self._best(), replace=False)
        return plan.model_copy(update=read_json(path))

    def _best(self) -> dict[str, Any]:
        found = read_json(self.dir.search / "result.json")
        best = found["finalists"][found["best"]]
        return {key: best[key] for key in ("steps", "refine", "retain")}

    def earlier_choices(self) -> list[str]:
        """Plans that keep what an earlier search chose, which is not what the last one did."""
        used = self.dir.root.glob("unlearned/*/chosen.json")
        return sorted(path.parent.name for path in used if read_json(path) != self._best())

    def plan_population(self, plan: PlanConfig) -> Population:
        """The folder of the models that ``plan`` unlearned."""
        plan = self.chosen(plan)
        root, forget = self.dir.plan(plan.name), self.split.forget
        asked = RequestSpec(
            request=self.recipe.forget.request,
            size=len(forget),
            sha256=ids_digest(forget),
            plan=plan.steps,
            path=".",
        )
        groups = [
            GroupSpec(name=group.name, ids=tuple(group.ids.tolist())) for group in self.groups(plan.refine)
        ]
        return self.population(
            root,
            self.spec(
                "unlearned",
                forget=forget.tolist(),
                groups=groups,
                requests=(*self.requests(root), asked),
                plan=plan.steps,
                budget=self.budget,
                retain=plan.retain or self.recipe.unlearn.retain,
                parent=os.path.relpath(self.originals.root.resolve(), root.resolve()),
            ),
        )


def _with_after(recipe: Recipe, change: Callable[[str], str]) -> Recipe:
    after = recipe.forget.after
    if after is None:
        return recipe
    return recipe.model_copy(update={"forget": recipe.forget.model_copy(update={"after": change(after)})})


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
