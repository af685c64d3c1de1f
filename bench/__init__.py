"""Throughput benchmarks: every figure a ratio to a named peer, measured interleaved in the same run.

``run`` takes a record, ``compare`` holds it against an earlier one, ``table`` prints it. Importing this
module imports no torch.
"""

from typing import Any

from rumfast.bench.report import compare, table
from rumfast.errors import UsageError

SUITES = ("kernels", "loader", "train", "sweep", "unlearn")

__all__ = ["SUITES", "compare", "run", "table"]


def run(suite: str, quick: bool = False) -> dict[str, Any]:
    """Measure ``suite`` (one of ``SUITES``, or ``all``) on the best device; the record is ready for JSON.

    Args:
        quick: small shapes and few rounds: all suites in 90 s on two idle cores, instead of ten minutes.

    Raises:
        UsageError: unknown suite.
    """
    if suite not in (*SUITES, "all"):
        raise UsageError(f"suite: got {suite!r}, expected one of {', '.join(SUITES)}, all")
    from rumfast.bench.record import take

    return take(SUITES if suite == "all" else (suite,), quick)
