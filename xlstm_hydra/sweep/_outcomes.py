"""The outcome of each job of a sweep, in its own folder and in one file of the sweep.

Each job writes its outcome to `outcome.json` in its folder and to its line of `sweep.jsonl` in the folder of the sweep.
If two jobs that cannot lock the file write at once, or a job dies, the sweeping process completes the file at the end
from the folders of the jobs. A damaged line is reported with its number, and the others are used.
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
"""One line of JSON for each job, in the folder of the sweep."""

RECORD_LOCK = ".sweep.lock"
"""Locked while the record is changed."""

PATIENCE_SECONDS = 30.0
"""Longest wait for the lock. A lock that is never released, as by a host that hangs, must not block the other jobs."""

WAITING, RUNNING, COMPLETED, FAILED, REFUSED = "waiting", "running", "completed", "failed", "refused"
PREEMPTED, INTERRUPTED, LOST, INVALID = "preempted", "interrupted", "lost", "invalid"

STATUSES = (WAITING, RUNNING, COMPLETED, FAILED, REFUSED, PREEMPTED, INTERRUPTED, LOST, INVALID)
"""Lost: exited without recording its end, for example by SIGKILL. Invalid: a point that was not launched."""

_JOB = re.compile(r'\{"job": ([0-9]{1,9}),')
"""Start of a line."""

_FEW = 5
"""Number of damaged lines that are reported one by one."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The status and the results of a job of a sweep."""

    job: int
    """Its number, from 0, after which its folder is named."""
    overrides: list[str] = field(default_factory=list)
    """Overrides of its point."""
    status: str = WAITING
    """One of `STATUSES`."""
    reason: str | None = None
    """Reason why it is not completed, in one line."""
    task: str | None = None
    """Its task: train, evaluate, generate or plan."""
    folder: str | None = None
    """Its folder, relative to that of the sweep; null until it starts."""
    metric: str | None = None
    """The metric in `best`: validation_loss, or loss if there is no validation, both in nats; step_seconds for a
    plan."""
    best: float | None = None
    """Lowest value of the metric."""
    best_step: int | None = None
    """Step with the lowest value."""
    steps: int | None = None
    """Number of completed steps, as far as they are logged."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """Last value of each column of `metrics.csv`."""
    tokens_per_second: float | None = None
    """Median of the logged values."""
    checkpoint: str | None = None
    """Newest checkpoint, relative to the folder of the sweep."""
    result: float | None = None
    """Return value of the task: the last validation loss of a training run, or the seconds of a planned step."""
    started: str | None = None
    """Time of its last start, in ISO 8601."""
    ended: str | None = None
    """Time of its end, in ISO 8601."""
    cluster_job: str | None = None
    """ID of its SLURM job, such as 1234_5."""


def now() -> str:
    """Return the current time in UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Fault(NamedTuple):
    """A damaged line of a record."""

    line: int
    text: str
    is_cut: bool = False
    """True for a truncated last line, as left by a killed process."""

    def __str__(self) -> str:
        return f"line {self.line}: {printable(self.text)}"


def read_record(folder: Path) -> list[Outcome]:
    """Read the outcomes in the folder of a sweep, in the order of the jobs. Damaged lines are skipped.

    Raises:
        ConfigError: the folder has no record, or none of its lines can be read.
    """
    try:
        outcomes, faults = scan_record(folder)
    except FileNotFoundError:
        text, fix = f"has no {RECORD_FILE}", "Choose the folder of a sweep. -m prints it at the end."
    except OSError as error:
        text, fix = f"its {RECORD_FILE} cannot be read: {error.strerror}", ""
    else:
        if outcomes or not faults:
            return outcomes
        text, fix = f"its {RECORD_FILE} cannot be read: {'; '.join(map(str, faults[:_FEW]))}", ""
    raise ConfigError([Problem.about(f"hydra.sweep.dir={folder}", text, fix)])


def scan_record(folder: Path) -> tuple[list[Outcome], list[Fault]]:
    """Read the outcomes in the record of a sweep, in the order of the jobs, and its damaged lines."""
    return _scanned((folder / RECORD_FILE).read_bytes())


