"""Run the real entry point in this process."""

import signal
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from rumfast.cli import main


class Outcome(NamedTuple):
    """What a user sees of a command."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def rumfast(monkeypatch, capfd) -> Callable[..., Outcome]:
    """Call ``rumfast ARGUMENTS``."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["rumfast", *map(str, arguments)])
        previous = signal.getsignal(signal.SIGTERM)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        signal.signal(signal.SIGTERM, previous)
        out, err = capfd.readouterr()
        code = end.value.code
        return Outcome(code if isinstance(code, int) else 0, out, err)

    return call
