"""Read records: compare two of them, or print one as a Markdown table. Pure, and without torch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rumfast.errors import DataError, UsageError

SCHEMA = "rumfast/bench/1"
OWN = "rumfast "  # how peers begin that are other ways of ours: not compared, since both may change
SHARE_OF_EPOCH = "share of epoch: "  # begins a note; the name of a phase follows
Record = Mapping[str, Any]


class Ratio(NamedTuple):
    """What is compared from record to record."""

    suite: str
    case: str
    shape: str
    dtype: str
    peer: str


def compare(record: Record, previous: Record, tolerance: float = 0.2) -> dict[Ratio, str]:
    """A message with both values for each ratio that fell by more than ``tolerance`` (a share).

    It fell if it is that much below the earlier record's rounds too, of which a fifth lie below their p20:
    the median of a peer that varies may have been lucky. A peer that a case has lost counts as fallen; cases
    that only one record holds are not compared.

    Raises:
        DataError: a record is not of this schema.
        UsageError: the records were taken on different devices, or have no ratio in common.
    """
    for name, one in (("record", record), ("previous", previous)):
        if one.get("schema") != SCHEMA:
            raise DataError(f"{name}: schema is {one.get('schema')!r}, expected {SCHEMA!r}")
    here, there = _machine(record), _machine(previous)
    if here != there:
        raise UsageError(
            f"compare: the earlier record was taken on {there}, this one on {here}; ratios differ between "
            f"machines, so give one taken on the same kind"
        )
    now, before, least = _ratios(record), _ratios(previous), _ratios(previous, low=True)
    cases = {key[:-1] for key in now}
    common = [key for key in before if key[:-1] in cases]
    if not common:
        raise UsageError("compare: the records share no case; take both with the same suite and --quick")
    return {
        key: f"{key.case} {key.shape} {key.dtype} against {key.peer}: {_change(now.get(key), before[key])}"
        for key in common
        if now.get(key, 0.0) < (1 - tolerance) * min(before[key], least[key])
    }


def _change(now: float | None, before: float) -> str:
    if now is None:
        return f"not measured now, {before:.3g}× before"
    return f"{now:.3g}× now, {before:.3g}× before ({now / before - 1:+.0%})"


def _machine(record: Record) -> str:
    environment = record["environment"]
    return environment["gpu"] or environment["cpu"]


def _ratios(record: Record, low: bool = False) -> dict[Ratio, float]:
    """The ratio of medians to each peer, or the 20th percentile of the rounds' ratios."""
    return {
        Ratio(case["suite"], case["name"], case["shape"], case["dtype"], peer): (
            case["spread"][peer][0] if low else ratio
        )
        for case in record["cases"]
        for peer, ratio in case["ratio"].items()
        if not peer.startswith(OWN)
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
    """The record as Markdown: where it was taken, one row for each case and peer, and epochs by phase."""
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
    rows = [row for case in record["cases"] for row in _rows(case)]
    epochs = epochs_table(record)
    if epochs:
        rows += ["", "Where an epoch's time goes:", "", epochs.rstrip()]
    return "\n".join(lines + rows) + "\n"


def epochs_table(record: Record) -> str:
    """Shares of an epoch's time, one row for each variant that was also measured by phase; or nothing."""
    shares = {
        case["name"]: {
            key.removeprefix(SHARE_OF_EPOCH): values
            for key, values in case["notes"].items()
            if key.startswith(SHARE_OF_EPOCH)
        }
        for case in record["cases"]
    }
    parts = list(dict.fromkeys(part for found in shares.values() for part in found))
    if not parts:
        return ""
    lines = [f"| case | variant | {' | '.join(parts)} |", "|---|---|" + "---:|" * len(parts)]
    for name, found in shares.items():
        for variant in dict.fromkeys(variant for values in found.values() for variant in values):
            cells = [f"{found[part][variant]:.1%}" for part in parts]
            lines.append(f"| {name} | {variant} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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
        if key.startswith(SHARE_OF_EPOCH):  # in a table of their own
            continue
        theirs = f" vs {values[peer]:.3g}" if peer in values else ""
        notes.append(f"{key} {values['ours']:.3g}{theirs}")
    return "; ".join(notes)
