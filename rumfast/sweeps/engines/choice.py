"""Which engine: ``local``, ``ray(address=auto, gpus=0.25)``, ``slurm(partition=gpu, slots=64)``."""

import re
from collections.abc import Callable
from typing import Any

from rumfast.errors import UsageError
from rumfast.sweeps.engines.base import Engine
from rumfast.sweeps.engines.local import LocalEngine


def open_engine(text: str = "local", *, workers: int | None = None, device: str = "auto") -> Engine:
    """Make the engine that ``text`` names; enter it to use it.

    Args:
        text: a name, with options in brackets: ``local(workers=4, mps=off)``;
            ``ray(address=…, cpus=…, gpus=…)``; ``slurm(slots=…, minutes=…, KEY=VALUE, FLAG…)`` with options
            of sbatch by their long names.
        workers: local processes, or slots of a Slurm array, where ``text`` does not say.

    Raises:
        UsageError: an unknown engine or option, or the engine's package is missing.
    """
    name, options = _parse(text)
    if name not in ENGINES:
        raise UsageError(f"--engine: got {name!r}, expected one of {', '.join(ENGINES)}")
    return ENGINES[name](options, workers, device)


def _parse(text: str) -> tuple[str, dict[str, str]]:
    found = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", text)
    if not found:
        raise UsageError(f"--engine: got {text!r}, expected a name such as slurm, or slurm(partition=gpu)")
    options: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in (found[2] or "").split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        flag = found[1] == "slurm" and not equals
        if not key or key in options or not (value or flag):
            raise UsageError(f"--engine: got {part!r} in {text!r}, expected KEY=VALUE, each key once")
        options[key] = value
    return found[1], options


def _local(options: dict[str, str], workers: int | None, device: str) -> Engine:
    workers = _take(options, "workers", int, workers)
    mps = options.pop("mps", "auto")
    if mps not in ("auto", "off"):
        raise UsageError(f"--engine: mps got {mps!r}, expected auto or off")
    _refuse(options, "local", "workers, mps")
    return LocalEngine(workers, device, mps=mps == "auto")


def _ray(options: dict[str, str], workers: int | None, device: str) -> Engine:
    from rumfast.sweeps.engines.ray_cluster import RayEngine

    if workers is not None:
        raise UsageError("--workers: Ray runs as many as its cluster has room for; see cpus and gpus")
    address = options.pop("address", None)
    cpus, gpus = _take(options, "cpus", float, 1.0), _take(options, "gpus", float, None)
    _refuse(options, "ray", "address, cpus, gpus")
    return RayEngine(device, address=address, cpus=cpus, gpus=gpus)


def _slurm(options: dict[str, str], workers: int | None, device: str) -> Engine:
    from rumfast.sweeps.engines.slurm_cluster import SlurmEngine

    slots, minutes = _take(options, "slots", int, workers or 16), _take(options, "minutes", int, 240)
    return SlurmEngine(device, slots=slots, minutes=minutes, options=options)


def _take(options: dict[str, str], key: str, convert: Callable[[str], Any], default: Any) -> Any:
    if key not in options:
        return default
    text = options.pop(key)
    try:
        value = convert(text)
    except ValueError:
        value = 0
    if not value > 0:
        raise UsageError(f"--engine: {key} got {text!r}, expected a number above 0")
    return value


def _refuse(options: dict[str, str], name: str, known: str) -> None:
    if options:
        raise UsageError(f"--engine: {name} has no option {next(iter(options))}; it has {known}")


ENGINES: dict[str, Callable[[dict[str, str], int | None, str], Engine]] = {
    "local": _local,
    "ray": _ray,
    "slurm": _slurm,
}
