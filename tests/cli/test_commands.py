"""Commands: results on stdout, exit codes, help without torch."""

import json
import subprocess
import sys

import pytest

from rumfast.store import read_npz, write_npz
from rumfast.sweeps import Population

TINY = """
plans = [{ name = "none", steps = "none" }, { name = "tune", steps = "each: finetune(epochs=1)" }]
[data]
path = "digits"
train_examples = 100
test_examples = 50
[train]
arch = "resnet8"
width = 4
epochs = 1
precision = "fp32"
[sweep]
members = 12
include = 0.5
[forget]
request = "memorization:mixed:12"
[evaluate]
seeds = 2
oracles = 3
"""


def test_help_does_not_import_torch():
    code = (
        "import sys; sys.argv = ['rumfast', '--help']\n"
        "from rumfast.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_doctor_prints_one_json_object(rumfast):
    outcome = rumfast("doctor", "--json")
    record = json.loads(outcome.stdout)
    assert outcome.code == 0 and record["schema"] == "rumfast/doctor/1"
    assert {"device", "precision", "ffcv"} <= {check["what"] for check in record["checks"]}


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["run", "nosuch.toml", "--out", "x"], 2, "digits.toml"),
        (["run", "--out", "x"], 2, "no run yet"),
        (["run", "digits.toml"], 2, "--out"),
        (["run", "digits.toml", "--out", "x", "--device", "tpu"], 2, "tpu"),
        (["sweep", "run", "digits.toml", "--out", "x", "--engine", "mainframe"], 2, "mainframe"),
        (["run", "tiny.toml", "--out", "x", "--engine", "ray(gpu=1)"], 2, "ray has no option gpu"),
        (["sweep", "run", "tiny.toml", "--out", "x", "--detach"], 2, "only Slurm trains on"),
        (["sweep", "run", "tiny.toml", "--out", "x", "--margins", "fp8"], 2, "expected fp16 or fp32"),
        (["score", "tiny.toml", "--out", "x", "--scores", "none.npz"], 4, "none.npz: no such file"),
        (["score", "tiny.toml", "--out", "x", "--export", "scores.doc"], 2, "ends in .npz"),
        (["run", "tiny.toml", "--out", "x", "--forget", "colour:red"], 2, "colour:red"),
        (["run", "tiny.toml", "--out", "x", "--forget", "memorization:high:101"], 2, "101"),
        (["data", "pack", "floppy:A", "--out", "x"], 2, "floppy:A"),
        (["data", "info", "nowhere"], 4, "nowhere"),
        (["data", "verify", "nowhere"], 4, "nowhere"),
        (["nosuchcommand"], 2, "nosuchcommand"),
    ],
)
def test_errors_end_with_their_exit_code_and_name_the_cause(
    arguments, code, expected, rumfast, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    outcome = rumfast(*arguments)
    assert outcome.code == code, outcome.stderr
    assert expected in outcome.stderr and "Traceback" not in outcome.stderr
    assert not list(tmp_path.glob("x/*/*"))  # nothing was trained


def test_plan_typos_are_refused_before_training(rumfast, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'plans = [{ name = "a", steps = "low: none > mid: finetune" }]\n'
        '[data]\npath = "digits"\n[forget]\nrequest = "memorization:mixed:30"\n'
    )
    outcome = rumfast("run", recipe, "--out", tmp_path / "run")
    assert outcome.code == 2 and "low, mid, high" in outcome.stderr
    assert not (tmp_path / "run" / "original").exists()


@pytest.mark.faults
def test_a_sweep_that_diverges_says_so_and_ends_with_6(rumfast, tmp_path):
    (tmp_path / "wild.toml").write_text(
        TINY.replace("epochs = 1", "epochs = 2\nbatch_size = 16\nlr = 1e30").replace("12", "4")
    )
    outcome = rumfast(
        "sweep", "run", tmp_path / "wild.toml", "--out", tmp_path / "run", "--workers", 1, "--json"
    )
    assert json.loads(outcome.stdout)["diverged"] == 4
    assert outcome.code == 6 and "4 of 4 members diverged, more than 2%; lower train.lr" in outcome.stderr


def test_margins_and_events_are_stored_as_asked_for(rumfast, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    run = ("sweep", "run", "--out", tmp_path / "run", "--members", "0:1", "--workers", 1)
    assert rumfast(*run, tmp_path / "tiny.toml", "--margins", "fp32", "--events").code == 0
    record = Population.open(tmp_path / "run" / "sweep").record(0)
    assert record.margin_N.dtype == "float32" and record.learned_EN.shape == (1, 100)
    changed = rumfast(*run, "--margins", "fp16")
    assert changed.code == 3 and "sweep.margins: there fp32, here fp16" in changed.stderr


@pytest.mark.slow
def test_sweep_verbs_and_a_second_request(rumfast, tmp_path):
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(TINY)
    first, second = tmp_path / "first", tmp_path / "second"

    plan = json.loads(
        rumfast("sweep", "plan", recipe, "--out", first, "--usd-per-gpu-hour", 2, "--json").stdout
    )
    assert plan["members"] == 12 and plan["members_per_hour"] > 0 and plan["usd"] > 0
    assert plan["standard_error"] == pytest.approx((0.25 / 6 + 0.25 / 6) ** 0.5)

    partial = json.loads(rumfast("sweep", "run", "--out", first, "--members", "0:6", "--json").stdout)
    assert partial["done"] == 6 and partial["missing"] == 6
    assert plan["wall_hours_cluster"] == pytest.approx(plan["device_hours"] / plan["slots"])
    scores = tmp_path / "scores.npz"
    summary = json.loads(rumfast("score", "--out", first, "--export", scores, "--json").stdout)
    assert -1 <= summary["split_half"]["spearman"] <= 1
    assert summary["worst_standard_error"] == pytest.approx(plan["standard_error"])
    status = json.loads(rumfast("sweep", "status", "--out", first, "--json").stdout)
    assert (status["done"], status["missing"], status["running"], status["failed"]) == (12, 0, 0, 0)
    assert status["eta_hours"] == 0 and status["device_hours"] > 0

    published = tmp_path / "published"
    assert rumfast("refine", recipe, "--out", published, "--scores", scores).code == 0
    assert not (published / "sweep").exists()
    assert rumfast("refine", "--out", first).code == 0
    chosen = [read_npz(out / "forget" / "split.npz")["forget"].tolist() for out in (first, published)]
    assert chosen[0] == chosen[1] and len(chosen[0]) == 12
    arrays = read_npz(scores)
    arrays["label"][:3] += 1
    write_npz(tmp_path / "other.npz", arrays)
    refused = rumfast("refine", recipe, "--out", tmp_path / "other", "--scores", tmp_path / "other.npz")
    assert refused.code == 3 and "3 labels differ" in refused.stderr

    damaged = first / "sweep" / "members" / "000003.npz"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    found = rumfast("sweep", "verify", "--out", first)
    assert found.code == 4 and "1 records are damaged" in found.stderr
    assert rumfast("sweep", "verify", "--out", first, "--repair").code == 0
    assert not damaged.exists()
    assert rumfast("report", "--out", first).code == 0
    assert damaged.exists() and "<html" in (first / "report" / "index.html").read_text()
    assert json.loads(rumfast("sweep", "compact", "--out", first, "--json").stdout)["shape"] == [12, 100]

    done = rumfast(
        "evaluate",
        recipe,
        "--out",
        second,
        "--from",
        first / "unlearned" / "tune",
        "--forget",
        "random:10",
        "--json",
    )
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["forget"]["excluded"] == 12

    other = rumfast("run", recipe, "--out", first, "--forget", "class:1")
    assert other.code == 3 and "forget.request" in other.stderr
