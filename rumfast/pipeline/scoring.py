"""All difficulty scores of a run: where each lies, what each cost, and how they agree."""

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from rumfast.errors import UsageError
from rumfast.kernels.centroids import centroid_distances
from rumfast.kernels.moments import moments
from rumfast.pipeline.earlier import first_originals
from rumfast.runtime import environment
from rumfast.scores import SCORES
from rumfast.scores.agreement import RESAMPLES, ceiling, class_summary, rank_agreement
from rumfast.store import read_json, read_npz, write_json, write_npz
from rumfast.sweeps import Population
from rumfast.sweeps.journal import read_history
from rumfast.sweeps.run import train_members

if TYPE_CHECKING:
    from rumfast.pipeline.context import Context

PROXY_MEMBERS = 2  # of the population "proxies": their hold-outs do not overlap, so each example has a score
FOLDED = ("curvature", "holdout")


def score_of(run: "Context", name: str) -> np.ndarray:
    """One of ``SCORES`` [N], from where the stages before have put it; NaN for an example without.

    The averages over training are those of the run's first original, trained on everything: where requests
    are chained, of the model that the first of them was unlearned from.

    Raises:
        UsageError: margins are asked for where scores were published.
        DataError: a file is missing or damaged.
    """
    need = SCORES[name].needs
    if need == "embedding":
        return run.distance_N
    if need == "original":
        return first_originals(run.originals).proxies(0)[name]
    if need == "proxies":
        return _folded(run.proxy_population, name)
    stored = read_npz(run.dir.memorization)
    if name not in stored:
        raise UsageError(f"{name}: needs a sweep; published scores have no margins")
    return stored[name]


def _folded(population: Population, name: str) -> np.ndarray:
    """Mean over the members that were trained on the example."""
    score_MN = np.stack([population.proxies(index)[name] for index in range(PROXY_MEMBERS)])
    known_MN = np.isfinite(score_MN)
    with np.errstate(invalid="ignore"):
        return np.where(known_MN, score_MN, 0).sum(0) / known_MN.sum(0)


def train_proxies(run: "Context") -> None:
    """Train what loss curvature and holdout retraining are measured on."""
    train_members(run.engine, run.proxy_population, range(PROXY_MEMBERS), "proxy models")


def existing_columns(run: "Context") -> dict[str, np.ndarray]:
    """All scores that the run holds, with labels and ids, as columns [N]."""
    n, first = len(run.data), first_originals(run.originals)
    there = {"original": (first.member(0) / "proxies.npz").exists()}
    there["embedding"] = run.dir.distance.exists()
    proxies = Population(run.dir.proxies, run.spec("proxies"))
    there["proxies"] = len(proxies.done(range(PROXY_MEMBERS))) == PROXY_MEMBERS
    flipped_N = np.isin(np.arange(n), run.data.flipped)
    columns = {"id": np.arange(n), "label": run.data.train.label_N, "flipped": flipped_N}
    if run.needs_sweep:
        columns |= read_npz(run.dir.memorization)
    return columns | {name: score_of(run, name) for name in SCORES if there.get(SCORES[name].needs, False)}


def summarize_scores(run: "Context") -> dict[str, Any]:
    """Compute every score, hold them against each other, and write scores and summary.

    Examples that an earlier request deleted are left out; ones without a score, of the pairs it is in.
    """
    train_proxies(run)
    names = [name for name in SCORES if name != "margin_memorization" or run.recipe.sweep.scores is None]
    score_N = {name: score_of(run, name) for name in names}
    pool, data, sweep = run.spec("proxies").pool(len(run.data)), run.data, read_json(run.dir.sweep_summary)
    computed = {name: score for name, score in score_N.items() if SCORES[name].needs != "sweep"}
    ids = {"id": np.arange(len(data)), "label": data.train.label_N}
    write_npz(run.dir.proxy_scores, ids | computed, replace=True)
    score_P = {name: score[pool] for name, score in score_N.items()}
    found = rank_agreement(score_P)
    halves = sweep.get("split_half")
    limit = None if halves is None else ceiling(halves["spearman_whole"])
    cost, flipped_P = costs(run), np.isin(pool, data.flipped)
    summary = {
        "schema": "rumfast/scores/1",
        "name": run.recipe.name,
        "dataset": {"name": data.name, "fingerprint": data.fingerprint, "examples": len(pool)},
        "train": run.recipe.train.model_dump(mode="json"),
        "sweep": sweep,
        "ceiling": limit,
        "resamples": RESAMPLES,
        "names": list(found.names),
        "spearman": {key: _json(getattr(found, f"{key}_KK")) for key in ("rho", "low", "high")},
        "count": found.count_KK.tolist(),
        "scores": [
            {
                "name": name,
                "label": SCORES[name].label,
                "definition": SCORES[name].definition,
                "source": SCORES[name].source,
                "rises": SCORES[name].rises,
                "missing": int(np.isnan(score_P[name]).sum()),
                "cost": cost[name],
            }
            for name in names
        ],
        "classes": class_summary(data.train.label_N[pool], data.classes, score_P, flipped_P),
        "environment": dict(environment()),
    }
    write_json(run.dir.agreement, summary)
    return summary


def costs(run: "Context") -> dict[str, dict[str, float | None]]:
    """Seconds of each score on one worker, and as a share of the sweep's.

    ``marginal``: where its model is trained anyway; ``whole``: with the training of that model. What members
    took is known from the sweep's journals; one that they lack counts as the mean of the others.
    """
    metrics, sweep_s = first_originals(run.originals).metrics(0), _sweep_seconds(run)
    folds = [run.proxy_population.metrics(index) for index in range(PROXY_MEMBERS)]
    fold = {key: sum(one[f"{key}_s"] for one in folds) for key in ("train", *FOLDED)}
    warm_up, started = run.embedding_ND, time.perf_counter()  # the first pass of a process loads kernels
    centroid_distances(run.embed(), moments(warm_up).mean_GD).cpu()  # a GPU is waited for
    distance_s = time.perf_counter() - started
    seconds = {
        "original": (metrics["observe_s"], metrics["wall_s"]),
        "embedding": (distance_s, distance_s + metrics["wall_s"] - metrics["observe_s"]),
        "sweep": (sweep_s, sweep_s),
    }
    found: dict[str, dict[str, float | None]] = {}
    for name, score in SCORES.items():
        own = (fold[name], fold[name] + fold["train"]) if name in FOLDED else seconds[score.needs]
        row = dict(zip(("marginal_s", "whole_s"), own, strict=True))
        shares = {key.replace("_s", "_share"): _ratio(value, sweep_s) for key, value in row.items()}
        found[name] = row | shares
    return found


def _sweep_seconds(run: "Context") -> float | None:
    """What the sweep's members took; None where scores were published or no journal is left."""
    if run.recipe.sweep.scores is not None:
        return None
    members = run.recipe.sweep.members
    seconds = [took for index, took in read_history(run.dir.sweep).seconds.items() if index < members]
    return float(np.mean(seconds)) * members if seconds else None


def _ratio(value: float | None, whole: float | None) -> float | None:
    return None if value is None or not whole else value / whole


def _json(value_KK: np.ndarray) -> list[list[float | None]]:
    return [[float(value) if np.isfinite(value) else None for value in row] for row in value_KK]
