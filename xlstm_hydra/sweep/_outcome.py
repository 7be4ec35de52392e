"""The outcome of each job of a sweep, in its own folder and in one file of the sweep.

A job leaves its outcome as `outcome.json` in its folder, and puts the same into `sweep.jsonl` in the folder of the
sweep, which has one line for each job from the start on. Where two jobs that cannot lock the file write at once, or a
job dies, the process that sweeps mends it at the end from the folders of the jobs.
"""

from __future__ import annotations

import fcntl
import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xlstm_hydra.configs import ConfigError, Problem
from xlstm_hydra.links import open_lock, replace_file

log = logging.getLogger("xlstm_hydra")

RECORD_FILE = "sweep.jsonl"
"""One line of JSON for each job, in the folder of the sweep."""

OUTCOME_FILE = "outcome.json"
"""The same of one job, in its own folder."""

LOCK_FILE = ".sweep.lock"
"""Held while the record is changed."""

PATIENCE_SECONDS = 30.0
"""How long a job waits for the lock. One that is never let go, as by a host that hangs, must not hang the others."""

WAITING, RUNNING, COMPLETED, FAILED, REFUSED = "waiting", "running", "completed", "failed", "refused"
PREEMPTED, INTERRUPTED, LOST, INVALID = "preempted", "interrupted", "lost", "invalid"

STATUSES = (WAITING, RUNNING, COMPLETED, FAILED, REFUSED, PREEMPTED, INTERRUPTED, LOST, INVALID)
"""Lost is a job that ended without a word, as by SIGKILL; invalid is a point that was never launched."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is known of a job of a sweep."""

    job: int
    """Its number, from 0, which its folder is named after."""

    overrides: list[str] = field(default_factory=list)
    """Those of its point."""

    status: str = WAITING
    """One of `STATUSES`."""

    reason: str | None = None
    """Why it is not completed, in a line."""

    task: str | None = None
    """What it does: train, evaluate, generate or plan."""

    folder: str | None = None
    """Its folder, as seen from that of the sweep; null until it starts."""

    metric: str | None = None
    """What `best` is: validation_loss, or loss where there is no validation, both in nats; step_seconds of a plan."""

    best: float | None = None
    """The lowest value of that."""

    best_step: int | None = None
    """The step that had it."""

    steps: int | None = None
    """Steps that have been done, as far as they are logged."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    """The last value of each column of `metrics.csv`."""

    tokens_per_second: float | None = None
    """The median of what was logged."""

    checkpoint: str | None = None
    """The newest checkpoint, as seen from the folder of the sweep."""

    result: float | None = None
    """What the task returned: the last validation loss of a training run, the seconds of a planned step."""

    started: str | None = None
    """When it was started, the last time."""

    ended: str | None = None
    """When it ended."""

    cluster_job: str | None = None
    """The number of its SLURM job, such as 1234_5."""


def now() -> str:
    """This moment, in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_record(folder: Path) -> list[Outcome]:
    """The outcomes in the folder of a sweep, by the number of the job.

    Raises:
        ConfigError: it has no record, or one that cannot be read.
    """
    try:
        return [_parsed(line) for line in (folder / RECORD_FILE).read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        text, fix = f"there is no {RECORD_FILE} in it", "Give the folder of a sweep, which -m tells at its end."
    except (OSError, ValueError, TypeError) as error:
        text, fix = f"its {RECORD_FILE} cannot be read: {error}", ""
    raise ConfigError([Problem({"hydra.sweep.dir": str(folder)}, text, fix)]) from None


def find_outcome(folder: Path, job: int) -> Outcome | None:
    """That of one job, if there is one."""
    file = folder / RECORD_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((_parsed(line) for line in lines if _job_of(line) == job), None)


def update_record(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Put outcomes into the record of a sweep, in the place of older ones of the same jobs. Any process may do it."""
    _rewrite(folder, lambda lines: {outcome.job: _line(outcome) for outcome in outcomes})


def amend_record(folder: Path, changes: Mapping[int, Mapping[str, Any]]) -> None:
    """Change single fields of jobs, whatever the jobs themselves write meanwhile: `{3: {"cluster_job": "1234_3"}}`."""

    def amended(lines: Mapping[int, str]) -> dict[int, str]:
        known = {job: _parsed(lines[job]) if job in lines else Outcome(job=job) for job in changes}
        return {job: _line(replace(known[job], **change)) for job, change in changes.items()}

    _rewrite(folder, amended)


def read_outcome(folder: Path) -> Outcome | None:
    """What a job has left in its own folder; None where that is nothing, or no more than a part."""
    try:
        return _parsed((folder / OUTCOME_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return None


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Leave it there."""
    replace_file(folder / OUTCOME_FILE, json.dumps(asdict(outcome), indent=1, allow_nan=False) + "\n")


def remove_leftovers(folder: Path) -> None:
    """Delete what writers that died have left half written."""
    with _locked(folder):
        for file in folder.glob(f".{RECORD_FILE}.*"):
            file.unlink(missing_ok=True)


def _parsed(line: str) -> Outcome:
    return Outcome(**json.loads(line))


def _line(outcome: Outcome) -> str:
    return json.dumps(asdict(outcome), allow_nan=False)


def _rewrite(folder: Path, change: Callable[[Mapping[int, str]], Mapping[int, str]]) -> None:
    """Change lines of the record. The others are not parsed: a thousand of them would take 10 ms."""
    file = folder / RECORD_FILE
    with _locked(folder):
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        lines = {_job_of(line): line for line in text.splitlines()}
        lines |= change(lines)
        replace_file(file, "".join(f"{lines[job]}\n" for job in sorted(lines)))


def _job_of(line: str) -> int:
    """The job that a line is about: its first field."""
    return int(line.partition(":")[2].partition(",")[0])


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let no other process change the record. Where the file system has no locks, or one is never let go, it is done
    without: what is lost then is found again in the folders of the jobs."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with open_lock(folder / LOCK_FILE) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    log.warning("%s has been locked for %.0f s; going on without", file.name, PATIENCE_SECONDS)
                    break
                time.sleep(random.uniform(0.001, 0.01))
            except OSError:
                break
        yield
