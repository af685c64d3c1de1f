"""Doctests of the folders that are mapped into the package.

pytest would import them by their place a second time, and operators would be registered twice.
"""

import doctest
import importlib
import pkgutil

import pytest

import rumfast.bench
import rumfast.cli
import rumfast.kernels

MODULES = [
    f"{package.__name__}.{module.name}"
    for package in (rumfast.kernels, rumfast.bench, rumfast.cli)
    for module in pkgutil.iter_modules(package.__path__)
    if module.name != "__main__"
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    failed, run = doctest.testmod(module)
    assert not failed
    if name.startswith("rumfast.kernels.") and name.split(".")[-1] not in ("tiles", "pair_sums"):
        assert run, "a kernel's public function shows an example"
