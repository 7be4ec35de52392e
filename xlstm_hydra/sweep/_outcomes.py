"""The outcome of each sweep job, stored in the job folder and in one file of the sweep.

Each job writes its outcome to `outcome.json` in the job folder and to its line of `sweep.jsonl` in the sweep folder. A
line may be lost if a job is killed, or if two jobs write at once on a file system without locks. At the end, the
sweeping process restores lost lines from the job folders. Damaged lines are reported with their line numbers and
skipped.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from xlstm_hydra._logging import log
from xlstm_hydra._printable import printable
from xlstm_hydra.formats import parse
from xlstm_hydra.problems import ConfigError, Problem, either, nearest, show
from xlstm_hydra.runs import lock, open_lock, replace_file

RECORD_FILE = "sweep.jsonl"
"""File in the sweep folder with one line of JSON for each job."""

RECORD_LOCK = ".sweep.lock"
"""File that is locked while the record is changed."""

PATIENCE_SECONDS = 30.0
"""Timeout for the lock, in seconds. A lock that is never released, for example by a host that hangs, must not block the
other jobs."""

WAITING, RUNNING, COMPLETED, FAILED, REFUSED = "waiting", "running", "completed", "failed", "refused"
PREEMPTED, INTERRUPTED, LOST, INVALID = "preempted", "interrupted", "lost", "invalid"

STATUSES = (WAITING, RUNNING, COMPLETED, FAILED, REFUSED, PREEMPTED, INTERRUPTED, LOST, INVALID)
"""Possible statuses of a job. `lost`: the job exited without recording its end, for example because of SIGKILL.
`invalid`: the point was rejected before the launch and skipped."""

_JOB = re.compile(r'\{"job": ([0-9]{1,9}),')
"""Pattern of the start of a line in the record, with the job number."""

_FEW = 5
"""Maximum number of damaged lines that are reported individually."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Status and results of a sweep job."""

    job: int
    """Job number, counted from 0. By default also the name of the job folder."""
    overrides: list[str] = field(default_factory=list)
    """Overrides of the job's point."""
    status: str = WAITING
    """One of `STATUSES`."""
    reason: str | None = None
    """Reason why the job is not completed, in one line."""
    task: str | None = None
    """Task of the job: train, evaluate, generate or plan."""
    folder: str | None = None
    """Job folder, relative to the sweep folder; null until the job starts."""
    metric: str | None = None
    """Name of the metric in `best`: validation_loss, or loss if there is no validation (both in nats); step_seconds for
    a plan."""
    best: float | None = None
    """Lowest value of the metric."""
    best_step: int | None = None
    """Step at which the metric was lowest."""
    steps: int | None = None
    """Last step that was logged or saved."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """Last logged value of each column of `metrics.csv`."""
    tokens_per_second: float | None = None
    """Median of the logged throughput."""
    checkpoint: str | None = None
    """Path of the newest checkpoint, relative to the sweep folder."""
    result: float | None = None
    """Return value of the task, such as the last validation loss of a training run, or the planned step time in
    seconds."""
    started: str | None = None
    """Time when the job was last started, in ISO 8601."""
    ended: str | None = None
    """Time when the job ended, in ISO 8601."""
    cluster_job: str | None = None
    """SLURM job ID, such as 1234_5."""


def now() -> str:
    """Return the current time in UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Fault(NamedTuple):
    """A damaged line of a record."""

    line: int
    text: str
    is_cut: bool = False
    """True if this is the last line and it is truncated, as left by a killed process."""

    def __str__(self) -> str:
        return f"line {self.line}: {printable(self.text)}"


def read_record(folder: Path) -> list[Outcome]:
    """Read the outcomes recorded in a sweep folder, ordered by job number. Damaged lines are skipped.

    Raises:
        ConfigError: the folder has no record, or none of its lines can be read.
    """
    try:
        outcomes, faults = scan_record(folder)
    except FileNotFoundError:
        text, fix = f"has no {RECORD_FILE}", "Choose a sweep folder. -m prints its path at the end of a sweep."
    except OSError as error:
        text, fix = f"its {RECORD_FILE} cannot be read: {error.strerror}", ""
    else:
        if outcomes or not faults:
            return outcomes
        text, fix = f"its {RECORD_FILE} cannot be read: {'; '.join(map(str, faults[:_FEW]))}", ""
    raise ConfigError([Problem.about(f"hydra.sweep.dir={folder}", text, fix)])


