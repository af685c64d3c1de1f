"""Take a record: measure suites, and write down all that has to be known to read the numbers."""

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import torch

from rumfast.bench.report import SCHEMA
from rumfast.bench.setting import Setting
from rumfast.progress import track
from rumfast.runtime import environment


def take(suites: Iterable[str], quick: bool) -> dict[str, Any]:
    """Measure ``suites`` one after another, each a module of this package with ``cases(setting)``."""
    names = tuple(suites)
    load = os.getloadavg()[0]
    setting = Setting.measure(quick)
    cases: list[dict[str, Any]] = []
    with track("bench", len(names)) as advance:
        for name in names:
            found = import_module(f"rumfast.bench.{name}").cases(setting)
            cases += [{"suite": name} | one for one in found]
            advance()
    return {
        "schema": SCHEMA,
        "suites": list(names),
        "quick": quick,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": environment()["commit"],
        "environment": dict(environment()),
        "device": setting.device.type,
        "threads": torch.get_num_threads(),
        "load": load,  # processes that wanted a core in the minute before; others disturb the times
        "roofline": {"copy_gb_s": setting.copy_gb_s, "matmul_gflop_s": setting.matmul_gflop_s},
        "cases": cases,
    }
