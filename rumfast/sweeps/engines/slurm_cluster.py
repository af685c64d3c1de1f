"""Members as job arrays of Slurm, by submitit: the store says what is done, and squeue what still works.

Accounting is never asked: many clusters have none, and without it submitit never learns of a killed task.
"""

import os
import re
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rumfast.errors import PartialError, UsageError
from rumfast.store import write_text
from rumfast.sweeps.engines.base import ChunkEngine, OnDone, ignore
from rumfast.sweeps.engines.slurm_jobs import ArrayJob, ask, tasks_of
from rumfast.sweeps.population import Population
from rumfast.sweeps.worker import do_chunk

PROGRAMS = ("sbatch", "squeue", "scancel", "srun")
NOTICE_S = 90  # before its time limit, at which Slurm tells a task; Slurm may be up to a minute early
LEAST_MINUTES = 5  # of a task, so that it does something before the notice
MOST_TASKS = 1000  # of an array, by Slurm's defaults
MOST_TIMEOUTS = 1_000_000  # submitit's limit; ours is that a task must finish members, see Chunk

# Options that would take a task's time limit, files or place in the array from us, or that only print.
OURS = frozenset(
    "array error help input no-requeue nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node "
    "ntasks-per-socket open-mode output parsable quiet requeue signal test-only time usage verbose version "
    "wait wrap".split()
)
UNREACHABLE = re.compile("Unable to contact|timed out|Connection refused|try again", re.IGNORECASE)


class Chunk:
    """What one task of an array runs; Slurm may run it again, and the store knows what is left of it."""

    def __init__(self, root: str, indices: list[int], device: str, minutes: int) -> None:
        self.root = root
        self.indices = indices
        self.device = device
        self.minutes = minutes

    def __call__(self) -> None:
        # Slurm cancels with SIGTERM, which submitit ignores: each task would take all of KillWait to end.
        signal.signal(signal.SIGTERM, _end)
        self._started, self._before = time.monotonic(), self._done()
        do_chunk(self.root, self.indices, self.device)

    def checkpoint(self) -> Any:
        """What submitit queues again when the task is preempted or runs out of time.

        Raises:
            PartialError: the time limit passed without any member, and would again; the journal will tell.
        """
        from submitit.helpers import DelayedSubmission

        out_of_time = time.monotonic() - self._started > 60 * (self.minutes - 1) - NOTICE_S
        if out_of_time and self._done() == self._before:
            raise PartialError(f"did not finish within the time limit of {self.minutes} minutes; raise it")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # comes with the requeue; submitit ends the task itself
        return DelayedSubmission(Chunk(self.root, self.indices, self.device, self.minutes))

    def _done(self) -> int:
        return len(Population.open(Path(self.root)).done(self.indices))


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)  # an exception, so that temporary files are removed


