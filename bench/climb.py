"""``bench/gpu.sh``: climb the rungs of what is measured on a GPU, and go on where the last climb ended.

Each rung runs in a process of its own, which a faulty kernel can take down alone, and takes at most four
minutes of a climb. What comes out lies flat in the folder: ``rungs.json`` (states, cases, errors) and the
records. With ``next``, rungs with untried cases come first, the lowest of them first, but a rung that has had
a turn waits for the others; then failed cases are tried again.
"""

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from rumfast.bench.ledger import Ledger, process_died
from rumfast.bench.machine import folder as folder_of
from rumfast.bench.rungs import FILES, LOST, RUNGS

LIMIT_S = 240.0  # of a rung in one climb
GRACE_S = 5.0  # from SIGTERM to SIGKILL
SPARE_S = 2.0  # in which a rung that ends by itself writes what it has
WHOLE = 0.8  # share of LIMIT_S from which on a rung has had its turn
RESULTS = Path(__file__).resolve().parent / "results"
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
DRY_LEAST_S = 10.0  # below which a dry run begins no rung
NO_LIMIT_S = 24 * 3600.0


class Climb:
    """Runs rungs one after another, each in a process that ends with this one.

    Args:
        seconds: after which the last rung has ended.
    """

    def __init__(self, folder: Path, work: Path, seconds: float, dry: bool) -> None:
        self.folder, self.work, self.dry = folder, work, dry
        self.began = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._deadline = monotonic() + seconds
        self._process: subprocess.Popen[bytes] | None = None

    def left(self) -> float:
        """Seconds that a rung can still take."""
        return self._deadline - monotonic() - GRACE_S

    def next_rung(self, tried: Sequence[str]) -> str | None:
        """The rung to climb next that fits into the time left; None if there is none."""
        ledger, order = Ledger(self.folder), list(RUNGS)
        fitting = [
            name
            for name in order
            if name not in tried
            and ledger.state(name) != "complete"
            and (DRY_LEAST_S if self.dry else RUNGS[name][0]) <= self.left()
        ]

        def turn(name: str) -> tuple[bool, int, int]:
            return ledger.state(name) == "failed", ledger.rung(name)["turns"], order.index(name)

        return min(fitting, key=turn, default=None)

    def run(self, name: str) -> None:
        """Climb one rung; where its process dies, the case that it ran has failed, and another goes on."""
        started, limit = monotonic(), min(LIMIT_S, self.left())
        print(f"gpu.sh: {name}, at most {limit:.0f} s", flush=True)
        status = LOST
        while status == LOST and (left := limit - (monotonic() - started)) > 1:
            status = self._process_of(name, left)
        ledger, taken = Ledger(self.folder), monotonic() - started
        ledger.rung(name)["seconds"] += round(taken, 1)
        ledger.rung(name)["turns"] += taken > WHOLE * LIMIT_S
        ledger.write()
        print(f"gpu.sh: {name} is {ledger.state(name)} after {taken:.0f} s", flush=True)

    def _process_of(self, name: str, seconds: float) -> int:
        """Run a rung in a process of its own; LOST if another should go on with the next case."""
        ledger = Ledger(self.folder)
        ledger.rung(name)["running"] = None
        ledger.write()
        before = ledger.measured_in(self.began, name)
        until = monotonic() + seconds - SPARE_S
        command = [sys.executable, "-m", "rumfast.bench.rungs", name, "--until", f"{until:.1f}"]
        command += ["--folder", str(self.folder), "--work", str(self.work / name), "--climb", self.began]
        # In a dry run on one thread: several wait for each other where other processes run.
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if self.dry else {})
        command += ["--dry-run"] * self.dry
        self._process = subprocess.Popen(command, start_new_session=True, env=environment)
        status = None
        with suppress(subprocess.TimeoutExpired):
            status = self._process.wait(seconds)
        self.stop()  # also what a process that ended by itself has left behind
        if status is None:
            ledger = Ledger(self.folder)
            alone = ledger.measured_in(self.began, name) == before
            if alone and seconds > 0.9 * LIMIT_S:  # the case that ran would not fit the next time either
                process_died(ledger, name, f"did not end within {seconds:.0f} s", self.began)
            return 0
        if status not in (0, LOST):
            died = f"the process ended with exit status {status}"
            return LOST if process_died(Ledger(self.folder), name, died, self.began) else status
        return status

    def stop(self) -> None:
        """End the rung's process and all that it started."""
        if self._process is None:
            return
        for number, wait_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(wait_s)
        self._process = None


