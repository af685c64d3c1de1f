"""The command line: arguments in, calls to the library, results out. No logic of its own."""

from rumfast.cli.main import main

__all__ = ["main"]