class SlurmEngine(ChunkEngine):
    """Trains members as tasks of a Slurm job array, whose files lie in the population's folder ``slurm``.

    Args:
        device: auto is cuda where the options ask for a GPU.
        slots: tasks at the same time.
        options: further options of sbatch by their long names, such as ``{"partition": "gpu"}``; an empty
            value is a flag's.
        minutes: time limit of a task; one that reaches it is queued again and goes on with what is left.

    Raises:
        UsageError: submitit or Slurm is missing, or an option is unknown or not the user's to set.
    """

    least_s = 1200.0  # each task starts Python, loads the data and compiles anew

    def __init__(
        self,
        device: str = "auto",
        *,
        slots: int = 16,
        options: Mapping[str, str] | None = None,
        minutes: int = 240,
        poll_s: float = 5.0,
        settle_s: float = 60.0,
    ) -> None:
        require_slurm()
        if slots < 1:
            raise UsageError(f"slots: got {slots}, expected at least 1")
        if minutes < LEAST_MINUTES:
            raise UsageError(f"minutes: got {minutes}, expected at least {LEAST_MINUTES}")
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"device: got {device!r}, expected auto, cpu or cuda; Slurm chooses which GPU")
        self.slots = slots
        self.options = checked_options(options or {})
        asks_for_gpu = any(
            "gpu" in f"{name}={text}" for name, text in self.options.items() if name != "partition"
        )
        # Not "auto" where a GPU was asked for: a node without it would train on its CPU unnoticed.
        self.device = "cuda" if device == "auto" and asks_for_gpu else device
        self.minutes = minutes
        self.poll_s = poll_s
        self.settle_s = settle_s

    @property
    def workers(self) -> int:
        """Tasks at the same time."""
        return self.slots

    def __enter__(self) -> "SlurmEngine":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Nothing is left to end: ``run`` cancels what it submitted, and ``launch`` leaves it on purpose."""

    def run(self, population: Population, indices: Iterable[int], on_done: OnDone = ignore) -> None:
        """See :class:`Engine`."""
        try:
            super().run(population, indices, on_done)
        except PartialError as error:
            raise PartialError(f"{error} (what the tasks printed: {population.root / 'slurm'})") from error

    def launch(self, population: Population, indices: Iterable[int]) -> str:
        """Submit the members that are missing; returns the id of the Slurm job, or "" where none is.

        Raises:
            UsageError: sbatch refuses the options, or an earlier launch is still at work.
            PartialError: Slurm does not answer.
        """
        wanted = set(indices)
        missing = sorted(wanted - set(population.done(wanted)))
        if not missing:
            return ""
        launched = population.root / "slurm" / "launched"
        earlier = launched.read_text() if launched.exists() else ""
        if earlier and (tasks := tasks_of(earlier)) != []:
            left = "Slurm does not say how many" if tasks is None else str(len(tasks))
            raise UsageError(
                f"{population.root}: an earlier --detach has tasks left ({left}): wait, or scancel {earlier}"
            )
        job_id = self.submit(population, self.chunks(missing, population)).job_id
        write_text(launched, job_id)
        return job_id

    def submit(self, population: Population, chunks: Sequence[list[int]]) -> ArrayJob:
        """Hand out chunks as one job array; raises as :meth:`launch`."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        folder, name = population.root / "slurm", f"rumfast-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700, exist_ok=True)  # nodes run what lies there
        executor = submitit.SlurmExecutor(folder, max_num_timeout=MOST_TIMEOUTS)
        # Steps do not take this one from their job.
        cpus = [f"--cpus-per-task={self.options[name]}" for name in self.options if name == "cpus-per-task"]
        executor.update_parameters(
            job_name=name,
            time=self.minutes,
            array_parallelism=self.slots,
            signal_delay_s=NOTICE_S,
            stderr_to_stdout=True,
            srun_args=cpus,
            additional_parameters={name: text or True for name, text in self.options.items()}
            | {"requeue": True},
        )
        root = str(population.root.resolve())
        tasks = [Chunk(root, indices, self.device, self.minutes) for indices in joined(chunks)]
        try:
            with outside_of_jobs():
                jobs = executor.submit_array(tasks)
        except (FailedJobError, FailedSubmissionError) as error:
            text = " ".join(str(error).split())
            if UNREACHABLE.search(text):
                raise PartialError(f"{text}; the same command resumes when Slurm answers") from None
            raise UsageError(f"engine slurm: {text}") from None
        except BaseException:  # interrupted, perhaps after sbatch had accepted the array
            ask("scancel", "--quiet", "--name", name)
            raise
        return ArrayJob(jobs[0].job_id.split("_")[0])


def joined(chunks: Sequence[list[int]]) -> list[list[int]]:
    """The chunks, neighbours joined where they are more than an array may have tasks."""
    size = -(-len(chunks) // MOST_TASKS)
    return [sum(chunks[start : start + size], []) for start in range(0, len(chunks), size)]


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Hide a job that we are in ourselves: sbatch would take over its sizes and limits."""
    from submitit.helpers import clean_env

    users = {
        name: text for name, text in os.environ.items() if name == "SLURM_CONF" or name.startswith("SBATCH_")
    }
    with clean_env():
        os.environ.update(users)
        yield


def require_slurm() -> None:
    """Raise a UsageError that says what to install where submitit or Slurm's commands are missing."""
    if find_spec("submitit") is None:
        raise UsageError("engine slurm: submitit is not installed; run: pip install 'rumfast[slurm]'")
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise UsageError(
            f"engine slurm: no {', '.join(missing)} here; use a machine of the cluster that can submit jobs "
            "(on Debian and Ubuntu, apt-get install slurm-client)"
        )


def checked_options(options: Mapping[str, str]) -> dict[str, str]:
    """The options by their long names, as this machine's sbatch knows them.

    Raises:
        UsageError: sbatch does not know one or does not work here, or one is not the user's to set.
    """
    if not options:
        return {}
    answer = ask("sbatch", "--help")
    known = set(re.findall(r"--([a-z][a-z0-9-]+)", answer.stdout))
    if not known:
        raise UsageError(f"engine slurm: sbatch does not work here: {' '.join(answer.stderr.split())}")
    found = {}
    for key, text in options.items():
        name = key.strip().lstrip("-").replace("_", "-")
        if name in OURS:
            raise UsageError(f"slurm option {key!r}: rumfast sets it{' from minutes' * (name == 'time')}")
        if name not in known:
            close = "".join(f"; did you mean {each!r}?" for each in get_close_matches(name, known, 1))
            raise UsageError(f"slurm option {key!r}: sbatch has none of this name{close}")
        found[name] = str(text)
    return found
