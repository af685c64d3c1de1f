"""The command line: arguments in, calls to the library, results out. No logic of its own."""

from rumfast.cli.entry import main

__all__ = ["main"]
