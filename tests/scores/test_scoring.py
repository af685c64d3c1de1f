"""All scores of a run: on digits of which a tenth is mislabelled, each points where it says."""

import csv
import json
import shutil

import numpy as np
import pytest
from scipy import stats

from rumfast import run
from rumfast.bench.readme import TABLES
from rumfast.bench.score_tables import scores_table
from rumfast.config import Recipe, dump_recipe, parse_recipe
from rumfast.errors import DataError, UsageError
from rumfast.pipeline import Run
from rumfast.pipeline.scoring import costs
from rumfast.scores import SCORES, rising
from rumfast.store import read_json, read_npz, write_npz
from rumfast.sweeps import Population
from rumfast.sweeps.journal import read_history

pytestmark = pytest.mark.slow

MEMBERS = 24


def make_recipe(path, request, refine, **sections):
    return Recipe.model_validate(
        {
            "data": {"path": str(path), "train_examples": 500, "test_examples": 50},
            "train": {"arch": "resnet8", "width": 8, "epochs": 10, "batch_size": 64, "precision": "fp32"},
            "sweep": {"members": MEMBERS},
            "forget": {"request": request, "refine": refine, "groups": 2},
            "plans": [{"name": "rum", "steps": "low: none > high: finetune(epochs=1)"}],
            "evaluate": {"seeds": 1, "oracles": 3},
        }
        | sections
    )


@pytest.fixture(scope="module")
def ids_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("ids") / "ids.txt"
    file.write_text("\n".join(map(str, range(0, 60, 3))))
    return file


@pytest.fixture(scope="module")
def scored(packed, ids_file, tmp_path_factory):
    """The folder of a run that needs no sweep, whose scores were all wanted, with the results."""
    out = tmp_path_factory.mktemp("scored") / "run"
    recipe = make_recipe(packed, f"ids:{ids_file}", "confidence")
    return out, run(recipe, out, until="score", device="cpu", workers=2, all_scores=True)["scores"]


def conductor(out):
    return Run(parse_recipe((out / "config.toml").read_text(), "config.toml"), out, None, "cpu")


def test_every_proxy_points_as_it_says(scored):
    out, summary = scored
    assert summary["names"] == list(SCORES)
    rho = dict(zip(summary["names"], summary["spearman"]["rho"][0], strict=True))
    low, high = (
        dict(zip(summary["names"], summary["spearman"][key][0], strict=True)) for key in ("low", "high")
    )
    for name in set(SCORES) - {"memorization", "distance"}:
        sign = 1 if SCORES[name].rises else -1
        assert sign * rho[name] > 0.2 and sign * low[name] > 0 and sign * high[name] > 0, (name, rho[name])
    memorization_N = read_npz(out / "scores" / "memorization.npz")["memorization"]
    flipped_N = np.isin(np.arange(500), conductor(out).data.flipped)
    for name in set(SCORES) - {"distance"}:
        score_N = rising(name, conductor_scores(out)[name])
        assert stats.rankdata(score_N)[flipped_N].mean() > stats.rankdata(score_N)[~flipped_N].mean() + 50, (
            name
        )
    expected = stats.spearmanr(memorization_N, conductor_scores(out)["curvature"]).statistic
    assert rho["curvature"] == pytest.approx(expected, abs=1e-9)


def conductor_scores(out):
    return read_npz(out / "scores" / "memorization.npz") | read_npz(out / "scores" / "proxies.npz")


def test_the_summary_is_what_was_written_and_says_what_bounds_it(scored):
    out, summary = scored
    assert read_json(out / "scores" / "agreement.json") == summary
    halves = summary["sweep"]["split_half"]
    assert summary["ceiling"] == pytest.approx(halves["spearman_whole"] ** 0.5)
    assert [row["name"] for row in summary["classes"]] == [str(digit) for digit in range(10)]
    assert sum(row["count"] for row in summary["classes"]) == 500
    shares = [row["flipped"] * row["count"] for row in summary["classes"]]
    assert sum(shares) == pytest.approx(len(conductor(out).data.flipped))
    columns = conductor_scores(out)
    own = columns["label"] == 3
    assert summary["classes"][3]["means"]["holdout"] == pytest.approx(columns["holdout"][own].mean())