def claim(folder: Path, device: str) -> str:
    """Keep the folder to this process and device; returns why that cannot be, or nothing."""
    handle = os.open(folder, os.O_RDONLY)  # stays open, and locked, as long as this process lives
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"{folder}: another climb is at work there; wait for its end, or give another --out"
    ledger = Ledger(folder)
    if ledger.device not in (None, device):
        return f"{folder}: holds records of {ledger.device}, this is {device}; give another --out"
    ledger.device = device
    ledger.write()
    return ""


def gpu_name() -> str:
    """Name of the GPU that torch sees, or nothing. Asked in another process: CUDA would hold memory here."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return found.stdout.strip()


def adopt(results: Path, folder: Path) -> None:
    """Copy what earlier climbs left in ``results`` to ``folder``, unless that has records of its own."""
    if results.resolve() != folder.resolve() and not any((folder / name).exists() for name in FILES):
        for name in FILES:
            if (results / name).exists():
                shutil.copyfile(results / name, folder / name)


def climb_all(climb: Climb, asked: Sequence[str]) -> int:
    """Climb the rungs that are asked for, or those that come next; returns the exit status."""
    tried: list[str] = []
    if asked == ["next"]:
        while (name := climb.next_rung(tried)) is not None:
            climb.run(name)
            tried.append(name)
    else:
        fitting = asked if climb.left() > 0 else []
        for name in fitting:
            Ledger(climb.folder).ask_again(name)
        for name in fitting:
            if climb.left() > 0:
                climb.run(name)
                tried.append(name)
    ledger = Ledger(climb.folder)
    states = {name: ledger.state(name) for name in RUNGS}
    print("gpu.sh: " + ", ".join(f"{name} {state}" for name, state in states.items()))
    if not tried and set(states.values()) == {"complete"}:
        print("gpu.sh: every rung is complete; name those to measure again")
    elif not tried:
        print("gpu.sh: no rung fits into these --seconds; nothing was measured", file=sys.stderr)
        return 1
    for name in tried:
        for case in errors(ledger, name, "missing"):
            print(f"gpu.sh: {name} left out {case}")
    failed = [
        f"{name} failed: {case}"
        for name in tried
        for status in ("failed", "partial")
        for case in errors(ledger, name, status)
    ]
    for line in failed:
        print(f"gpu.sh: {line}", file=sys.stderr)
    return 1 if failed else 0


def errors(ledger: Ledger, name: str, status: str) -> list[str]:
    """The cases of a rung that ended so with an error, and the error."""
    ended = {case: found for case, found in ledger.rung(name)["cases"].items() if found["status"] == status}
    return [f"{case}: {found['error']}" for case, found in ended.items() if "error" in found]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line of bench/gpu.sh."""
    parser = argparse.ArgumentParser("gpu.sh", description=__doc__)
    parser.add_argument(
        "rungs", nargs="+", choices=["next", *RUNGS], metavar="next | RUNG", help=", ".join(RUNGS)
    )
    parser.add_argument("--seconds", type=float, default=NO_LIMIT_S, help="that the climb may take in all")
    parser.add_argument("--out", type=Path, help="default: bench/results/<gpu>, in a dry run a new folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="small shapes and few cases of each rung, on any machine"
    )
    parser.add_argument("--work", type=Path, required=True, help=argparse.SUPPRESS)
    found = parser.parse_args(arguments)
    if "next" in found.rungs and len(found.rungs) > 1:
        parser.error("next takes no rung beside it")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Climb; the exit status is 1 if a case failed or there is no GPU, 2 for an unknown rung."""
    asked = parse(arguments)
    began = monotonic()
    gpu = "" if asked.dry_run else gpu_name()
    if not gpu and not asked.dry_run:
        print("gpu.sh: torch sees no GPU; --dry-run tries everything on the CPU", file=sys.stderr)
        return 1
    results = RESULTS / folder_of(gpu, "")
    out = asked.out or (Path(tempfile.mkdtemp()) if asked.dry_run else results)
    out.mkdir(parents=True, exist_ok=True)
    if gpu:
        adopt(results, out)
    device = gpu or "a dry run"
    print(f"gpu.sh: {device}, Python {sys.version.split()[0]}, results in {out}", flush=True)
    if error := claim(out, device):
        print(f"gpu.sh: {error}", file=sys.stderr)
        return 1
    climb = Climb(out.resolve(), asked.work, asked.seconds - (monotonic() - began), asked.dry_run)
    for number in STOPS:
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        return climb_all(climb, asked.rungs)
    except SystemExit:
        print("gpu.sh: stopped; finished cases are kept, `next` goes on", file=sys.stderr)
        raise
    finally:
        for number in STOPS:  # a second one must not cut the stopping short
            signal.signal(number, signal.SIG_IGN)
        climb.stop()


if __name__ == "__main__":
    sys.exit(main())
