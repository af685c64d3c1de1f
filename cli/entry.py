"""Entry point: the Typer app, its exit codes and signals."""

import os
import signal
import sys

from rumfast.cli.app import app
from rumfast.errors import RumfastError, StorageError

INTERRUPTED = 130
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # Slurm can send SIGUSR2 before a time limit


def main() -> None:
    """Run ``rumfast``; every error rumfast foresees ends in one line on stderr and its exit code."""
    for number in INTERRUPTS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and shells' background jobs start us
            signal.signal(number, _interrupt)
    try:
        app()
    except RumfastError as error:
        _end(str(error), error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # how Typer ends on KeyboardInterrupt
            _end("interrupted; finished work is kept, the same command resumes", INTERRUPTED)
        raise
    except OSError as error:
        _end(f"{error.filename or 'I/O'}: {error.strerror or error}", StorageError.exit_code)


def _interrupt(signum: int, frame: object) -> None:
    """Stop in order; a second signal ends the process whatever it does, and workers follow it."""
    for number in INTERRUPTS:
        signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    raise KeyboardInterrupt


def _end(message: str, code: int) -> None:
    print(f"rumfast: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
