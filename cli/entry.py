"""Entry point: the Typer app, its exit codes and signals."""

import signal
import sys

from rumfast.cli.app import app
from rumfast.errors import RumfastError, StorageError

INTERRUPTED = 130


def main() -> None:
    """Run ``rumfast``; every error rumfast foresees ends in one line on stderr and its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
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
    raise KeyboardInterrupt


def _end(message: str, code: int) -> None:
    print(f"rumfast: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
