"""What many tests share: a small digits data set, packed and not, and a recipe that trains in a second."""

import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from shutil import which
from typing import NamedTuple

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined, hence before they are imported

from rumfast import TrainConfig, load_dataset
from rumfast.cli import main
from rumfast.cli.entry import INTERRUPTS
from rumfast.data import pack


def pytest_configure():
    """Tests of optional packages skip where those are missing; not so on CI."""
    packages = ("ffcv", "pyarrow", "mpmath", "triton", "ray", "submitit", "jsonschema")
    missing = [name for name in packages if find_spec(name) is None]
    path = f"{os.environ.get('PATH')}:/usr/sbin"
    missing += [name for name in ("slurmctld", "slurmd", "munged") if which(name, path=path) is None]
    if missing and os.environ.get("CI"):
        pytest.exit(f"CI would skip tests: {', '.join(missing)} not installed", returncode=1)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Workers train on one thread, and so must what is compared with them."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    """300 training and 100 test digits of 8×8 pixels; workers can load them too."""
    return load_dataset("digits").take(300, 100)


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """The folder of all digits, packed with 10 % of the training labels flipped."""
    pytest.importorskip("ffcv")
    folder = tmp_path_factory.mktemp("packed") / "digits"
    pack("digits", folder, label_noise=0.1, seed=1)
    return folder


@pytest.fixture
def tiny_config():
    """Two epochs of a four-channel ResNet-8 in float32."""
    return TrainConfig(arch="resnet8", width=4, epochs=2, batch_size=64, precision="fp32")


class Outcome(NamedTuple):
    """What a user sees of a command."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def rumfast(monkeypatch, capfd) -> Callable[..., Outcome]:
    """Call ``rumfast ARGUMENTS``: the real entry point, in this process."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["rumfast", *map(str, arguments)])
        before = {number: signal.getsignal(number) for number in INTERRUPTS}
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        for number, handler in before.items():
            signal.signal(number, handler)
        out, err = capfd.readouterr()
        code = end.value.code
        return Outcome(code if isinstance(code, int) else 0, out, err)

    return call


def metric(low, high, *values):
    """One metric of a plan, from its null band and its value of each seed."""
    from rumfast.evaluation import t_interval
    from rumfast.evaluation.bands import interval_dict

    interval = t_interval(values, (0, 1))
    return interval_dict(interval) | {"inside": low <= interval.mean <= high}


USUAL = ("tow", "tow_mia", "accuracy_forget", "accuracy_retain", "accuracy_test", "mia")
COMMON = {
    "name": "tiny", "seeds": 3, "oracles": 4, "notes": ["A note."],
    "dataset": {"name": "digits", "train": 200, "test": 100},
    "environment": {"gpu": None, "cpu": "a CPU", "torch": "2.11", "commit": "abc", "rumfast": "1"},
    "timing": {"worker_s": 240.0, "workers": 2},
}  # fmt: skip


@pytest.fixture
def difficulty_record():
    """Fine-tuning gets worse with memorization, SalUn better, and ES's mid level measured the lowest."""
    from rumfast.evaluation.metrics import definitions
    from rumfast.pipeline.experiments import falls
    from rumfast.pipeline.findings import weigh

    tow = {"none": (0.7, 0.7, 0.7), "finetune": (0.9, 0.7, 0.5), "salun": (0.6, 0.7, 0.8)}
    sets = []
    for axis, measured in (("memorization", (0.1, 0.5, 0.9)), ("entanglement", (30.0, 20.0, 40.0))):
        for place, level in enumerate(("low", "mid", "high")):
            metrics = {
                name: dict.fromkeys(("tow", "tow_mia"), metric(
                    0.85, 0.95, mean[place], mean[place] + 0.01, mean[place] + 0.03 * (name == "finetune")
                ))
                for name, mean in tow.items()
            }  # fmt: skip
            sets.append(
                {
                    "axis": axis, "level": level, "request": f"{axis}:{level}:20", "size": 20,
                    "memorization": 0.3, "entanglement": 25.0, axis: measured[place],
                    "bands": {key: {"low": 0.85, "high": 0.95} for key in ("tow", "tow_mia")},
                    "profile": {"memorization": {"forget": 0.123, "surrogates": 0.119}},
                    "algorithms": {name: {"steps": f"all: {name}", "cost": 0.25, "metrics": found, "tried": 4}
                                   for name, found in metrics.items()},
                    "diverged": [], "infeasible": ["influence"] if axis == "entanglement" else [],
                }
            )  # fmt: skip
    head = {
        "schema": "rumfast/difficulty/1",
        "size": 20,
        "budget_epochs": 5.0,
        "metrics": definitions(USUAL),
    }
    return COMMON | head | {"sets": sets} | weigh(list(falls(sets)))


