"""A realistic summary of a run on the digits, with the images and scores that go beside it."""

import html.parser

import numpy as np
import pytest

import rumfast.evaluation
from rumfast.evaluation import NullBand
from rumfast.evaluation.verdicts import conclude, judge, without_power

METRICS = {
    "tow": ("ToW", "Tug-of-war: the product over forget, retain and test set of one minus the accuracy gap."),
    "tow_mia": ("ToW-MIA", "As ToW, with the membership attack's gap in place of the forget accuracy's."),
    "accuracy_forget": ("Forget accuracy", "Accuracy on the forget set."),
    "accuracy_retain": ("Retain accuracy", "Accuracy on the retain set."),
    "accuracy_test": ("Test accuracy", "Accuracy on the test set."),
    "mia": ("MIA", "Share of the forget set that the attack calls non-member."),
}
BANDS = {
    "tow": (0.93, 0.99), "tow_mia": (0.9, 0.98), "accuracy_forget": (0.51, 0.57),
    "accuracy_retain": (0.985, 1.0), "accuracy_test": (0.935, 0.956), "mia": (0.4, 0.49),
}  # fmt: skip
PLANS = [  # name, steps, cost, wall seconds, one mean per metric in the order above
    ("none", "all: none", 0.0, 0.0, (0.531, 0.512, 1.0, 1.0, 0.948, 0.02)),
    ("finetune", "all: finetune(lr=0.1)", 0.31, 3.1, (0.784, 0.77, 0.741, 0.998, 0.944, 0.26)),
    ("neggrad_plus", "all: neggrad_plus(epochs=2)", 0.27, 2.7, (0.87, 0.842, 0.62, 0.972, 0.927, 0.33)),
    ("salun", "all: salun", 0.34, 3.4, (0.915, 0.88, 0.586, 0.984, 0.938, 0.36)),
    (
        "rum",
        "low: none > mid: finetune(lr=0.1) > high: salun",
        0.29,
        2.9,
        (0.96649, 0.941, 0.551, 0.9962, 0.9465, 0.44),
    ),
    (
        "rum-shuffle",
        "low: none > mid: finetune > high: salun",
        0.29,
        2.9,
        (0.832, 0.8, 0.69, 0.991, 0.94, 0.3),
    ),
    ("retrain", "all: retrain", 1.0, 10.1, (0.97, 0.95, 0.54, 0.999, 0.945, 0.45)),
]


def interval(mean, half):
    values = [mean - half / 3, mean, mean + half / 3]
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": values}


def cut(known):
    """An interval of a share."""
    return known | {"low": max(0.0, known["low"]), "high": min(1.0, known["high"])}


def judge_all(result):
    """Give plans and original the verdicts that an evaluation would, from their numbers."""
    known = {name: rumfast.evaluation.METRICS[name] for name in result["bands"]}

    def findings(metrics):
        return {
            name: judge(
                metrics[name]["mean"], metrics[name]["low"], metrics[name]["high"],
                NullBand(band["mean"], band["low"], band["high"], 5), known[name],
            )
            for name, band in result["bands"].items()
        }  # fmt: skip

    original = findings(result["reference"]["original"])
    result["power"] = {
        name: {"power": one.verdict == "outside", "needed": None if one.verdict == "outside" else 12}
        for name, one in original.items()
    }
    for plan in (*result["plans"], {"metrics": result["reference"]["original"]}):
        found = without_power(findings(plan["metrics"]), original, dict.fromkeys(original))
        for name, one in found.items():
            plan["metrics"][name] |= {"verdict": one.verdict, "over_forgotten": one.over_forgotten}
        verdict, reasons = conclude(found, known)
        plan |= {"verdict": verdict, "reasons": list(reasons)}
    return result


def make_plan(name, steps, cost, wall, means):
    metrics = {}
    for key, mean in zip(METRICS, means, strict=True):
        low, high = BANDS[key]
        metrics[key] = cut(interval(mean, 0.012)) | {"inside": low <= mean <= high}
    return {
        "name": name, "steps": steps, "retain": "remaining", "examples": int(cost * 42000),
        "cost": interval(cost, 0.02), "metrics": metrics, "wall_s": interval(wall, 0.3),
    }  # fmt: skip