def scan_record(folder: Path) -> tuple[list[Outcome], list[Fault]]:
    """Read the record of a sweep. Return the outcomes, ordered by job number, and the damaged lines."""
    return _scanned((folder / RECORD_FILE).read_bytes())


def repair_record(folder: Path) -> int:
    """Report and remove the damaged lines of a record, and delete temporary files of killed processes. A copy of the
    damaged file is kept, unless the only damage is a truncated last line. Return the number of damaged lines."""
    file = folder / RECORD_FILE
    with _locked(folder):
        for leftover in folder.glob(f".{RECORD_FILE}.*"):
            leftover.unlink(missing_ok=True)
        data = file.read_bytes()
        outcomes, faults = _scanned(data)
        if not faults:
            return 0
        for fault in faults[:_FEW]:
            (log.info if fault.is_cut else log.warning)("%s, %s; the line is skipped", file, fault)
        if len(faults) > _FEW:
            log.warning("%s: %d more lines are damaged", file, len(faults) - _FEW)
        if not all(fault.is_cut for fault in faults):
            aside = file.with_name(f"{RECORD_FILE}.damaged")
            aside.unlink(missing_ok=True)
            with aside.open("xb") as stream:
                stream.write(data)
            log.warning("the damaged record was copied to %s", aside)
        replace_file(file, "".join(f"{_line(outcome)}\n" for outcome in outcomes))
    return len(faults)


def _scanned(data: bytes) -> tuple[list[Outcome], list[Fault]]:
    outcomes, faults = dict[int, Outcome](), list[Fault]()
    lines, _, rest = data.rpartition(b"\n")
    whole = lines.split(b"\n") if lines else []
    for number, line in enumerate(whole + [rest] * bool(rest), 1):
        try:
            outcome = parse_outcome(line)
        except Damaged as error:
            is_cut = number > len(whole)
            faults.append(Fault(number, "truncated (was the process killed?)" if is_cut else str(error), is_cut))
            continue
        if outcome.job in outcomes:
            faults.append(Fault(number, f"job {outcome.job} is already recorded on an earlier line"))
        else:
            outcomes[outcome.job] = outcome
    return [outcomes[job] for job in sorted(outcomes)], faults


def find_outcome(folder: Path, job: int) -> Outcome | None:
    """Return the recorded outcome of a job; None if it is missing or damaged."""
    return _readable(next((line for number, line in _rows(folder) if number == job), None))


