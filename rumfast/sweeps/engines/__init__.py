"""Engines: where members are trained. The store is the only truth; engines only run "do these members"."""

from rumfast.sweeps.engines.base import Engine
from rumfast.sweeps.engines.choice import open_engine
from rumfast.sweeps.engines.local import LocalEngine

__all__ = ["Engine", "LocalEngine", "open_engine"]
