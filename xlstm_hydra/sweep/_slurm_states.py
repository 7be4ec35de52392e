"""The states of SLURM jobs, and the cause of a job's end according to SLURM and to the job's logs."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlstm_hydra.preemption import STATUS

NO_PROGRESS = 76
"""Exit status of a job that was stopped at its time limit twice, with no new checkpoint in between."""

ENDED = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
)
"""Final states of a SLURM job."""

_HELD_STATES = ("REQUEUE_HOLD", "SPECIAL_EXIT")

_HELD_REASONS = re.compile("JobHeld|JobHold|held|launch_failed", re.IGNORECASE)

_NEVER = re.compile(
    "Partition(Config|Down|Inactive|NodeLimit|TimeLimit)|BadConstraints|Invalid|NotAllowed|DependencyNeverSatisfied"
    "|ReservationDeleted|PerJob|WallDuration"
)
"""Pattern of the reasons of pending jobs that will not start unless something is changed."""

ASK_SECONDS = 30
"""Timeout of SLURM commands, in seconds."""

_CAUSES = {
    "BOOT_FAIL": "its nodes did not boot",
    "CANCELLED": "it was cancelled",
    "COMPLETED": "it exited without a result",
    "DEADLINE": "it reached its deadline",
    "NODE_FAIL": "one of its nodes failed",
    "OUT_OF_MEMORY": "it used more memory than requested (hydra.launcher.mem_gb)",
    "PREEMPTED": "it was preempted by another job",
    "TIMEOUT": "it reached its time limit (hydra.launcher.timeout_min)",
    "UNKNOWN": "SLURM has no record of it",
}

_STATUSES = {
    STATUS: "a signal stopped it, and it was not requeued",
    NO_PROGRESS: "it reached its time limit twice without a new checkpoint",
    126: "its program cannot be executed",
    127: "a command in its batch script was not found",
}

_NOT_SPLIT = 4294967294
"""Task ID by which SLURM reports all tasks of an array that was cancelled before any task had its own record."""

_LAUNCH_FAILED = 53
"""Signal number that SLURM reports if the node could not start the batch script."""

TAIL_BYTES = 20_000
"""Number of bytes at the end of a log that are searched for the cause of a failure."""

SHARE = "Set hydra.sweep.dir to a folder on a file system that all nodes share."

_CLUES = {
    r"could not find submitted jobs in path": f"The node cannot access the sweep folder. {SHARE}",
    r"execve\(\): (\S+): No such file": r"\1 does not exist on the node. The Python environment must be on a file "
    "system that all nodes share.",
    r"execve\(\): (\S+): Permission denied": r"\1 cannot be executed on the node",
    r"(?i)oom[-_ ]?kill": "The job used more memory than requested. Raise hydra.launcher.mem_gb.",
    r"(xlstm-hydra: not requeued: .*)": r"\1. Raise hydra.launcher.timeout_min, or lower "
    "checkpoint.save_every_n_steps.",
    r"(No module named [^\s)]+)": r"\1 (in the Python environment of the node)",
    r"(\S+): command not found": r"\1: command not found (in the batch script: see hydra.launcher.setup)",
    r"No space left on device": "A disk is full",
    r"Disk quota exceeded": "A disk quota is used up",
}
"""Descriptions of causes, by a pattern in the log."""

_AFTER = re.compile("srun: (?!error)|srun: error: .*(Exited with|task.* launch)")
"""Pattern of lines that `srun` prints after the cause."""

_WITHOUT_LOGS = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "NODE_FAIL", "PREEMPTED", "REVOKED")
"""States of jobs that may have ended before they could print anything."""


@dataclass(frozen=True)
class End:
    """End of a SLURM job, as reported by SLURM."""

    state: str
    """SLURM state, such as `OUT_OF_MEMORY`."""

    status: int = 0
    """Exit status of the batch script."""

    signal: int = 0
    """Signal that ended the batch script, or 0."""

    reason: str = ""
    """Reason given by SLURM; empty if there is none."""

    nodes: str | None = None
    """Nodes on which the job ran. Empty if the job never started; None if unknown."""

    def __str__(self) -> str:
        """Return the state, and the cause in words."""
        if self.signal == _LAUNCH_FAILED:
            cause = "its node could not start the job"
        elif self.state in _CAUSES:
            cause = _CAUSES[self.state]
        elif self.status in _STATUSES:
            cause = _STATUSES[self.status]
        elif number := self.signal or max(self.status - 128, 0):
            memory = "; SLURM does this if a job exceeds hydra.launcher.mem_gb" if number == 9 else ""
            cause = f"it was killed by {_signal_name(number)}{memory}"
        else:
            cause = f"it exited with status {self.status}"
        known = (self.state, "NonZeroExitCode", "TimeLimit", "OutOfMemory", "None", "")
        told = "" if self.reason in known else f", reason {self.reason}"
        return f"{self.state} ({cause}{told})"


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in {item.value for item in signal.Signals} else f"signal {number}"


def states(jobs: Iterable[str]) -> dict[str, tuple[str, str]] | None:
    """Return the state and the reason of each job in the queue, by SLURM job ID; None if squeue does not respond."""
    wanted = ",".join(sorted({job.partition("_")[0] for job in jobs}))
    done = _ask("squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i|%T|%r", f"--jobs={wanted}")
    if done is None or (done.returncode and "Invalid job id" not in done.stderr):
        return None
    lines = (line.split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2)
    return {job.strip(): (state, reason) for job, state, reason in lines}


def is_held(state: str, reason: str) -> bool:
    """True if a job waits until a user or an administrator releases it."""
    return state in _HELD_STATES or (state == "PENDING" and bool(_HELD_REASONS.search(reason)))


def is_blocked(state: str, reason: str) -> bool:
    """True if a job waits for resources that the cluster will never provide."""
    return state == "PENDING" and bool(_NEVER.search(reason))


def end_of(job: str) -> End:
    """Return the end of a job. The SLURM controller remembers it for some minutes; the SLURM accounting, if enabled,
    longer."""
    return _end_in_queue(job) or _end_in_accounting(job) or End("UNKNOWN")


def _end_in_queue(job: str) -> End | None:
    lines = _records(job) or [line for line in _records(job.partition("_")[0]) if f" ArrayTaskId={_NOT_SPLIT} " in line]
    if not lines:
        return None
    found = dict(re.findall(r"(?:^|\s)(JobState|ExitCode|Reason|NodeList)=(\S*)", lines[0]))
    state, exit_code, reason = (found.get(key, "") for key in ("JobState", "ExitCode", "Reason"))
    return _end(state, exit_code, reason, found.get("NodeList"))


def _records(job: str) -> list[str]:
    done = _ask("scontrol", "--oneliner", "show", "job", job)
    return done.stdout.splitlines() if done is not None and not done.returncode else []


def _end_in_accounting(job: str) -> End | None:
    if shutil.which("sacct") is None:
        return None
    done = _ask("sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode,Reason,NodeList")
    lines = done.stdout.splitlines() if done is not None and not done.returncode else []
    if not lines:
        return None
    state, exit_code, reason, nodes = [*lines[-1].split("|"), *[None] * 3][:4]
    return _end(state or "", exit_code or "", reason or "", nodes)


def _end(state: str, exit_code: str, reason: str, nodes: str | None) -> End | None:
    word = state.split(" ")[0]  # of `CANCELLED by 0`
    status, _, number = exit_code.partition(":")
    if word not in ENDED:
        return None
    nodes = "" if nodes in ("(null)", "None assigned") else nodes
    return End(word, int(status or 0), int(number or 0), reason, nodes)


def _ask(*command: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None


def describe(job: str, end: End, paths: Any) -> str:
    """Describe the end of a job in sentences: the SLURM state, the cause, and the path of a log.

    Args:
        job: the SLURM job ID.
        end: the end of the job according to SLURM.
        paths: the submitit paths of the job's first process.
    """
    return f"SLURM job {job} ended as {end}. {describe_logs(paths, end)}"


def describe_logs(paths: Any, end: End | None = None) -> str:
    """Return sentences that state why a job failed, according to its logs, and the path of a log.

    Args:
        paths: the submitit paths of the job's first process.
        end: the final state of the job reported by SLURM; None if the job was a process on this machine.
    """
    logs = [file for file in (Path(paths.stderr), Path(paths.stdout)) if _size(file)]
    if logs:
        return " ".join([*(f"{clue.rstrip('.')}." for clue in _clues(logs)), f"Log: {logs[0]}"])
    if end is None or Path(paths.stdout).exists() or end.state in _WITHOUT_LOGS:
        return "It never started." if end is not None and end.nodes == "" else "It printed nothing."
    if end.state == "UNKNOWN":
        return f"There is no log in {paths.folder}."
    node = f"Node {end.nodes}" if end.nodes else "Its node"
    return f"{node} left no log in {paths.folder}: the node cannot access or write to that folder. {SHARE}"


def _clues(logs: list[Path]) -> Iterator[str]:
    """Yield the known causes found in the logs, or the last line if there are none."""
    text = "\n".join(map(_tail, logs))
    found = [
        match.expand(words) for pattern, words in _CLUES.items() for match in list(re.finditer(pattern, text))[-1:]
    ]
    yield from dict.fromkeys(found)
    lines = [line.strip() for line in _tail(logs[0]).splitlines() if line.strip() and not _AFTER.match(line)]
    if not found and lines:
        yield f"Last line: {lines[-1][:200]}"


def _tail(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, _size(file) - TAIL_BYTES))
        return stream.read().decode("utf-8", "replace")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
