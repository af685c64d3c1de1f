"""Throughput benchmarks: every figure a ratio to a named peer, measured interleaved in the same run.

``run`` takes a record, ``fallen`` holds it against an earlier one, ``table`` prints it. Importing this
module imports no torch.
"""

from collections.abc import Callable
from typing import Any

from rumfast.bench.report import Ratio, Record, compare, table
from rumfast.errors import UsageError

SUITES = ("kernels", "loader", "train", "sweep", "unlearn")

ATTEMPTS = 3  # at a ratio that fell: a busy machine makes some fall, and not the same ones again

__all__ = ["SUITES", "compare", "fallen", "run", "table"]


def run(
    suite: str, quick: bool = False, on_case: Callable[[dict[str, Any]], object] | None = None
) -> dict[str, Any]:
    """Measure ``suite`` (one of ``SUITES``, or ``all``) on the best device; the record is ready for JSON.

    Args:
        quick: small shapes and few rounds: all suites in minutes on two idle cores, instead of a quarter of
            an hour.
        on_case: called after each measurement with the record as far as it goes.

    Raises:
        UsageError: unknown suite.
    """
    if suite not in (*SUITES, "all"):
        raise UsageError(f"suite: got {suite!r}, expected one of {', '.join(SUITES)}, all")
    from rumfast.bench.record import take

    return take(SUITES if suite == "all" else (suite,), quick, on_case)


def fallen(record: Record, previous: Record, quick: bool = False) -> list[str]:
    """Messages for the ratios that fell by more than 20 % (see ``compare``), each of three times.

    Suites in which a ratio fell are measured again.
    """
    falls: dict[Ratio, str] = compare(record, previous)
    for _ in range(ATTEMPTS - 1):
        if not falls:
            break
        from rumfast.bench.record import take

        suites = sorted({ratio.suite for ratio in falls})
        again = compare(take(suites, quick), previous)
        falls = {ratio: message for ratio, message in again.items() if ratio in falls}
    return list(falls.values())
