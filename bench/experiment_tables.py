"""Markdown tables of the experiments: levels and plans, differences, and what they say of each claim."""

from collections.abc import Callable, Mapping
from typing import Any

from rumfast.bench.cells import DIFFERENCE, interval_text, metric_cell
from rumfast.bench.machine import taken
from rumfast.reporting.experiment import FAILED, claim_text

Record = Mapping[str, Any]
VERDICTS = ("held", "contradicted", "undecided")


def difficulty_table(metric: str) -> Callable[[Record], str]:
    """Table of one metric: algorithms by forget sets, then the null bands; bold where a mean lies inside."""

    def table(record: Record) -> str:
        sets = record["sets"]
        titles = [f"{each['axis']} {each['level']}" for each in sets]
        label = record["metrics"][metric]["label"]
        lines = [f"| {label} | {' | '.join(titles)} |", "|---|" + "---:|" * len(sets)]
        measured = (
            ("memorization, mean", [f"{each['memorization']:.2f}" for each in sets]),
            ("ES", [f"{each['entanglement']:.3g}" for each in sets]),
        )
        lines += [f"| *{name}* | {' | '.join(cells)} |" for name, cells in measured]
        for name in dict.fromkeys(name for each in sets for name in each["algorithms"]):
            plans = [each["algorithms"].get(name) for each in sets]
            cells = ["" if plan is None else metric_cell(plan["metrics"][metric]) for plan in plans]
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
        bands = [each["bands"][metric] for each in sets]
        lines.append(f"| *retrained* | {' | '.join(_band(band) for band in bands)} |")
        size, train = record["size"], record["dataset"]["train"]
        scene = f"{size} of {train} training examples forgotten, {record['budget_epochs']:g} passes per plan"
        return _page([*lines, "", *_left_out(record), f"{scene}; {_setting(record)}"])

    return table


def plans_table(record: Record) -> str:
    """Plans of at most one budget with all metrics, then the null band; bold where a mean lies inside it."""
    metrics = list(record["metrics"])
    labels = [record["metrics"][metric]["label"] for metric in metrics]
    lines = [f"| plan | {' | '.join(labels)} | cost | tried |", "|---|" + "---:|" * (len(labels) + 2)]
    for plan in record["plans"]:
        cells = [metric_cell(plan["metrics"][metric]) for metric in metrics]
        lines.append(f"| `{plan['name']}` | {' | '.join(cells)} | {plan['cost']:.0%} | {plan['tried']} |")
    bands = [_band(record["bands"][metric]) for metric in metrics]
    lines.append(f"| *retrained* | {' | '.join(bands)} | 100% | |")
    steps = {plan["name"]: plan["steps"] for plan in record["plans"]}
    chosen = [f"`{name}` is `{steps[name]}`" for name in ("rum", "auto") if name in steps]
    scene = (
        f"{record['forget']['size']} of {record['dataset']['train']} training examples forgotten; tried: the "
        "candidates that a plan was chosen from"
    )
    return _page([*lines, "", *_left_out(record), f"{'; '.join([*chosen, scene])}; {_setting(record)}"])


def differences_table(record: Record) -> str:
    """Paired differences of plans; bold where the 95 % interval excludes zero, † where all together do.

    In brackets: the candidates that each side was chosen from, where these are not as many.
    """
    metrics = list(dict.fromkeys(row["metric"] for row in record["differences"]))
    cells = {(row["one"], row["other"], row["metric"]): _difference(row) for row in record["differences"]}
    labels = [record["metrics"].get(metric, {"label": "mean of both"})["label"] for metric in metrics]
    lines = [f"| difference | {' | '.join(labels)} |", "|---|" + "---:|" * len(metrics)]
    tried = {(row["one"], row["other"]): row["tried"] for row in record["differences"]}
    for pair, counts in tried.items():
        found = [cells.get((*pair, metric), "") for metric in metrics]
        marks = [f" ({count})" for count in counts] if counts[0] != counts[1] else ["", ""]
        sides = [f"`{name}`{mark}" for name, mark in zip(pair, marks, strict=True)]
        lines.append(f"| {' − '.join(sides)} | {' | '.join(found)} |")
    return _page([*lines, "", _chance(record)])


def findings_table(record: Record) -> str:
    """What the intervals say of each claim; † counts those that hold for all intervals together."""
    lines = [f"| claim | {' | '.join(VERDICTS)} | verdict |", "|---|" + "---|" * (len(VERDICTS) + 1)]
    for finding in record["findings"]:
        cells = []
        for verdict in VERDICTS:
            names, firm = finding[verdict], finding["simultaneous"].get(verdict, [])
            marked = [f"`{name}`{' †' if name in firm else ''}" for name in names]
            cells.append(f"{len(names)}: {', '.join(marked)}" if names else "0")
        lines.append(f"| {claim_text(finding)} | {' | '.join(cells)} | {finding['verdict']} |")
    return _page([*lines, "", _chance(record)])


def _page(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def _band(band: Mapping[str, Any]) -> str:
    return f"{band['low']:.3f} – {band['high']:.3f}"


def _difference(row: Mapping[str, Any]) -> str:
    text = interval_text(row["interval"], DIFFERENCE, "+.3f", bold=row["verdict"] != "undecided")
    return f"{text}{'' if row['simultaneous'] == 'undecided' else ' †'}"


def _left_out(record: Record) -> list[str]:
    """One line on what is missing from the table, and why."""
    parts = []
    for each in record.get("sets", [record]):
        where = f" at {each['axis']} {each['level']}" if "axis" in each else ""
        for key, why in (("diverged", "diverged"), ("infeasible", FAILED)):
            if names := each.get(key):
                parts.append(f"{', '.join(f'`{name}`' for name in names)}{where} {why}")
    return [f"Left out: {'; '.join(parts)}.", ""] if parts else []


def _chance(record: Record) -> str:
    return (
        f"{record['intervals']} intervals at 95 %: if nothing differed, about "
        f"{record['expected_by_chance']:.1f} would exclude zero all the same. † holds for all of them "
        f"together (Bonferroni). Paired over {record['seeds']} seeds."
    )


def _setting(record: Record) -> str:
    timing = record["timing"]
    minutes = timing["worker_s"] / timing["workers"] / 60
    return (
        f"{record['seeds']} seeds, {record['oracles']} oracles; {minutes:.0f} minutes of training by "
        f"{timing['workers']} workers, including search and sweep; {taken(record)}"
    )
