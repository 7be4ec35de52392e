"""The outcome of each job of a sweep, in its own folder and in one file of the sweep.

A job leaves its outcome as `outcome.json` in its folder, and puts the same into `sweep.jsonl` in the folder of the
sweep, which has one line for each job from the start on. Where two jobs that cannot lock the file write at once, or a
job dies, the process that sweeps mends it at the end from the folders of the jobs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

RECORD_FILE = "sweep.jsonl"
"""One line of JSON for each job, in the folder of the sweep."""

OUTCOME_FILE = "outcome.json"
"""The same of one job, in its own folder."""

STATUSES = ("waiting", "running", "completed", "failed", "refused", "preempted", "interrupted", "lost", "invalid")
"""Lost is a job that ended without a word, as by SIGKILL; invalid is a point that was never launched."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is known of a job of a sweep."""

    job: int
    """Its number, from 0, which its folder is named after."""

    overrides: list[str] = field(default_factory=list)
    """Those of its point."""

    status: str = "waiting"
    """One of `STATUSES`."""

    reason: str | None = None
    """Why it is not completed, in a line."""

    result: float | None = None
    """What the task returned: the last validation loss of a training run."""


def read_record(folder: Path) -> list[Outcome]:
    """The outcomes in the folder of a sweep, by the number of the job."""
    lines = (folder / RECORD_FILE).read_text(encoding="utf-8").splitlines()
    return [Outcome(**json.loads(line)) for line in lines]


def update_record(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Put outcomes into the record of a sweep, in the place of older ones of the same jobs."""
    known = read_record(folder) if (folder / RECORD_FILE).exists() else []
    merged = {outcome.job: outcome for outcome in [*known, *outcomes]}
    lines = [json.dumps(asdict(merged[job])) for job in sorted(merged)]
    (folder / RECORD_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@contextmanager
def job_recorded(sweep: Path, folder: Path, job: int, overrides: Sequence[str]) -> Iterator[Any]:
    """Record how what is done inside ends."""
    outcome = Outcome(job=job, overrides=list(overrides), status="running")
    update_record(sweep, [outcome])
    yield
    update_record(sweep, [replace(outcome, status="completed")])