def test_each_example_has_both_scores_from_the_members_trained_on_it(scored):
    out, summary = scored
    population = Population.open(out / "proxies")
    held = [population.spec.holdout(index, 500) for index in range(2)]
    members = [population.proxies(index) for index in range(2)]
    stored = read_npz(out / "scores" / "proxies.npz")
    for name in ("curvature", "holdout"):
        np.testing.assert_array_equal(stored[name][held[0]], members[1][name][held[0]])
        np.testing.assert_array_equal(stored[name][held[1]], members[0][name][held[1]])
        both = np.setdiff1d(np.arange(500), np.concatenate(held))
        mean = (members[0][name] + members[1][name])[both] / 2
        np.testing.assert_allclose(stored[name][both], mean, rtol=1e-15)
    assert not any(row["missing"] for row in summary["scores"])


def test_costs_are_those_of_journals_and_metrics(scored, tmp_path):
    out, summary = scored
    cost = {row["name"]: row["cost"] for row in summary["scores"]}
    sweep_s = sum(read_history(out / "sweep").seconds.values())
    assert cost["memorization"]["marginal_s"] == pytest.approx(sweep_s)
    metrics = Population.open(out / "original").metrics(0)
    assert cost["entropy"]["marginal_share"] == pytest.approx(metrics["observe_s"] / sweep_s)
    assert cost["entropy"]["whole_s"] == metrics["wall_s"]
    folds = [Population.open(out / "proxies").metrics(index) for index in range(2)]
    assert cost["holdout"]["whole_s"] == pytest.approx(
        sum(fold["train_s"] + fold["holdout_s"] for fold in folds)
    )
    assert cost["confidence"]["marginal_share"] < 0.01 < cost["holdout"]["whole_share"]

    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    journals = sorted((copy / "sweep" / "journal").glob("*.jsonl"))
    journals[0].unlink()  # of one of two workers
    known = read_history(copy / "sweep").seconds
    assert 0 < len(known) < MEMBERS
    scaled = costs(conductor(copy))["memorization"]["marginal_s"]
    assert scaled == pytest.approx(np.mean(list(known.values())) * MEMBERS)
    journals[1].unlink()
    assert costs(conductor(copy))["confidence"]["marginal_share"] is None


def test_asked_again_nothing_is_trained_and_all_columns_are_exported(scored, rumfast, tmp_path):
    out, summary = scored
    stamps = {
        path: path.stat().st_mtime_ns
        for name in ("original", "sweep", "proxies")
        for path in (out / name).rglob("*")
    }
    shown = rumfast("score", "--out", out, "--all", "--json", "--export", tmp_path / "all.csv")
    assert shown.code == 0, shown.stderr
    again = json.loads(shown.stdout)
    for key in ("schema", "names", "spearman", "count", "classes", "ceiling"):
        assert again[key] == summary[key]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"id", "label", "flipped", "standard_error", *SCORES} <= set(rows[0])
    curvature_N = conductor_scores(out)["curvature"]
    np.testing.assert_array_equal([float(row["curvature"]) for row in rows], curvature_N)


def test_tables_for_people_and_for_pages(scored, rumfast):
    out, summary = scored
    text = rumfast("score", "--out", out, "--all").stdout
    confidence = list(SCORES).index("confidence")
    rho, low, high = (summary["spearman"][key][0][confidence] for key in ("rho", "low", "high"))
    assert f"{rho:+.3f} [{low:+.3f}, {high:+.3f}]" in text and f"{summary['ceiling']:.3f}" in text
    page = scores_table(json.loads(json.dumps(summary)))
    assert f"| confidence | {rho:+.3f} [{low:+.3f}, {high:+.3f}] |" in page
    assert page.count("\n|") == len(SCORES) + 1 and f"{MEMBERS} sweep members" in page
    assert TABLES["scores", None](summary) == page and "| 9 | " in TABLES["scores", "classes"](summary)


