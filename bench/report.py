"""Read records: compare two of them, or print one as a Markdown table. Pure, and without torch."""

from collections.abc import Mapping
from typing import Any

from rumfast.errors import DataError, UsageError

SCHEMA = "rumfast/bench/1"
Record = Mapping[str, Any]


def compare(record: Record, previous: Record, tolerance: float = 0.2) -> list[str]:
    """A message with both values for each ratio that fell by more than ``tolerance`` (a share).

    Cases are matched by name, shape and dtype, ratios by peer. What only one record holds is not compared.

    Raises:
        DataError: a record is not of this schema.
        UsageError: the records were taken on different devices, or have no ratio in common.
    """
    for name, one in (("record", record), ("previous", previous)):
        if one.get("schema") != SCHEMA:
            raise DataError(f"{name}: schema is {one.get('schema')!r}, expected {SCHEMA!r}")
    if record["device"] != previous["device"]:
        raise UsageError(
            f"compare: the earlier record was taken on {previous['device']}, this one on "
            f"{record['device']}; give one taken on the same kind of device"
        )
    now, before = _ratios(record), _ratios(previous)
    common = [key for key in before if key in now]
    if not common:
        raise UsageError("compare: the records share no case; take both with the same suite and --quick")
    return [
        f"{case} {shape} {dtype} against {peer}: {now[key]:.3g}× now, {before[key]:.3g}× before "
        f"({now[key] / before[key] - 1:+.0%})"
        for key in common
        for case, shape, dtype, peer in [key]
        if now[key] < (1 - tolerance) * before[key]
    ]


def _ratios(record: Record) -> dict[tuple[str, str, str, str], float]:
    return {
        (case["name"], case["shape"], case["dtype"], peer): ratio
        for case in record["cases"]
        for peer, ratio in case["ratio"].items()
    }


COLUMNS = (
    "case",
    "shape",
    "dtype",
    "ours, ms (p20–p80)",
    "peer",
    "its ms (p20–p80)",
    "ratio (p20–p80)",
    "ours vs peer",
)


def table(record: Record) -> str:
    """The record as Markdown: where it was taken, then one row for each case and peer."""
    environment, roofline = record["environment"], record["roofline"]
    products = ", ".join(f"{dtype} {rate:,.0f} GFLOP/s" for dtype, rate in roofline["matmul_gflop_s"].items())
    lines = [
        f"Taken {record['date']}: commit {record['commit']}, {environment['gpu'] or environment['cpu']}, "
        f"{record['threads']} torch threads, torch {environment['torch']}" + ", quick" * record["quick"],
        "",
        f"Measured roofline: copy {roofline['copy_gb_s']:,.1f} GB/s; matrix product {products}.",
        "A ratio is the peer's median time over ours: above 1 is faster than the peer.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    return "\n".join(lines + [row for case in record["cases"] for row in _rows(case)]) + "\n"


def _rows(case: Mapping[str, Any]) -> list[str]:
    rows = []
    for peer, times in case["peers"].items():
        if "missing" in times:
            measured, ratio = times["missing"], "–"
        else:
            low, high = case["spread"][peer]
            measured, ratio = _time(times), f"{case['ratio'][peer]:.3g}× ({low:.3g}–{high:.3g})"
        cells = (
            case["name"],
            case["shape"],
            case["dtype"],
            _time(case["ours"]),
            peer,
            measured,
            ratio,
            _notes(case, peer),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _time(times: Mapping[str, float]) -> str:
    return f"{times['p50']:.4g} ({times['p20']:.4g}–{times['p80']:.4g})"


def _notes(case: Mapping[str, Any], peer: str) -> str:
    """What else was measured, ours against this peer's."""
    notes = []
    for key, values in case["notes"].items():
        theirs = f" vs {values[peer]:.3g}" if peer in values else ""
        notes.append(f"{key} {values['ours']:.3g}{theirs}")
    return "; ".join(notes)
