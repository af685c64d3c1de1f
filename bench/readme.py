"""Write the measured tables of README.md and docs: ``python -m rumfast.bench.readme [--check]``.

A block ``<!-- record: FILE -->`` … ``<!-- end -->`` is replaced by the table of ``bench/results/FILE``, and
``<!-- record: FILE PART -->`` by one of its parts: ``kernels`` or ``others`` (suites), ``shortlist`` (of
those, without our own), ``epochs`` (of training, by phase), ``sweep`` (of a run), ``imagenet`` (worked out
from reductions), ``mia``, ``differences`` and ``findings`` (of experiments), ``all``, ``metrics``,
``alarms`` and ``ranking`` (of an audit).
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rumfast.bench import audit_tables, experiment_tables, score_tables, sweep_tables
from rumfast.bench.accuracy import accuracy_table
from rumfast.bench.cells import DIFFERENCE, interval_text, metric_cell
from rumfast.bench.held_out import held_out_table
from rumfast.bench.machine import taken
from rumfast.bench.report import OWN, epochs_table
from rumfast.errors import MismatchError
from rumfast.evaluation import t_interval
from rumfast.store import read_json, write_text

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- record: (?P<file>[\w./-]+)(?: (?P<part>\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)
HEADLINE = ("tow", "tow_mia")
SHORTLIST = ("loader resident", "loader streaming", "train epoch", "train epoch, cifar10-small", "sweep")
PAIRS = (
    ("rum", "salun"),
    ("rum", "finetune"),
    ("rum", "neggrad+"),
    ("rum+final", "rum"),
    ("salun+rum-f", "salun"),
    ("salun+rum-f", "salun+shuffle"),
    ("rum", "salun+rum-f"),
    ("rum", "salun+shuffle"),
    ("finetune+rum-f", "finetune"),
    ("neggrad+rum-f", "neggrad+"),
)
METRICS = ("tow", "tow_mia", "accuracy_forget", "accuracy_retain", "accuracy_test", "mia")


def render(text: str, results: Path) -> str:
    """README text with every block's table made again from its record."""

    def replacement(match: re.Match[str]) -> str:
        return match[1] + _table(read_json(results / match["file"], sealed=False), match["part"]) + match[4]

    return BLOCK.sub(replacement, text)


def _table(record: Mapping[str, Any], part: str | None) -> str:
    kind = record["schema"].split("/")[1]
    if kind == "bench" and part == "epochs":
        return f"{epochs_table(record)}\n{_machine(record)}\n"
    if kind == "bench":
        return kernels_table(record) if part == "kernels" else throughput_table(record, part)
    return TABLES[kind, part](record)


def throughput_table(record: Mapping[str, Any], part: str | None = None) -> str:
    """Markdown table of a benchmark record: the ratio to each peer, p20 to p80 behind it."""
    rows = ["| case | peer | ratio |", "|---|---|---:|"]
    for case in record["cases"]:
        chosen = {"others": case["suite"] != "kernels", "shortlist": case["name"] in SHORTLIST}
        if part is None or chosen[part]:
            peers = [peer for peer in case["ratio"] if part != "shortlist" or not peer.startswith(OWN)]
            rows += [f"| {case['name']} | {peer} | {_ratio(case, peer)} |" for peer in peers]
    return "\n".join([*rows, "", _machine(record)]) + "\n"


