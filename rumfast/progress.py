"""Progress of long work on stderr: a bar on a terminal, one line every 30 s elsewhere; and notices."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def track(description: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """Yield ``advance()``, to be called once for each finished piece of ``total``."""
    if total == 0:
        yield lambda: None
    elif sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task(description, total=total, completed=done)
            yield lambda: bar.advance(task)
    else:
        yield _lines(description, total, done)


def notice(text: str) -> None:
    """Print what whoever waits should know, as one line on stderr."""
    print(f"rumfast: {text}", file=sys.stderr, flush=True)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _lines(description: str, total: int, done: int) -> Callable[[], None]:
    started = last = time.monotonic()

    def advance() -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if done == total or now - last >= SECONDS_BETWEEN_LINES:
            last = now
            print(f"{description}: {done}/{total} after {now - started:.0f} s", file=sys.stderr, flush=True)

    return advance