@pytest.fixture
def rum_record():
    """RUM^F clearly beats fine-tuning at once, shuffle beats nothing, and the order is left open."""
    from rumfast.evaluation.metrics import definitions
    from rumfast.pipeline.experiment_plans import claims
    from rumfast.pipeline.findings import weigh

    tow = {
        "none": (0.5, 0.5, 0.5),
        "finetune": (0.70, 0.72, 0.71),
        "finetune+rum-f": (0.80, 0.83, 0.81),
        "finetune+shuffle": (0.80, 0.83, 0.81),
        "rum": (0.85, 0.80, 0.90),
        "rum+reversed": (0.80, 0.85, 0.87),
        "auto": (0.92, 0.95, 0.93),
    }
    known = definitions(USUAL)
    plans = [
        {
            "name": name, "steps": f"all: {name}", "cost": 0.25, "tried": 40 if name == "auto" else 4,
            "metrics": {key: metric(0.9, 1.0, *values) for key in known},
        }
        for name, values in tow.items()
    ]  # fmt: skip
    summary = COMMON | {
        "schema": "rumfast/rum/1", "forget": {"size": 30, "request": "memorization:mixed:30"},
        "metrics": known, "bands": {key: {"low": 0.9, "high": 1.0} for key in known},
        "plans": plans, "diverged": ["salun"], "infeasible": [],
        "profile": {"distance": {"forget": 2.5, "surrogates": 2.75}},
    }  # fmt: skip
    return summary | weigh(list(claims(summary, ("finetune", "salun"))))


AUDITS = {  # label, range, better, membership, null band, value of each population of AUDITED
    "tow": ("ToW", (0, 1), "higher", False, (0.91, 0.97), (0.94, 0.55, 0.93, 0.72, 0.3)),
    "accuracy_forget": (
        "forget accuracy", (0, 1), "oracle", False, (0.5, 0.58), (0.54, 1.0, 0.56, 0.75, 0.1)
    ),
    "mia": ("MIA", (0, 1), "oracle", True, (0.4, 0.5), (0.45, 0.43, 0.44, 0.42, 0.0)),
    "klom_forget": ("KLoM", (0, None), "lower", False, (0.3, 0.5), (0.4, 8.25, 0.505, 2.5, 11.24)),
    "u_lira_auc": ("U-LiRA AUC", (0, 1), "oracle", True, (0.46, 0.54), (0.5, 0.99, 0.52, 0.81, 1.0)),
    "relearning": ("relearning", (0, None), "oracle", False, (28.0, 36.0), (31.0, 0.0, 33.0, 12.0, 140.0)),
}  # fmt: skip
AUDITED = {
    "held-out": "oracle",
    "none": "original",
    "salun": "plan",
    "finetune": "plan",
    "constant": "control",
}


def audit_finding(metric, value):
    """A value ± 2 % of the middle of its null band, and where that lies; SVC-MIA has no power here."""
    _, _, better, _, (least, most), _ = AUDITS[metric]
    half = 0.01 * (least + most)
    low, high = value - half, value + half
    under, over = better != "lower" and value < least, better != "higher" and value > most
    apart = (under and high < least) or (over and low > most)
    verdict = "outside" if apart else "cannot tell" if under or over else "inside"
    return {
        "value": value, "low": low, "high": high,
        "null": {"mean": (least + most) / 2, "low": least, "high": most},
        "verdict": "no power" if (metric, verdict) == ("mia", "inside") else verdict,
        "needed": 250 if verdict == "cannot tell" else None,
    }  # fmt: skip


