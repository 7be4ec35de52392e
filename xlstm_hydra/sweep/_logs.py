"""The cause of a job's end, from SLURM's record of it and from the logs that it left."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._slurm_states import End

TAIL_BYTES = 20_000
"""The end of a log in which the cause is looked for."""

SHARE = "Set hydra.sweep.dir to a folder on a file system that all nodes share."

_CLUES = {
    r"could not find submitted jobs in path": f"The node cannot access the folder of the sweep. {SHARE}",
    r"execve\(\): (\S+): No such file": r"\1 does not exist on its node. The Python environment must be on a file "
    "system that all nodes share.",
    r"execve\(\): (\S+): Permission denied": r"\1 cannot be executed on its node",
    r"(?i)oom[-_ ]?kill": "It used more memory than it had asked for. Set hydra.launcher.mem_gb higher.",
    r"(xlstm-hydra: not requeued: .*)": r"\1. Set hydra.launcher.timeout_min higher, or checkpoint.save_every_n_steps "
    "lower.",
    r"(No module named [^\s)]+)": r"\1 (in the Python environment of its node)",
    r"(\S+): command not found": r"\1: command not found (in the batch script: see hydra.launcher.setup)",
    r"No space left on device": "A disk is full",
    r"Disk quota exceeded": "A disk quota is used up",
}
"""Causes, by what stands in a log."""

_AFTER = re.compile("srun: (?!error)|srun: error: .*(Exited with|task.* launch)")
"""Lines of `srun` about the end of a job, below its cause."""

_WITHOUT_LOGS = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "NODE_FAIL", "PREEMPTED", "REVOKED")
"""States of jobs that may have ended before they could print anything."""


def describe(job: str, end: End, paths: Any) -> str:
    """The end of a job in sentences: SLURM's state, the cause, and a log that exists.

    Args:
        job: its number in SLURM.
        end: what SLURM knows.
        paths: submitit's, of its first process.
    """
    return f"SLURM job {job} ended as {end}. {describe_logs(paths, end)}"


def describe_logs(paths: Any, end: End | None = None) -> str:
    """The cause that the logs of a job show, and where they are, in sentences.

    Args:
        paths: submitit's, of its first process.
        end: what SLURM knows; None: it was a process on this machine.
    """
    logs = [file for file in (Path(paths.stderr), Path(paths.stdout)) if _size(file)]
    if logs:
        return " ".join([*(f"{clue.rstrip('.')}." for clue in _clues(logs)), f"Log: {logs[0]}"])
    if end is None or Path(paths.stdout).exists() or end.state in _WITHOUT_LOGS:
        return "It never started." if end is not None and end.nodes == "" else "It printed nothing."
    if end.state == "UNKNOWN":
        return f"There is no log in {paths.folder}."
    node = f"Node {end.nodes}" if end.nodes else "Its node"
    return f"{node} left no log in {paths.folder}: it cannot access or write to that folder. {SHARE}"


def _clues(logs: list[Path]) -> Iterator[str]:
    """The causes in the logs; where none is known, the last line."""
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