def update_record(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write outcomes to the record of a sweep, replacing earlier outcomes of the same jobs. Any process may call
    this."""
    _rewrite(folder, lambda lines: {outcome.job: _line(outcome) for outcome in outcomes})


def update_fields(folder: Path, changes: Mapping[int, Mapping[str, Any]]) -> None:
    """Change individual fields of jobs, for example `{3: {"cluster_job": "1234_3"}}` for job 3. The jobs may change
    other fields at the same time."""

    def changed(lines: Mapping[int, str]) -> dict[int, str]:
        known = {job: _readable(lines.get(job)) or Outcome(job=job) for job in changes}
        return {job: _line(replace(known[job], **change)) for job, change in changes.items()}

    _rewrite(folder, changed)


def parse_outcome(line: str | bytes) -> Outcome:
    """Parse an outcome from JSON.

    Raises:
        Damaged: the text was not written by a sweep.
    """
    content = read_object(line, "an outcome")
    if faults := list(_faults(content)):
        raise Damaged("; ".join(faults))
    return Outcome(**content)


def _readable(line: str | bytes | None) -> Outcome | None:
    with suppress(Damaged):
        return None if line is None else parse_outcome(line)
    return None


def _line(outcome: Outcome) -> str:
    return json.dumps(asdict(outcome), allow_nan=False)


def _rewrite(folder: Path, change: Callable[[Mapping[int, str]], Mapping[int, str]]) -> None:
    """Replace or add the lines that `change` returns, by job number. The other lines are copied without parsing, which
    would take 10 ms for a thousand lines. Damaged lines are kept until the sweeping process reports them."""
    with _locked(folder):
        rows = _rows(folder)
        changed = dict(change({job: line for job, line in rows if job is not None}))
        lines = [line if job is None else changed.pop(job, line) for job, line in rows]
        lines += [changed[job] for job in sorted(changed)]
        replace_file(folder / RECORD_FILE, "".join(f"{line}\n" for line in lines))


def _rows(folder: Path) -> list[tuple[int | None, str]]:
    """Return the lines of a record, each with its job number, or with None if the line is damaged."""
    file, seen = folder / RECORD_FILE, set[int]()
    text = file.read_bytes().decode("utf-8", "backslashreplace") if file.exists() else ""
    rows = list[tuple[int | None, str]]()
    for line in text.removesuffix("\n").split("\n") if text else ():
        job = _job_of(line)
        rows.append((None if job in seen else job, line))
        seen |= set() if job is None else {job}
    return rows


def _job_of(line: str) -> int | None:
    """Return the job number in a line; None if the line is damaged. The line is only parsed if the number is not its
    first field."""
    if found := _JOB.match(line):
        return int(found[1])
    outcome = _readable(line)
    return None if outcome is None else outcome.job


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Prevent other processes from changing the record. If the file system does not support locks, or the lock is not
    released in time, continue without the lock: lost changes are recovered from the job folders."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with open_lock(folder / RECORD_LOCK) as file:
        with suppress(OSError):
            while not lock(file):
                if time.monotonic() > deadline:
                    log.warning("%s: locked for %.0f s; continuing without the lock", file.name, PATIENCE_SECONDS)
                    break
                time.sleep(random.uniform(0.001, 0.01))
        yield


# ---- strict JSON


class Damaged(ValueError):
    """Error for text that was not written by a sweep. The message describes the damage in one line."""


def read_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object that may be damaged or come from an untrusted source.

    Args:
        text: the text.
        what: the name of the object, for messages.

    Raises:
        Damaged: the text is not JSON, or not an object.
    """
    try:
        return parse(text, what, fix="")
    except ConfigError as error:
        text = "; ".join(str(problem) for problem in error.problems)
        raise Damaged(text.replace(" at line 1, column", " at column")) from None


def _faults(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for each unknown, missing or wrongly typed field of an outcome."""
    types = {one.name: str(one.type) for one in fields(Outcome)}
    if "job" not in content:
        yield "job: missing"
    for name, value in content.items():
        if name not in types:
            yield f"{name}: no such field. {nearest(name, types)}"
            continue
        is_valid, expected = _SPECIAL.get(name) or _KINDS[types[name].removesuffix(" | None")]
        is_optional = types[name].endswith(" | None")
        if not (is_valid(value) or (is_optional and value is None)):
            yield f"{name}: expected {expected}{' or null' if is_optional else ''}, got {show(value)}"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_time(value: Any) -> bool:
    try:
        return _is_text(value) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


_CLUSTER_JOB = re.compile(r"[0-9]\w*([_+.]\w+)*", re.ASCII)

_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda value: type(value) is int, "a whole number"),
    "float": (_is_number, "a number"),
    "str": (_is_text, "a string"),
    "list[str]": (lambda value: isinstance(value, list) and all(map(_is_text, value)), "a list of strings"),
    "dict[str, float | None]": (
        lambda value: isinstance(value, dict) and all(one is None or _is_number(one) for one in value.values()),
        "an object that maps names to numbers",
    ),
}
"""Check of a value and description of the expected values, by the annotation of the field without `| None`."""

_SPECIAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "job": (lambda value: type(value) is int and 0 <= value < 10**9, "a job number (0 or more)"),
    "status": (lambda value: value in STATUSES, either(STATUSES)),
    **{name: (lambda value: _is_text(value) and "\0" not in value, "a path") for name in ("folder", "checkpoint")},
    **{name: (_is_time, "an ISO 8601 time with a time zone") for name in ("started", "ended")},
    "cluster_job": (lambda value: _is_text(value) and bool(_CLUSTER_JOB.fullmatch(value)), "a SLURM job ID"),
}
"""Check of a value and description of the expected values, by field name, for fields with a special format."""