def audited_model(place, name, kind):
    """One population of an audit with its findings and the verdict that follows from them."""
    findings = {metric: audit_finding(metric, spec[-1][place]) for metric, spec in AUDITS.items()}
    utility = 0.11 if kind == "control" else 1.0
    outside = [AUDITS[metric][0] for metric, one in findings.items() if one["verdict"] == "outside"]
    undecided = any(one["verdict"] == "cannot tell" for one in findings.values())
    return {
        "name": name, "kind": kind, "steps": f"all: {name}", "cost": 0.25, "findings": findings,
        "utility": {"value": utility, "least": 0.9, "passed": utility >= 0.9},
        "verdict": "fail" if outside else "cannot tell" if undecided else "pass",
        "reasons": [f"{label} is outside the band of retrained models" for label in outside],
    }  # fmt: skip


def audited_parts(place):
    """Forget accuracy by class, falling, and by memorization level."""
    mean = AUDITS["accuracy_forget"][-1][place]
    classes = {str(digit): audit_finding("accuracy_forget", mean - 0.03 * digit) for digit in range(3)}
    return {
        "class": classes,
        "level": {one: audit_finding("accuracy_forget", mean) for one in ("low", "high")},
    }


@pytest.fixture
def audit_record():
    """Oracles pass, originals, fine-tuning and the constant are caught, KLoM leaves SalUn undecided."""
    one, level = {"mean": 1.0, "low": 1.0, "high": 1.0}, {"mean": -0.2, "low": -0.5, "high": 0.1}
    agree, against = {"mean": 0.6, "low": 0.2, "high": 0.9}, {"mean": -0.7, "low": -0.9, "high": -0.4}
    fpr, tops = [0.0, 0.001, 0.01, 0.1, 1.0], (0.1, 0.9, 0.2, 0.4, 1.0)
    margins = {
        "original": [8.0, 9.0, 10.0], "oracle": [-2.0, -1.0, 0.0, 1.0], "salun": [-1.5, -0.5],
        "finetune": [3.0, 4.0, 5.0],
    }  # fmt: skip
    return COMMON | {
        "schema": "rumfast/audit/1", "forget": {"size": 30, "request": "memorization:high:30"},
        "population": 64, "held_out": 20, "splits": 200, "level": 0.05,
        "metrics": {
            key: {"label": label, "definition": f"what {label} is", "source": "a paper", "better": better,
                  "range": list(ends), "kind": "pair", "membership": membership}
            for key, (label, ends, better, membership, _, _) in AUDITS.items()
        },
        "models": [audited_model(place, *each) for place, each in enumerate(AUDITED.items())],
        "power": {key: key != "mia" for key in AUDITS},
        "false_alarms": {"draws": 20, "counts": dict.fromkeys(AUDITS, 0) | {"tow": 1, "u_lira_auc": 1},
                         "alarmed": 1, "rate": 0.05, "by_chance": 0.05},
        "ranking": {"metrics": ["tow", "klom_forget", "u_lira_auc"], "models": ["none", "salun", "finetune"],
                    "tau": [[one, agree, level], [agree, one, against], [level, against, one]]},
        "breakdown": {name: audited_parts(place) for place, name in enumerate(AUDITED)},
        "roc": {name: {attack: {"fpr": fpr, "tpr": [0.0, top / 4, top / 2, top, 1.0]}
                       for attack, top in (("u_lira", tops[place]), ("rmia", 0.1))}
                for place, name in enumerate(AUDITED)},
        "examples": [{"id": 7, "memorization": 0.93, "label": "3", "margins": margins}],
        "relearning": {"oracle": [30.0, 32.0], "fresh": [80.0, 90.0, 100.0]},
        "timing": {"audit_s": 42.0, "worker_s": 240.0, "workers": 2},
    }  # fmt: skip