def kernels_table(record: Mapping[str, Any]) -> str:
    """Markdown table of the kernels' cases: ratio to each peer, errors against float64, and peak memory."""
    rows = [
        "| case | ms | peer | ratio | error | its error | peak MB | its peak |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for case in record["cases"]:
        error, peak = case["notes"].get("error", {}), case["notes"].get("peak MB", {})
        for peer, times in case["peers"].items() if case["suite"] == "kernels" else ():
            ratio = times["missing"] if "missing" in times else _ratio(case, peer)
            cells = [case["name"], f"{case['ours']['p50']:.3g}", peer, ratio]
            cells += [f"{error[variant]:.0e}" if variant in error else "" for variant in ("ours", peer)]
            cells += [f"{peak[variant]:.0f}" if variant in peak else "" for variant in ("ours", peer)]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", _machine(record)]) + "\n"


def _ratio(case: Mapping[str, Any], peer: str) -> str:
    low, high = case["spread"][peer]
    return f"{case['ratio'][peer]:.2f} ({low:.2f}–{high:.2f})"


def _machine(record: Mapping[str, Any]) -> str:
    return f"At most {record['threads']} threads; shapes and times are in the record; {taken(record)}"


def builds_table(record: Mapping[str, Any]) -> str:
    """Markdown table of the newest Triton's builds: registers per thread and shared memory, by target."""
    versions = sorted(record["builds"], key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    built = record["builds"][versions[-1]]
    targets = list(dict.fromkeys(row["target"] for row in built))
    texts = {
        (row["kernel"], row["target"]): f"{row['registers']}, {row['shared'] / 1024:.3g} KiB" for row in built
    }
    rows = [f"| kernel | {' | '.join(targets)} |", "|---|" + "---:|" * len(targets)]
    for kernel in dict.fromkeys(row["kernel"] for row in built):
        rows.append(f"| {kernel} | {' | '.join(texts.get((kernel, target), '–') for target in targets)} |")
    spilled = sum(row["spills"] for rows in record["builds"].values() for row in rows)
    note = f"Triton {versions[-1]}; {spilled} bytes spilled in all, with Triton {' and '.join(versions)}."
    return "\n".join([*rows, "", note]) + "\n"


def evaluation_table(record: Mapping[str, Any]) -> str:
    """Markdown table of an evaluation: plans, then the null band; bold where a mean lies inside it."""
    labels = [record["metrics"][metric]["label"] for metric in METRICS]
    lines = [f"| plan | {' | '.join(labels)} | cost |", "|---|" + "---:|" * (len(labels) + 1)]
    for plan in record["plans"]:
        cells = [metric_cell(plan["metrics"][metric]) for metric in METRICS]
        lines.append(f"| `{plan['name']}` | {' | '.join(cells)} | {plan['cost']:.0%} |")
    bands = [
        f"{record['bands'][metric]['low']:.3f} – {record['bands'][metric]['high']:.3f}" for metric in METRICS
    ]
    lines.append(f"| *retrained* | {' | '.join(bands)} | 100% |")
    lines += ["", *_differences(record)]
    forgotten, train, sweep = record["forget"]["size"], record["dataset"]["train"], record["sweep"]
    retrainings = sweep["members"] * sweep["include"] * train / (train - forgotten)
    lines += [
        "",
        f"{forgotten} of {train} training examples forgotten; {record['seeds']} seeds, {record['oracles']} "
        f"oracles; {sweep['members']} sweep members, as much training as {retrainings:.0f} retrainings; "
        f"{taken(record)}",
    ]
    return "\n".join(lines) + "\n"


def _differences(record: Mapping[str, Any]) -> list[str]:
    """Rows of paired differences between plans; bold where the 95 % t-interval over seeds excludes zero."""
    values = {
        plan["name"]: {metric: np.array(plan["metrics"][metric]["values"]) for metric in HEADLINE}
        for plan in record["plans"]
    }
    rows = ["| difference | ToW | ToW-MIA |", "|---|---:|---:|"]
    for one, other in PAIRS:
        if one in values and other in values:
            cells = [_difference(values[one][metric] - values[other][metric]) for metric in HEADLINE]
            rows.append(f"| `{one}` − `{other}` | {' | '.join(cells)} |")
    return rows


def _difference(difference: np.ndarray) -> str:
    found = t_interval(difference.tolist(), DIFFERENCE)
    clear = found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
    return interval_text(found._asdict(), DIFFERENCE, "+.3f", bold=clear)


TABLES: dict[tuple[str, str | None], Callable[[Mapping[str, Any]], str]] = {
    ("accuracy", None): accuracy_table,
    ("audit", None): audit_tables.audit_matrix,
    ("audit", "alarms"): audit_tables.audit_alarms,
    ("audit", "all"): audit_tables.audit_all,
    ("audit", "metrics"): audit_tables.audit_metrics,
    ("audit", "ranking"): audit_tables.audit_ranking,
    ("audits", None): audit_tables.audit_speed,
    ("builds", None): builds_table,
    ("difficulty", None): experiment_tables.difficulty_table("tow"),
    ("difficulty", "mia"): experiment_tables.difficulty_table("tow_mia"),
    ("difficulty", "findings"): experiment_tables.findings_table,
    ("evaluation", None): evaluation_table,
    ("evaluation", "sweep"): sweep_tables.sweep_table,
    ("engines", None): sweep_tables.engines_table,
    ("held-out", None): held_out_table,
    ("reduce", None): sweep_tables.reduce_table,
    ("reduce", "imagenet"): sweep_tables.imagenet_table,
    ("scale", None): sweep_tables.scale_table,
    ("scores", None): score_tables.scores_table,
    ("scores", "classes"): score_tables.classes_table,
    ("rum", None): experiment_tables.plans_table,
    ("rum", "differences"): experiment_tables.differences_table,
    ("rum", "findings"): experiment_tables.findings_table,
    ("sweep-plan", None): sweep_tables.plan_table,
}


def main() -> None:
    """Rewrite the pages, or with ``--check`` fail if one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        made = render(text, ROOT / "bench" / "results")
        if check and made != text:
            raise MismatchError(f"{page.name} differs from bench/results; run make readme")
        if not check:
            write_text(page, made)


if __name__ == "__main__":
    try:
        main()
    except MismatchError as error:
        sys.exit(str(error))
