"""Populations of models: specified once, trained anywhere, stored one complete file per member."""

from rumfast.sweeps.engines import Engine, LocalEngine, open_engine
from rumfast.sweeps.population import Population
from rumfast.sweeps.reduce import Reliability, Sweep
from rumfast.sweeps.run import load_sweep, run_sweep
from rumfast.sweeps.spec import DataRef, PopulationSpec

__all__ = [
    "DataRef",
    "Engine",
    "LocalEngine",
    "Population",
    "PopulationSpec",
    "Reliability",
    "Sweep",
    "load_sweep",
    "open_engine",
    "run_sweep",
]
