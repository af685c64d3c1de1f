"""Audits: populations of originals, unlearned models and oracles, and what every metric says of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from rumfast.config import PlanConfig, Positive, Recipe, Strict
from rumfast.errors import UsageError
from rumfast.evaluation.audit import LEVEL, Auditor
from rumfast.evaluation.metrics import definitions
from rumfast.evaluation.outputs import Outputs, collect
from rumfast.evaluation.verdicts import has_power
from rumfast.pipeline import assess, audit_parts
from rumfast.pipeline.audit_parts import Audited
from rumfast.pipeline.probing import FRESH, measure_probes
from rumfast.pipeline.stages import STAGES, Run
from rumfast.plans import same_steps
from rumfast.reporting.audit import write_audit
from rumfast.runtime import environment
from rumfast.store import write_json
from rumfast.sweeps import Engine, LocalEngine, Population

HELD_OUT, NONE, CONSTANT, ORACLE = "held-out oracles", "none", "constant", "oracle"
RESERVED = {NONE, CONSTANT, ORACLE, "original", FRESH}
FRESH_MODELS = 8  # untrained, whose relearning is the other end of the originals'
BEFORE = ("train", "sweep", "score", "refine", "oracles")


class AuditConfig(Strict):
    """How many models an audit rests on, and how often it draws from them."""

    population: Annotated[int, Field(ge=8)] = 64  # originals, models per plan, oracles; as many oracles again
    splits: Annotated[int, Field(ge=40)] = 200  # draws for intervals and null bands
    draws: Positive = 20  # populations of held-out oracles that are audited as if unlearned
    mia_examples: Annotated[int, Field(ge=10)] = (
        500  # most members, and non-members, each attack is fitted on
    )
    probes: bool = True  # measure relearning and entanglement after
    seed: int = 0


def audit(
    recipe: Recipe,
    out: str | Path,
    config: AuditConfig | None = None,
    *,
    device: str = "auto",
    workers: int | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Train populations, and hold originals and every plan's models against oracles by every metric.

    Trains ``population`` originals, twice as many oracles, of which half are held out, and runs every plan
    from each original; does only what ``out`` lacks. A plan that diverges from any original is left out.

    Returns:
        What is written to ``out/audit/audit.json``, see ``rumfast/schemas/audit-1.json``.

    Raises:
        UsageError: a plan has a name that an audit needs.
        RumfastError: see ``rumfast.errors``; finished work is kept.
    """
    settings = config or AuditConfig()
    if taken := {plan.name for plan in recipe.plans if not _does_nothing(plan)} & RESERVED:
        raise UsageError(f"plans: {min(taken)} is what an audit calls models of its own; rename the plan")
    numbers = {"seeds": settings.population, "oracles": 2 * settings.population}
    changed = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=numbers)})
    with LocalEngine(workers, device) if engine is None else engine as entered:
        Run(recipe, out, entered, device).pack()  # the folder keeps the recipe as it is
        run = Run(changed, out, entered, device)
        for name in BEFORE:
            STAGES[name](run)
        plans, diverged = run.unlearn_convergent()
        record = _Audit(run, plans, settings).record()
    if diverged:
        record["diverged"] = diverged
    write_json(run.dir.root / "audit" / "audit.json", record)
    write_audit(run.dir.root / "audit" / "index.html", record)
    return record


def _does_nothing(plan: PlanConfig) -> bool:
    return same_steps(plan, PlanConfig(name=NONE, steps=NONE))


