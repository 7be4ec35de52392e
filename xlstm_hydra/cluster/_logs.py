"""The cause of a job's end, from SLURM's record of it and from the logs that it left."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._states import End

TAIL_BYTES = 20_000
"""The end of a log in which the cause is looked for."""

SHARE = "Set hydra.sweep.dir to a folder on a file system that all nodes share."

_CLUES = {
    r"could not find submitted jobs in path": f"its node does not see the folder of the sweep. {SHARE}",
    r"execve\(\): (\S+): No such file": r"\1 does not exist on its node. The Python environment must be on a file "
    "system that all nodes share.",
    r"execve\(\): (\S+): Permission denied": r"\1 cannot be executed on its node",
    r"oom[-_ ]?kill": "it used more memory than it had asked for. Set hydra.launcher.mem_gb higher.",
    r"(xlstm-hydra: not requeued: .*)": r"\1. Set hydra.launcher.timeout_min higher, or checkpoint.save_every_n_steps "
    "lower.",
    r"(?:ModuleNotFoundError|ImportError): (.*)": r"\1, in the Python environment of its node",
    r"No space left on device": "the disk is full",
    r"Disk quota exceeded": "the disk quota is used up",
}
"""What the text of a log says of the cause."""

_WITHOUT_LOGS = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "NODE_FAIL", "PREEMPTED", "REVOKED")
"""States of jobs that may have ended before they could print anything."""


def describe(job: str, end: End, paths: Any) -> str:
    """How a job ended, why, and which of its logs exist.

    Args:
        job: its number in SLURM.
        end: what SLURM knows.
        paths: submitit's, of its first process.
    """
    return f"SLURM job {job} ended as {end}; {describe_logs(end, paths)}"


def describe_logs(end: End, paths: Any) -> str:
    """The cause that the logs of a job show, and where they are."""
    logs = [file for file in (Path(paths.stderr), Path(paths.stdout)) if _size(file)]
    if logs:
        return "; ".join([*_clues(logs), f"log: {logs[0]}"])
    if end.nodes == "":
        return "it had not started"
    if Path(paths.stdout).exists() or end.state in _WITHOUT_LOGS:
        return "it printed nothing"
    node = f"node {end.nodes}" if end.nodes else "its node"
    return f"it left no log: {node} could not write to {paths.folder}, or does not see that folder. {SHARE}"


def _clues(logs: list[Path]) -> Iterator[str]:
    """The causes in the logs; where none is known, the last line."""
    text = "\n".join(map(_tail, logs))
    found = [
        match.expand(words) for pattern, words in _CLUES.items() for match in list(re.finditer(pattern, text))[-1:]
    ]
    yield from dict.fromkeys(found)
    lines = [line.strip() for line in _tail(logs[0]).splitlines() if line.strip()]
    if not found and lines:
        yield f"last line: {lines[-1][:200]}"


def _tail(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, _size(file) - TAIL_BYTES))
        return stream.read().decode("utf-8", "replace")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
