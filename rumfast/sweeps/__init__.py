"""Populations of models: specified once, trained anywhere, stored one complete file per member."""

from rumfast.sweeps.engines import Engine, LocalEngine
from rumfast.sweeps.population import Population
from rumfast.sweeps.run import Sweep, load_sweep, run_sweep
from rumfast.sweeps.spec import DataRef, PopulationSpec

__all__ = [
    "DataRef",
    "Engine",
    "LocalEngine",
    "Population",
    "PopulationSpec",
    "Sweep",
    "load_sweep",
    "run_sweep",
]