class _Audit:
    """One run's populations."""

    def __init__(self, run: Run, plans: Sequence[PlanConfig], config: AuditConfig) -> None:
        self.run = run
        self.config = config
        # Doing nothing gives the originals, which are audited anyway.
        self.populations: dict[str, Population] = {
            NONE: run.originals,
            **{plan.name: run.plan_population(plan) for plan in plans if not _does_nothing(plan)},
        }

    def record(self) -> dict[str, Any]:
        """Everything an audit says."""
        run, n, config = self.run, self.config.population, self.config
        probes = self._probes()
        pool = self._outputs(run.oracle_population, 2 * n, probes.get(ORACLE, {}))
        reference, held_out = pool.take(np.arange(n)), pool.take(np.arange(n, 2 * n))
        audited = [
            Audited(HELD_OUT, "oracle", held_out, {}),
            *(self._audited(name, each, probes.get(name, {})) for name, each in self.populations.items()),
        ]
        auditor = Auditor(reference, n, splits=config.splits, seed=config.seed)
        values = {each.name: auditor.values(each.outputs) for each in audited}
        found = {each.name: auditor.audit(each.outputs, values[each.name]) for each in audited}
        constant = Audited(CONSTANT, "control", _constant(run, config), {})
        # It has no weights to be probed.
        found[CONSTANT] = self._without_probes(reference).audit(constant.outputs)
        audited.append(constant)
        del values[HELD_OUT]
        return assess.describe(run) | {
            "schema": "rumfast/audit/1",
            "population": n,
            "held_out": n,
            "splits": config.splits,
            "level": LEVEL,
            "rmia_a": auditor.offline_a,
            "metrics": definitions(auditor.metrics),
            "models": [
                audit_parts.model_record(each, found[each.name], found[NONE], auditor) for each in audited
            ],
            "power": {name: has_power(name, found[NONE]) for name in found[NONE]},
            "false_alarms": audit_parts.false_alarms(
                pool, draws=config.draws, splits=config.splits // 4, seed=config.seed
            ),
            "ranking": audit_parts.ranking(auditor, values),
            "breakdown": audit_parts.breakdown(
                run, audited, reference, splits=config.splits, seed=config.seed
            ),
            "roc": {
                each.name: audit_parts.curves(each.outputs, reference, auditor.offline_a) for each in audited
            },
            "examples": audit_parts.examples(run, audited, reference),
            "relearning": {name: each["relearning"].tolist() for name, each in probes.items()},
            "environment": environment(),
        }

    def _without_probes(self, reference: Outputs) -> Auditor:
        config = self.config
        return Auditor(
            reference._replace(extra={}), config.population, splits=config.splits, seed=config.seed
        )

    def _audited(self, name: str, population: Population, probes: Mapping[str, np.ndarray]) -> Audited:
        outputs = self._outputs(population, self.config.population, probes)
        if name == NONE:
            return Audited(name, "original", outputs, {})
        return Audited(name, "plan", outputs, self._facts(population))

    def _outputs(self, population: Population, members: int, probes: Mapping[str, np.ndarray]) -> Outputs:
        data, split = self.run.data, self.run.split
        logits = (population.outputs(index) for index in range(members))
        return collect(
            ((each["train"], each["test"]) for each in logits),
            data.train.label_N,
            data.test.label_N,
            split.forget,
            split.retain,
            mia_examples=self.config.mia_examples,
            extra=probes,
        )

    def _probes(self) -> dict[str, dict[str, np.ndarray]]:
        """Relearning and entanglement by population; without entanglement where it is infinite somewhere."""
        if not self.config.probes:
            return {}
        n, oracles = self.config.population, {ORACLE: self.run.oracle_population}
        found = measure_probes(self.run, oracles, range(2 * n))
        found |= measure_probes(self.run, self.populations, range(n), fresh=FRESH_MODELS)
        keys = [key for key in found[ORACLE] if all(np.isfinite(each[key]).all() for each in found.values())]
        return {name: {key: each[key] for key in keys} for name, each in found.items()}

    def _facts(self, population: Population) -> dict[str, Any]:
        """What a plan's models took, as shares of what oracles did."""
        members = range(self.config.population)
        ours = [population.metrics(index) for index in members]
        theirs = [self.run.oracle_population.metrics(index) for index in members]

        def share(key: str) -> float:
            return float(np.mean([each[key] for each in ours]) / np.mean([each[key] for each in theirs]))

        return {
            "steps": " > ".join(ours[0]["steps"]),
            "cost": share("examples"),
            "time": share("wall_s"),
        }


def _constant(run: Run, config: AuditConfig) -> Outputs:
    """As many models that give every example the same logits, and with them the same margin."""
    data, split, classes = run.data, run.split, len(run.data.classes)
    logits = np.zeros((len(data), classes), np.float32), np.zeros((len(data.test), classes), np.float32)
    labels = data.train.label_N, data.test.label_N
    one = collect([logits], *labels, split.forget, split.retain, mia_examples=config.mia_examples)
    return one.take(np.zeros(config.population, int))
