"""Markdown table of how difficulty scores agree, from what ``rumfast score --all --json`` printed."""

from collections.abc import Mapping
from typing import Any

from rumfast.bench.machine import taken

Record = Mapping[str, Any]


def scores_table(record: Record) -> str:
    """Each score's rank correlation with memorization, and what it costs as a share of the sweep."""
    rows = [
        "| score | Spearman with memorization | worker seconds | of the sweep's | with its models |",
        "|---|---:|---:|---:|---:|",
    ]
    for index, row in enumerate(record["scores"]):
        cost = row["cost"]
        cells = [
            row["label"],
            "" if row["name"] == "memorization" else _spearman(record, index),
            _seconds(cost["marginal_s"]),
            _share(cost["marginal_share"]),
            _share(cost["whole_share"]),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", _setting(record)]) + "\n"


def classes_table(record: Record) -> str:
    """Each class's examples: how memorized, and the share of flipped labels."""
    rows = ["| class | examples | flipped | memorization | confidence |", "|---|---:|---:|---:|---:|"]
    for row in record["classes"]:
        mean, interval = row["means"]["memorization"], row["interval"]
        found = "–" if mean is None else f"{mean:.3f}"
        if interval is not None:
            found += f" [{interval[0]:.3f}, {interval[1]:.3f}]"
        confidence = row["means"]["confidence"]
        cells = [row["name"], f"{row['count']:,}", f"{row['flipped']:.1%}", found]
        cells.append("–" if confidence is None else f"{confidence:.3f}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", _setting(record)]) + "\n"


def _spearman(record: Record, index: int) -> str:
    rho, low, high = (record["spearman"][key][0][index] for key in ("rho", "low", "high"))
    return "–" if rho is None else f"{rho:+.3f} [{low:+.3f}, {high:+.3f}]"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _setting(record: Record) -> str:
    sweep = record["sweep"]
    members = f"{sweep['members']} sweep members" if "members" in sweep else "published scores"
    ceiling = record["ceiling"]
    bound = "" if ceiling is None else f"; the noise of this estimate bounds any score's at {ceiling:.3f}"
    return (
        f"{record['dataset']['examples']:,} examples of {record['name']}, {members}{bound}. 95 % intervals: "
        f"bootstrap over examples; {taken(record)}"
    )
