"""The folder of this machine's records: ``python -m rumfast.bench.machine`` prints its name."""

import re

from rumfast.runtime import environment


def folder(gpu: str | None, cpu: str) -> str:
    """The GPU's name, or else the CPU's with its cores, in lower case with hyphens.

    >>> folder(None, "AMD EPYC, 2 cores"), folder("NVIDIA H100 80GB HBM3", "AMD EPYC, 2 cores")
    ('amd-epyc-2core', 'nvidia-h100-80gb-hbm3')
    """
    name = gpu or re.sub(r"(\d+) cores?$", r"\1core", cpu)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    found = environment()
    print(folder(None if found["gpu"] is None else str(found["gpu"]), str(found["cpu"])))
