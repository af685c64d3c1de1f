"""Take a record: measure suites, and write down all that has to be known to read the numbers."""

import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import torch

from rumfast.bench.cases import Measure
from rumfast.bench.report import SCHEMA
from rumfast.bench.setting import Setting
from rumfast.progress import track
from rumfast.runtime import environment


def take(
    suites: Iterable[str], quick: bool, on_case: Callable[[dict[str, Any]], object] | None = None
) -> dict[str, Any]:
    """Measure ``suites`` one after another.

    Args:
        on_case: called after each measurement with the record as far as it goes.
    """
    names = tuple(suites)
    load = os.getloadavg()[0]
    setting = Setting.measure(quick)
    record = blank(names, setting, load)
    planned = [(name, measure) for name in names for measure in measurements(name, setting).values()]
    with track("bench", len(planned)) as advance:
        for name, measure in planned:
            record["cases"] += [{"suite": name} | one for one in measure()]
            if on_case is not None:
                on_case(record)
            advance()
    return record


def measurements(suite: str, setting: Setting) -> dict[str, Measure]:
    """Measurements of a suite, a module of this package, by name; none is taken yet."""
    return import_module(f"rumfast.bench.{suite}").cases(setting)


def blank(suites: Iterable[str], setting: Setting, load: float) -> dict[str, Any]:
    """A record without cases.

    Args:
        load: processes that wanted a core in the minute before; others disturb the times.
    """
    return {
        "schema": SCHEMA,
        "suites": list(suites),
        "quick": setting.quick,
        "date": now(),
        "commit": described()["commit"],
        "environment": described(),
        "device": setting.device.type,
        "threads": torch.get_num_threads(),
        "load": load,
        "roofline": {"copy_gb_s": setting.copy_gb_s, "matmul_gflop_s": setting.matmul_gflop_s},
        "cases": [],
    }


def now() -> str:
    """Date and time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def described() -> dict[str, str | int | None]:
    """Versions and hardware; the commit from the variable ``COMMIT`` where the files have no history."""
    found = dict(environment())
    return found | {"commit": found["commit"] or os.environ.get("COMMIT") or None}
