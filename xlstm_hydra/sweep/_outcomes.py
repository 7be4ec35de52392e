"""The outcome of each job of a sweep, in its own folder and in one file of the sweep.

Each job writes its outcome to `outcome.json` in its folder and to its line of `sweep.jsonl` in the folder of the sweep.
If two jobs that cannot lock the file write at once, or a job dies, the process that sweeps completes the file at the
end from the folders of the jobs. A damaged line is reported with its number, and the others are used.
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
"""Held while the record is changed."""

PATIENCE_SECONDS = 30.0
"""How long a job waits for the lock. One that is never let go, as by a host that hangs, must not hang the others."""

WAITING, RUNNING, COMPLETED, FAILED, REFUSED = "waiting", "running", "completed", "failed", "refused"
PREEMPTED, INTERRUPTED, LOST, INVALID = "preempted", "interrupted", "lost", "invalid"

STATUSES = (WAITING, RUNNING, COMPLETED, FAILED, REFUSED, PREEMPTED, INTERRUPTED, LOST, INVALID)
"""Lost is a job that ended without a word, as by SIGKILL; invalid is a point that was never launched."""

_JOB = re.compile(r'\{"job": ([0-9]{1,9}),')
"""How a line begins."""

_FEW = 5
"""Damaged lines that are reported one by one."""


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


class Fault(NamedTuple):
    """A line of a record that cannot be used."""

    line: int
    text: str
    is_cut: bool = False
    """True for a last line without its end, as a kill may leave it."""

    def __str__(self) -> str:
        return f"line {self.line}: {printable(self.text)}"


def read_record(folder: Path) -> list[Outcome]:
    """The outcomes in the folder of a sweep, by the number of the job. Lines that are damaged are left out.

    Raises:
        ConfigError: it has no record, or none of its lines can be read.
    """
    try:
        outcomes, faults = scan_record(folder)
    except FileNotFoundError:
        text, fix = f"there is no {RECORD_FILE} in it", "Give the folder of a sweep, which -m tells at its end."
    except OSError as error:
        text, fix = f"its {RECORD_FILE} cannot be read: {error.strerror}", ""
    else:
        if outcomes or not faults:
            return outcomes
        text, fix = f"its {RECORD_FILE} cannot be read: {'; '.join(map(str, faults[:_FEW]))}", ""
    raise ConfigError([Problem.about(f"hydra.sweep.dir={folder}", text, fix)])


def scan_record(folder: Path) -> tuple[list[Outcome], list[Fault]]:
    """The outcomes in the record of a sweep, by the number of the job, and the lines that are damaged."""
    return _scanned((folder / RECORD_FILE).read_bytes())


def repair_record(folder: Path) -> int:
    """Report the damaged lines of a record and take them out of it, and delete what writers that died have left. The
    file as it was is kept beside it, unless its last line is cut off and nothing else is wrong. Returns the number of
    damaged lines."""
    file = folder / RECORD_FILE
    with _locked(folder):
        for leftover in folder.glob(f".{RECORD_FILE}.*"):
            leftover.unlink(missing_ok=True)
        data = file.read_bytes()
        outcomes, faults = _scanned(data)
        if not faults:
            return 0
        for fault in faults[:_FEW]:
            (log.info if fault.is_cut else log.warning)("%s, %s; it is left out", file, fault)
        if len(faults) > _FEW:
            log.warning("%s: %d more lines are damaged", file, len(faults) - _FEW)
        if not all(fault.is_cut for fault in faults):
            aside = file.with_name(f"{RECORD_FILE}.damaged")
            aside.unlink(missing_ok=True)
            with aside.open("xb") as stream:
                stream.write(data)
            log.warning("the record as it was is kept in %s", aside)
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
            faults.append(Fault(number, "it is cut off, as by a kill" if is_cut else str(error), is_cut))
            continue
        if outcome.job in outcomes:
            faults.append(Fault(number, f"job {outcome.job} has a line above already"))
        else:
            outcomes[outcome.job] = outcome
    return [outcomes[job] for job in sorted(outcomes)], faults


def find_outcome(folder: Path, job: int) -> Outcome | None:
    """Return the outcome of a job; None if there is none that can be read."""
    return _readable(next((line for number, line in _rows(folder) if number == job), None))


def update_record(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Put outcomes into the record of a sweep, in the place of older ones of the same jobs. Any process may do it."""
    _rewrite(folder, lambda lines: {outcome.job: _line(outcome) for outcome in outcomes})


def update_fields(folder: Path, changes: Mapping[int, Mapping[str, Any]]) -> None:
    """Change single fields of jobs, whatever the jobs themselves write meanwhile: `{3: {"cluster_job": "1234_3"}}`."""

    def changed(lines: Mapping[int, str]) -> dict[int, str]:
        known = {job: _readable(lines.get(job)) or Outcome(job=job) for job in changes}
        return {job: _line(replace(known[job], **change)) for job, change in changes.items()}

    _rewrite(folder, changed)


def parse_outcome(line: str | bytes) -> Outcome:
    """Parse an outcome.

    Raises:
        Damaged: a sweep has not written it.
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
    """Change lines of the record. The others are not parsed: a thousand of them would take 10 ms. Damaged lines stay
    until the process that sweeps reports them."""
    with _locked(folder):
        rows = _rows(folder)
        changed = dict(change({job: line for job, line in rows if job is not None}))
        lines = [line if job is None else changed.pop(job, line) for job, line in rows]
        lines += [changed[job] for job in sorted(changed)]
        replace_file(folder / RECORD_FILE, "".join(f"{line}\n" for line in lines))


def _rows(folder: Path) -> list[tuple[int | None, str]]:
    """The lines of a record, each with the job that it is about; None if it is damaged."""
    file, seen = folder / RECORD_FILE, set[int]()
    text = file.read_bytes().decode("utf-8", "backslashreplace") if file.exists() else ""
    rows = list[tuple[int | None, str]]()
    for line in text.removesuffix("\n").split("\n") if text else ():
        job = _job_of(line)
        rows.append((None if job in seen else job, line))
        seen |= set() if job is None else {job}
    return rows


def _job_of(line: str) -> int | None:
    """Return the job that a line is about, which is its first field; None if it is damaged."""
    if found := _JOB.match(line):
        return int(found[1])
    outcome = _readable(line)
    return None if outcome is None else outcome.job


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing the record. If the file system has no locks, or one is never released, it is
    changed without: what is lost then is found again in the folders of the jobs."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with open_lock(folder / RECORD_LOCK) as file:
        with suppress(OSError):
            while not lock(file):
                if time.monotonic() > deadline:
                    log.warning("%s has been locked for %.0f s; going on without", file.name, PATIENCE_SECONDS)
                    break
                time.sleep(random.uniform(0.001, 0.01))
        yield


# ---- strict JSON


class Damaged(ValueError):
    """Text that a sweep has not written. The message says in one line what is wrong with it."""


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
    """The fields of an outcome that are unknown, missing or of another type."""
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
"""How values are checked, and what messages call them, by the annotation of a field without `| None`."""

_SPECIAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "job": (lambda value: type(value) is int and 0 <= value < 10**9, "the number of a job"),
    "status": (lambda value: value in STATUSES, either(STATUSES)),
    **{name: (lambda value: _is_text(value) and "\0" not in value, "a path") for name in ("folder", "checkpoint")},
    **{name: (_is_time, "a time") for name in ("started", "ended")},
    "cluster_job": (lambda value: _is_text(value) and bool(_CLUSTER_JOB.fullmatch(value)), "the number of a SLURM job"),
}
"""The same for fields whose values have a form, by name."""