def make_result():
    accuracies = ("accuracy_forget", "accuracy_retain", "accuracy_test", "mia")
    result = {
        "schema": "rumfast/evaluation/1",
        "name": "digits",
        "dataset": {
            "name": "digits", "source": "scikit-learn load_digits", "fingerprint": "9f3ac1" * 8,
            "train": 1400, "test": 397, "classes": [str(digit) for digit in range(10)],
            "shape": [8, 8, 3], "flipped": 140,
        },
        "train": {"arch": "digits", "epochs": 30, "batch_size": 64, "lr": 0.1, "momentum": 0.9,
                  "weight_decay": 5e-4, "milestones": [15, 20], "amp": False, "seed": 0},
        "sweep": {"members": 120, "include": 0.7, "diverged": 0, "median_standard_error": 0.08,
                  "wall_s": 120.0},
        "forget": {
            "request": "memorization:mixed:150", "size": 150, "entanglement": 40.1, "flipped": 47,
            "neighbour_overlap": 0.91, "mmd2": 0.0123, "mean_distance": 8.5,
            "groups": [
                {"name": "low", "size": 50, "memorization_mean": 0.012, "entanglement": 31.2},
                {"name": "mid", "size": 50, "memorization_mean": 0.487, "entanglement": 36.8},
                {"name": "high", "size": 50, "memorization_mean": 0.961, "entanglement": 52.4},
            ],
        },
        "seeds": 3, "oracles": 5, "budget_examples": 42000, "retain_mode": "remaining",
        "metrics": {key: {"label": label, "range": [0, 1], "better": "higher" if "tow" in key else None,
                          "forgotten": {"accuracy_forget": "lower", "mia": "higher"}.get(key),
                          "definition": definition} for key, (label, definition) in METRICS.items()},
        "bands": {key: {"low": low, "high": high, "mean": (low + high) / 2, "n": 5}
                  for key, (low, high) in BANDS.items()},
        "plans": [make_plan(*plan) for plan in PLANS],
        "reference": {
            "original": {key: cut(interval(mean, 0.004)) for key, mean in
                         zip(METRICS, (0.531, 0.512, 1.0, 1.0, 0.948, 0.02), strict=True)},
            "oracle": {key: cut(interval(mean, 0.01)) for key, mean in
                       zip(accuracies, (0.541, 0.999, 0.946, 0.45), strict=True)}
                      | {"wall_s": interval(10.1, 0.2)},
        },
        "environment": {"rumfast": "0.1.0", "python": "3.11", "torch": "2.11", "hardware": "CPU, 2 cores",
                        "commit": "0123abc"},
        "command": "rumfast run recipe.toml --out runs/a",
        "config_toml": 'name = "digits"\n\n[train]\nepochs = 30\n',
    }  # fmt: skip
    return judge_all(result)


def make_images():
    rng = np.random.default_rng(0)
    score_N = np.concatenate([rng.beta(0.4, 12, 1200), rng.uniform(0, 1, 60), rng.beta(14, 1.2, 140)])
    flipped_mask_N = np.arange(1400) >= 1260
    forget_mask_N = np.isin(np.arange(1400), rng.choice(1400, 90, replace=False)) | (np.arange(1400) >= 1340)
    score_N[::200] = np.nan

    def example(index, memorized):
        return {
            "id": index, "image": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), "label": str(index % 10),
            "clean_label": str((index + 3) % 10) if memorized else None, "score": 0.97 if memorized else 0.0,
            "standard_error": 0.1, "in_forget": index % 2 == 0,
        }  # fmt: skip

    return {
        "most": [example(1300 + step, True) for step in range(10)],
        "least": [example(step, False) for step in range(10)],
        "neighbours": [
            {
                "example": example(1310 + step, True),
                "nearest": [example(20 + 5 * step + i, False) | {"distance": 1.25 + i} for i in range(5)],
            }
            for step in range(2)
        ],
        "score_N": score_N, "forget_mask_N": forget_mask_N, "flipped_mask_N": flipped_mask_N,
    }  # fmt: skip


@pytest.fixture
def result():
    return make_result()


@pytest.fixture
def judge_again():
    """Gives a changed result the verdicts of its numbers."""
    return judge_all


@pytest.fixture
def images():
    return make_images()


VOID = {"meta", "img", "br", "link", "hr", "input"}


class Outline(html.parser.HTMLParser):
    """Checks that tags close in order and collects attributes, ids and visible text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture
def outline():
    """Reads a page."""
    return Outline