def test_refined_by_a_proxy_a_request_needs_no_sweep(packed, ids_file, tmp_path):
    out = tmp_path / "run"
    results = run(make_recipe(packed, f"ids:{ids_file}", "confidence"), out, device="cpu", workers=1)
    assert (
        results["sweep"]["members"] == 0 and not (out / "sweep").exists() and not (out / "proxies").exists()
    )
    confidence_N = Population.open(out / "original").proxies(0)["confidence"]
    groups = read_npz(out / "forget" / "groups.npz")
    assert confidence_N[groups["low"]].min() >= confidence_N[groups["high"]].max()
    assert sorted([*groups["low"], *groups["high"]]) == list(range(0, 60, 3))
    assert "tow" in results["evaluate"]["plans"][0]["metrics"] and (out / "report" / "index.html").exists()

    # A later request is refined by the same training, two models up.
    later = tmp_path / "later"
    second = make_recipe(packed, "random:10", "entropy")
    after = second.forget.model_copy(update={"after": str(out / "unlearned" / "rum")})
    found = run(second.model_copy(update={"forget": after}), later, until="unlearn", device="cpu", workers=1)
    assert found["refine"]["groups"] == {"low": 5, "high": 5}
    groups = read_npz(later / "forget" / "groups.npz")
    entropy_N = Population.open(out / "original").proxies(0)["entropy"]
    assert entropy_N[groups["low"]].max() <= entropy_N[groups["high"]].min()
    third = Run(
        second.model_copy(
            update={"forget": after.model_copy(update={"after": str(later / "unlearned" / "rum")})}
        ),
        tmp_path / "third",
        None,
        "cpu",
    )
    np.testing.assert_array_equal(third.score_of("entropy"), entropy_N)


def test_refined_by_curvature_its_models_are_trained_alone(packed, ids_file, tmp_path):
    recipe = make_recipe(packed, f"ids:{ids_file}", "curvature")
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 1})})
    run(recipe, tmp_path / "run", until="refine", device="cpu", workers=1)
    assert not (tmp_path / "run" / "sweep").exists()
    groups = read_npz(tmp_path / "run" / "forget" / "groups.npz")
    score_N = conductor(tmp_path / "run").score_of("curvature")
    assert score_N[groups["low"]].max() <= score_N[groups["high"]].min()
    (tmp_path / "run" / "original" / "000" / "proxies.npz").unlink()  # of an older version, say
    with pytest.raises(DataError, match="proxies.npz: no such file; delete the folder"):
        conductor(tmp_path / "run").score_of("confidence")


def test_published_scores_have_no_margins(packed, ids_file, scored, tmp_path):
    published = tmp_path / "published.npz"
    write_npz(published, {"memorization": conductor_scores(scored[0])["memorization"]})
    sweep = {"members": MEMBERS, "scores": str(published)}
    with pytest.raises(UsageError, match="margin_memorization needs a sweep"):
        run(
            make_recipe(packed, f"ids:{ids_file}", "margin_memorization", sweep=sweep),
            tmp_path / "a",
            device="cpu",
        )
    out = tmp_path / "b"
    for name in ("original", "proxies"):
        shutil.copytree(scored[0] / name, out / name)
    recipe = make_recipe(packed, f"ids:{ids_file}", "memorization", sweep=sweep)
    summary = run(recipe, out, until="score", device="cpu", workers=1, all_scores=True)["scores"]
    assert "margin_memorization" not in summary["names"] and summary["ceiling"] is None
    assert summary["scores"][1]["cost"]["marginal_share"] is None and "published scores" in scores_table(
        summary
    )
    assert "scores" in dump_recipe(recipe)
