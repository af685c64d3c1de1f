"""One run: pack → train → sweep → score → refine → oracles → unlearn → evaluate → report."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from rumfast.config import AUTO, PlanConfig, Recipe, load_recipe
from rumfast.data import ids_digest
from rumfast.errors import DivergedError, PartialError, StorageError, UsageError
from rumfast.pipeline import assess, scoring
from rumfast.pipeline.context import Context
from rumfast.pipeline.request import needs_of, notices_of, rehearse
from rumfast.pipeline.search import search_plans
from rumfast.pipeline.variation import standard_families
from rumfast.progress import notice
from rumfast.refinement import Group, filled
from rumfast.reporting.page import write_report
from rumfast.runtime import cpu_threads, environment
from rumfast.score_files import check_ending, read_scores, write_scores
from rumfast.scores import Memorization, worst_standard_error
from rumfast.store import (
    read_json,
    remove_partial,
    require_same,
    write_json,
    write_npz,
    write_text,
)
from rumfast.sweeps import Engine, LocalEngine, load_sweep
from rumfast.sweeps.run import train_members


class Run(Context):
    """A recipe over a folder. Each stage needs the ones before it, and does only what the folder lacks.

    Trained models are never made twice; scores, groups, evaluation and report are derived, and derived again
    on every call, which costs seconds.
    """

    def pack(self) -> dict[str, Any]:
        """Pack or open the data, and write the run's configuration."""
        try:
            self.dir.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.dir.root}: cannot be made a directory: {error.strerror}") from error
        self.require_own_folder()
        remove_partial(self.dir.root)
        data = self.data
        groups = self.rehearse()
        for text in notices_of(self.recipe, sum(len(group.ids) for group in groups)):
            notice(text)
        write_text(self.dir.recipe, self.recipe_text())
        write_json(
            self.dir.manifest,
            {"schema": "rumfast/manifest/1", "fingerprint": data.fingerprint, "environment": environment()},
        )
        return {"fingerprint": data.fingerprint, "train": len(data), "test": len(data.test)}

    def require_own_folder(self) -> None:
        """Refuse a folder that another recipe's run lies in.

        Raises:
            MismatchError: lists the fields that differ.
        """
        if self.dir.recipe.exists():
            require_same(self.dir.recipe, _comparable(self.recipe), _comparable(load_recipe(self.dir.recipe)))

    def rehearse(self) -> tuple[Group, ...]:
        """Refuse a mistake in request, plans, search or published scores before it costs a sweep.

        Returns:
            The groups of the forget set, see ``rumfast.pipeline.request.rehearse``.

        Raises:
            UsageError, DataError: as the stages would, hours later.
        """
        groups = rehearse(self.recipe, self.data, self.excluded)
        standard_families([], self.recipe.search.algorithms)
        if self.recipe.sweep.scores is not None:
            read_scores(self.recipe.sweep.scores, self.data.train.label_N)
        return groups

    def train(self) -> dict[str, Any]:
        """Train the original models."""
        seeds = range(self.recipe.evaluate.seeds)
        self.require_originals()
        if self.recipe.forget.after is None:
            train_members(self.engine, self.originals, seeds, "original models")
        return {"originals": len(seeds), "path": str(self.originals.root)}

    def require_originals(self) -> None:
        """Refuse more seeds than an earlier request's models, which cannot be trained here.

        Raises:
            UsageError: with both numbers.
        """
        seeds = range(self.recipe.evaluate.seeds)
        if self.recipe.forget.after is not None and len(self.originals.done(seeds)) < len(seeds):
            raise UsageError(
                f"evaluate.seeds: got {len(seeds)}, but {self.originals.root} holds "
                f"{len(self.originals.done(seeds))} models"
            )

    def sweep(self, members: range | None = None) -> dict[str, Any]:
        """Train the sweep, or a part of it."""
        needed = self.needs_sweep and self.recipe.sweep.scores is None
        chosen = members if members is not None else range(self.recipe.sweep.members if needed else 0)
        if chosen:
            train_members(self.engine, self.sweep_population, chosen, "sweep members")
        return {"members": len(chosen), "path": str(self.dir.sweep)}

    def score(self) -> dict[str, Any]:
        """Reduce the sweep to memorization scores, or read published ones; train what other scores need."""
        if "proxies" in needs_of(self.recipe):
            scoring.train_proxies(self)
        if not self.needs_sweep:
            return {"memorization": None}
        published = self.recipe.sweep.scores
        columns, summary = self._measured() if published is None else self._published(published)
        n, flipped_N = len(self.data), np.zeros(len(self.data), bool)
        flipped_N[self.data.flipped] = True
        columns = {"id": np.arange(n), "label": self.data.train.label_N, "flipped": flipped_N, **columns}
        write_npz(self.dir.memorization, columns, replace=True)
        write_json(self.dir.sweep_summary, summary)
        return {"memorization": str(self.dir.memorization), **summary}

    def _measured(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        members = range(self.recipe.sweep.members)
        missing = len(members) - len(self.sweep_population.done(members))
        if missing:
            raise PartialError(
                f"{self.dir.sweep}: {missing} of {len(members)} members are missing; run the sweep"
            )
        sweep = load_sweep(self.sweep_population, members)
        by_margin, margins = sweep.margin_memorization(), sweep.margins()
        columns = _columns(sweep.memorization()) | {
            "margin_memorization": by_margin.score_N,
            "margin_standard_error": by_margin.standard_error_N,
            "margin_mean_in": margins.mean_in_N,
            "margin_variance_in": margins.variance_in_N,
            "margin_mean_out": margins.mean_out_N,
            "margin_variance_out": margins.variance_out_N,
        }
        reliability = sweep.reliability()
        if not np.isfinite(columns["memorization"]).any():
            raise UsageError(
                f"{self.dir.sweep}: no example was both in some members' subsets and out of others'; raise "
                f"sweep.members, which is {len(members)}"
            )
        return columns, {
            "members": len(members),
            "include": self.recipe.sweep.include,
            "diverged": sweep.diverged,
            "mean": float(np.nanmean(columns["memorization"])),
            "median_standard_error": float(np.nanmedian(columns["standard_error"])),
            "worst_standard_error": worst_standard_error(len(members), self.recipe.sweep.include),
            "split_half": None if reliability is None else reliability._asdict(),
        }

    def _published(self, path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        scores = read_scores(path, self.data.train.label_N)
        mean = float(scores.score_N[np.isfinite(scores.score_N)].mean())
        return _columns(scores), {"published": Path(path).name, "mean": mean}

    def scores(self) -> dict[str, Any]:
        """Compute every score, and how they agree; see ``scoring.summarize_scores``."""
        return scoring.summarize_scores(self)

    def export(self, path: str | Path) -> None:
        """Write all scores that there are as npz, Parquet or CSV.

        Raises:
            UsageError: another ending.
        """
        write_scores(path, scoring.existing_columns(self))

    def refine(self) -> dict[str, Any]:
        """Choose the forget set and refine it into groups."""
        write_npz(self.dir.forget, {"forget": self.split.forget, "retain": self.split.retain}, replace=True)
        write_npz(self.dir.groups, {group.name: group.ids for group in self.groups()}, replace=True)
        with cpu_threads(1):  # as the workers: sums then do not depend on the number of cores
            geometry = assess.geometry_of(self)
            write_npz(self.dir.neighbours, assess.neighbours_of(self), replace=True)
        write_json(self.dir.geometry, geometry)
        return {
            "forget": len(self.split.forget),
            "entanglement": geometry["forget"]["entanglement"],
            "groups": {group.name: len(group.ids) for group in self.groups()},
        }

    def oracles(self) -> dict[str, Any]:
        """Train the oracles: models that never saw the forget set."""
        train_members(self.engine, self.oracle_population, range(self.recipe.evaluate.oracles), "oracles")
        return {"oracles": self.recipe.evaluate.oracles, "path": str(self.dir.oracles)}

    def search(self) -> dict[str, Any]:
        """Search for the plan that surrogates of the forget set are unlearned best with."""
        names = [group.name for group in filled(self.groups())]
        return search_plans(self, standard_families(names, self.recipe.search.algorithms))

    def searched(self) -> bool:
        """Was a plan searched for this forget set before, however long?"""
        path = self.dir.search / "result.json"
        return path.exists() and read_json(path)["forget"] == ids_digest(self.split.forget)

    def unlearn(self) -> dict[str, Any]:
        """Run every plan from every original.

        Raises:
            DivergedError: names the plans that diverged; the others are done.
        """
        if any(plan.steps == AUTO for plan in self.recipe.plans) and not self.searched():
            self.search()
        diverged = []
        for plan in self.recipe.plans:
            population, seeds = self.plan_population(plan), range(self.recipe.evaluate.seeds)
            try:
                train_members(self.engine, population, seeds, f"plan {plan.name}")
            except DivergedError:
                diverged.append(plan.name)
            population.discard_checkpoints(seeds)  # that killed workers left
        if diverged:
            raise DivergedError(
                f"plans {', '.join(diverged)} diverged, the others are done; "
                "give them a lower lr and another name"
            )
        return {"plans": {plan.name: str(self.dir.plan(plan.name)) for plan in self.recipe.plans}}

    def unlearn_convergent(self) -> tuple[list[PlanConfig], list[str]]:
        """Run every plan; the plans that are done, and the names of those that diverged."""
        with suppress(DivergedError):
            self.unlearn()
        seeds, plans = range(self.recipe.evaluate.seeds), self.recipe.plans
        done = [plan for plan in plans if len(self.plan_population(plan).done(seeds)) == len(seeds)]
        return done, [plan.name for plan in plans if plan not in done]

    def evaluate(self) -> dict[str, Any]:
        """Score every model against the oracles; writes the summary, and timings apart from it.

        Only the summary is the same bit for bit whenever it is made again.
        """
        summary, timing = assess.summarize(self)
        write_json(self.dir.evaluation, summary)
        write_json(self.dir.timing, timing)
        return self._result()

    def report(self) -> dict[str, Any]:
        """Write the HTML page."""
        write_report(self.dir.report, self._result(), assess.report_images(self))
        return {"report": str(self.dir.report)}

    def _result(self) -> dict[str, Any]:
        return assess.merge_timing(read_json(self.dir.evaluation), read_json(self.dir.timing), self.command)


STAGES: dict[str, Callable[[Run], dict[str, Any]]] = {
    "pack": Run.pack,
    "train": Run.train,
    "sweep": Run.sweep,
    "score": Run.score,
    "refine": Run.refine,
    "oracles": Run.oracles,
    "unlearn": Run.unlearn,
    "evaluate": Run.evaluate,
    "report": Run.report,
}


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    until: str = "report",
    device: str = "auto",
    workers: int | None = None,
    engine: Engine | None = None,
    export: str | Path | None = None,
    all_scores: bool = False,
    before_training: Callable[[Run], None] | None = None,
) -> dict[str, Any]:
    """Run the stages in order up to ``until``, doing what ``out`` lacks; returns each stage's result.

    Killed at any moment and called again, it ends with the same scores and evaluation.

    Args:
        engine: where members are trained, not entered yet; None: ``workers`` processes on this machine.
        export: file to write the scores to, as :func:`write_scores` does, once they are there.
        all_scores: compute every score after the stage ``score``, with the result ``scores``.
        before_training: called with the run once its data are packed.

    Raises:
        RumfastError: see ``rumfast.errors``; finished work is kept.
    """
    results = {}
    if export is not None:
        check_ending(export)
    with LocalEngine(workers, device) if engine is None else engine as entered:
        conductor = Run(recipe, out, entered, device)
        conductor.all_scores = all_scores
        for name, stage in STAGES.items():
            results[name] = stage(conductor)
            if name == "pack" and before_training is not None:
                before_training(conductor)
            if name == "score" and all_scores:
                results["scores"] = conductor.scores()
            if name == "score" and export is not None:
                conductor.export(export)
            if name == until:
                break
    return results


def _columns(scores: Memorization) -> dict[str, np.ndarray]:
    return {
        "memorization": scores.score_N,
        "standard_error": scores.standard_error_N,
        "included": scores.included_N,
        "excluded": scores.excluded_N,
    }


def _comparable(recipe: Recipe) -> Recipe:
    """The recipe with everything that may change between calls set to one value."""
    return recipe.model_copy(
        update={
            "name": "",
            "plans": (),
            "evaluate": type(recipe.evaluate)(),
            "search": type(recipe.search)(),
            "sweep": recipe.sweep.model_copy(update={"members": 1}),
        }
    )