def repair_record(folder: Path) -> int:
    """Report the damaged lines of a record and remove them, and delete the temporary files of processes that died. Keep
    a copy of the damaged file, unless only its last line is truncated. Return the number of damaged lines."""
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
            log.warning("the damaged record is kept in %s", aside)
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
            faults.append(Fault(number, "truncated, as by a killed process" if is_cut else str(error), is_cut))
            continue
        if outcome.job in outcomes:
            faults.append(Fault(number, f"job {outcome.job} has an earlier line"))
        else:
            outcomes[outcome.job] = outcome
    return [outcomes[job] for job in sorted(outcomes)], faults


def find_outcome(folder: Path, job: int) -> Outcome | None:
    """Return the recorded outcome of a job; None if there is none or it is damaged."""
    return _readable(next((line for number, line in _rows(folder) if number == job), None))


def update_record(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write outcomes to the record of a sweep, replacing those of the same jobs. Any process may call this."""
    _rewrite(folder, lambda lines: {outcome.job: _line(outcome) for outcome in outcomes})


def update_fields(folder: Path, changes: Mapping[int, Mapping[str, Any]]) -> None:
    """Change single fields of jobs, such as `{3: {"cluster_job": "1234_3"}}`, while the jobs may write others."""

    def changed(lines: Mapping[int, str]) -> dict[int, str]:
        known = {job: _readable(lines.get(job)) or Outcome(job=job) for job in changes}
        return {job: _line(replace(known[job], **change)) for job, change in changes.items()}

    _rewrite(folder, changed)


def parse_outcome(line: str | bytes) -> Outcome:
    """Parse an outcome.

    Raises:
        Damaged: it was not written by a sweep.
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
    """Change lines of the record. The other lines are not parsed, because a thousand of them would take 10 ms. Damaged
    lines stay until the sweeping process reports them."""
    with _locked(folder):
        rows = _rows(folder)
        changed = dict(change({job: line for job, line in rows if job is not None}))
        lines = [line if job is None else changed.pop(job, line) for job, line in rows]
        lines += [changed[job] for job in sorted(changed)]
        replace_file(folder / RECORD_FILE, "".join(f"{line}\n" for line in lines))


def _rows(folder: Path) -> list[tuple[int | None, str]]:
    """The lines of a record, each with the number of its job; None if it is damaged."""
    file, seen = folder / RECORD_FILE, set[int]()
    text = file.read_bytes().decode("utf-8", "backslashreplace") if file.exists() else ""
    rows = list[tuple[int | None, str]]()
    for line in text.removesuffix("\n").split("\n") if text else ():
        job = _job_of(line)
        rows.append((None if job in seen else job, line))
        seen |= set() if job is None else {job}
    return rows


def _job_of(line: str) -> int | None:
    """Return the job number in a line, usually its first field; None if the line is damaged."""
    if found := _JOB.match(line):
        return int(found[1])
    outcome = _readable(line)
    return None if outcome is None else outcome.job


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing the record. If the file system has no locks, or a lock is never released,
    continue without it: changes that get lost are recovered from the folders of the jobs."""
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
    """Text that was not written by a sweep. The message describes the fault in one line."""


def read_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object, which may be damaged or come from someone else.

    Args:
        text: the text.
        what: the object, for messages.

    Raises:
        Damaged: the text is not JSON, or not an object.
    """
    try:
        return parse(text, what, fix="")
    except ConfigError as error:
        text = "; ".join(str(problem) for problem in error.problems)
        raise Damaged(text.replace(" at line 1, column", " at column")) from None


def _faults(content: Mapping[str, Any]) -> Iterator[str]:
    """Unknown, missing and wrongly typed fields of an outcome, as messages."""
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
        "names with numbers",
    ),
}
"""Check of a value and its name in messages, by the annotation of the field without `| None`."""

_SPECIAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "job": (lambda value: type(value) is int and 0 <= value < 10**9, "the number of a job"),
    "status": (lambda value: value in STATUSES, either(STATUSES)),
    **{name: (lambda value: _is_text(value) and "\0" not in value, "a path") for name in ("folder", "checkpoint")},
    **{name: (_is_time, "a time") for name in ("started", "ended")},
    "cluster_job": (lambda value: _is_text(value) and bool(_CLUSTER_JOB.fullmatch(value)), "the number of a SLURM job"),
}
"""The same by field name, for fields with a special format."""
