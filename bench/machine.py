"""Where records are taken: ``python -m rumfast.bench.machine`` prints the name of this machine's folder."""

import re
from collections.abc import Mapping
from typing import Any

from rumfast.runtime import environment


def folder(gpu: str | None, cpu: str) -> str:
    """The GPU's name, or else the CPU's with its cores, in lower case with hyphens.

    >>> folder(None, "AMD EPYC, 2 cores"), folder("NVIDIA H100 80GB HBM3", "AMD EPYC, 2 cores")
    ('amd-epyc-2core', 'nvidia-h100-80gb-hbm3')
    """
    name = gpu or re.sub(r"(\d+) cores?$", r"\1core", cpu)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def taken(record: Mapping[str, Any]) -> str:
    """The end of a table's caption: on what machine, and by which version.

    >>> environment = {"gpu": None, "cpu": "A CPU", "torch": "2", "rumfast": "1", "commit": "abc"}
    >>> taken({"environment": environment})
    'A CPU, torch 2, rumfast 1, commit abc.'
    """
    found = record["environment"]
    return (
        f"{found['gpu'] or found['cpu']}, torch {found['torch']}, rumfast {found['rumfast']}, "
        f"commit {found['commit']}."
    )


if __name__ == "__main__":
    found = environment()
    print(folder(None if found["gpu"] is None else str(found["gpu"]), str(found["cpu"])))
