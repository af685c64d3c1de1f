"""Slurm's job arrays as its queue shows them: what still works, and taking it back."""

import re
import subprocess
import sys
import time
from collections.abc import Sequence

from rumfast.errors import PartialError, UsageError

ANSWER_S = 60.0  # that Slurm's commands get
OUTAGE_S = 600.0  # without an answer of squeue, after which the controller counts as gone
COMPLETING_S = 60.0  # that a task may take to end or to queue again, before it counts as dead

# A task that is held, by its owner, an administrator or after a failed launch, does not start by waiting.
HELD_STATES = frozenset(("REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"))
HELD_REASON = re.compile(r"JobHeld|JobHold|(launch.failed|job).requeued.(in.)?held")
# Reasons of a wait that ends only when somebody edits the job; the next array would wait for the same.
HOPELESS = frozenset(
    "AccountNotAllowed BadConstraints DependencyNeverSatisfied InvalidAccount InvalidQOS PartitionTimeLimit "
    "QOSNotAllowed".split()
)


class ArrayJob:
    """A job array that was submitted."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self._alive = 1
        self._answered = time.monotonic()
        self._completing: dict[str, float] = {}  # when each task was first seen to end

    def alive(self) -> int:
        """Number of tasks that wait or are at work; a controller that does not answer changes nothing.

        Tasks that are held, and so would never start, are cancelled.

        Raises:
            UsageError: a task waits for something that will not come with these options.
            PartialError: Slurm has not answered for ten minutes.
        """
        tasks, now = tasks_of(self.job_id), time.monotonic()
        if tasks is None:
            if now - self._answered > OUTAGE_S:
                raise PartialError(
                    f"Slurm has not answered for {(now - self._answered) / 60:.0f} minutes about job "
                    f"{self.job_id}; finished members are kept, the same command resumes"
                )
            return self._alive
        self._answered = now
        for task, _, reason in tasks:
            if reason in HOPELESS:
                raise UsageError(
                    f"Slurm job {task} would wait for ever ({reason}): change the options or the minutes"
                )
        held = {task for task, state, reason in tasks if state in HELD_STATES or HELD_REASON.match(reason)}
        if held:
            scancel(sorted(held))
        ending = [task for task, state, _ in tasks if state == "COMPLETING"]
        self._completing = {task: self._completing.get(task, now) for task in ending}
        stuck = {task for task, since in self._completing.items() if now - since > COMPLETING_S}
        self._alive = len(tasks) - len(held | stuck)
        return self._alive

    def cancel(self) -> None:
        """Cancel all tasks that are left."""
        if trouble := scancel([self.job_id]):
            print(
                f"rumfast: Slurm job {self.job_id} may go on ({trouble}); to end it: scancel {self.job_id}",
                file=sys.stderr,
            )


def tasks_of(job_id: str) -> list[tuple[str, str, str]] | None:
    """Id, state and reason of each task that Slurm has not done with; None where Slurm does not answer."""
    answer = ask("squeue", "--jobs", job_id, "--array", "--noheader", "--format=%i|%T|%r")
    if "Invalid job id" in answer.stderr:
        return []  # all of it ended long ago
    if answer.returncode:
        return None
    rows = (line.split("|", 2) for line in answer.stdout.splitlines())
    return [(task, state, reason) for task, state, reason in rows]


def scancel(jobs: Sequence[str]) -> str:
    """Cancel jobs or tasks, and those that have ended silently; returns what went wrong."""
    answer = ask("scancel", "--quiet", *jobs)
    return " ".join(answer.stderr.split()) if answer.returncode else ""


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm's; one that does not end in time has failed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
