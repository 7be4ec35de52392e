"""The record of a sweep is intact at any time, even if processes write at the same time or die."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_hydra.configs import ConfigError
from xlstm_hydra.sweep import Outcome, read_record, update_fields, update_record
from xlstm_hydra.sweep import _outcomes as outcomes

WRITER = """
import sys
from pathlib import Path
from xlstm_hydra.sweep import Outcome, update_record
folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
while True:
    for job in range(first, first + count):
        update_record(folder, [Outcome(job=job, status="completed", reason="x" * 500)])
    if "--for-ever" not in sys.argv:
        break
"""


def writer(folder, *arguments):
    """Start a process that writes jobs to the record."""
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), *map(str, arguments)])


FIELDS = st.builds(
    Outcome,
    job=st.integers(0, 20),
    overrides=st.lists(st.text(max_size=10), max_size=3),
    status=st.sampled_from(outcomes.STATUSES),
    reason=st.none() | st.text(),
    best=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)


@given(st.lists(st.lists(FIELDS, max_size=4), max_size=4))
@settings(max_examples=15, deadline=None)
def test_the_record_has_the_last_outcome_of_each_job_by_number(tmp_path_factory, batches):
    folder = tmp_path_factory.mktemp("sweep")
    update_record(folder, [])
    for batch in batches:
        update_record(folder, batch)
    last = {outcome.job: outcome for batch in batches for outcome in batch}
    assert read_record(folder) == [last[job] for job in sorted(last)]


def test_changing_a_field_keeps_the_others(tmp_path):
    update_record(tmp_path, [Outcome(job=3, overrides=["a=1"], status="running")])
    update_fields(tmp_path, {3: {"cluster_job": "17_3"}, 4: {"status": "lost"}})
    running, lost = read_record(tmp_path)
    assert (running.status, running.overrides, running.cluster_job) == ("running", ["a=1"], "17_3")
    assert (lost.job, lost.status) == (4, "lost")


def test_no_update_is_lost_if_processes_write_at_the_same_time(tmp_path):
    update_record(tmp_path, [Outcome(job=job) for job in range(40)])
    processes = [writer(tmp_path, first, 10) for first in range(0, 40, 10)]
    assert [process.wait() for process in processes] == [0] * 4
    assert [outcome.status for outcome in read_record(tmp_path)] == ["completed"] * 40


def test_killed_writers_leave_an_intact_record_that_others_can_update(tmp_path):
    update_record(tmp_path, [Outcome(job=job) for job in range(300)])
    process = writer(tmp_path, 0, 250, "--for-ever")
    while read_record(tmp_path)[0].status == "waiting":
        time.sleep(0.01)
    for _ in range(3):
        time.sleep(random.uniform(0.0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert [outcome.job for outcome in read_record(tmp_path)] == list(range(300))
        process = writer(tmp_path, 0, 250, "--for-ever")
    process.kill()
    process.wait()
    update_record(tmp_path, [Outcome(job=299, status="lost")])
    assert read_record(tmp_path)[299].status == "lost"
    outcomes.repair_record(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".sweep.lock", "sweep.jsonl"]


def no_locks(*_):
    raise OSError("no locks available")


def test_a_file_system_without_locks_is_supported(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    update_record(tmp_path, [Outcome(job=0, status="running")])
    assert read_record(tmp_path)[0].status == "running"


def test_a_lock_that_is_never_released_is_ignored_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(outcomes, "PATIENCE_SECONDS", 0.05)
    with outcomes._locked(tmp_path):
        update_record(tmp_path, [Outcome(job=0)])
    assert read_record(tmp_path)


def test_an_update_parses_none_of_the_jobs_that_it_does_not_change(tmp_path, monkeypatch):
    job = Outcome(job=0, overrides=[f"a.b.c{number}=1e-3" for number in range(9)], metrics=dict.fromkeys("abcdef", 1.0))
    update_record(tmp_path, [replace(job, job=number) for number in range(1000)])
    parsed = []
    monkeypatch.setattr(outcomes, "parse_outcome", lambda line: parsed.append(line) or Outcome(**json.loads(line)))
    update_record(tmp_path, [replace(job, job=3, status="running")])
    update_fields(tmp_path, {7: {"status": "lost"}})
    assert len(parsed) == 1  # 10 ms for a thousand


BAD = {"cut off": '{"job": 0, "over', "of a newer version": json.dumps({"job": 0, "colour": "red"})}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_record_that_cannot_be_read_is_reported(tmp_path, text):
    (tmp_path / "sweep.jsonl").write_text(text)
    with pytest.raises(ConfigError, match="its sweep.jsonl cannot be read"):
        read_record(tmp_path)


def lines_of(*changed, jobs=5):
    """Lines of a record of completed jobs, some of them replaced."""
    lines = [json.dumps({"job": job, "overrides": [f"a={job}"], "status": "completed"}) for job in range(jobs)]
    return [dict(changed).get(job, line) for job, line in enumerate(lines)]


DEEP = '{"job": 2, "overrides": ' + "[" * 5000 + "]" * 5000 + "}"
DAMAGED = {
    "overrides null": ('{"job": 2, "overrides": null}', "overrides: expected a list of strings, got null"),
    "overrides of numbers": ('{"job": 2, "overrides": [1]}', "overrides: expected a list of strings, got [1]"),
    "a job as text": ('{"job": "2"}', "job: expected a job number (0 or more), got '2'"),
    "a negative job": ('{"job": -2}', "job: expected a job number (0 or more), got -2"),
    "true as a job": ('{"job": true}', "job: expected a job number (0 or more), got true"),
    "no job": ('{"status": "failed"}', "job: missing"),
    "a list": ("[2]", "expected a JSON object, got a list"),
    "deep nesting": (DEEP, "nested too deeply to be an outcome"),
    "NaN": ('{"job": 2, "best": NaN}', "best: NaN is not JSON"),
    "a huge number": ('{"job": 2, "best": 1e999}', "best: 1e999 is too large for a number"),
    "many digits": ('{"job": 2, "steps": ' + "9" * 5000 + "}", "steps: a whole number of 5000 digits"),
    "duplicate keys": ('{"job": 2, "job": 3}', "job: duplicate key"),
    "an unknown field": ('{"job": 2, "colour": "red"}', "colour: no such field"),
    "an unknown status": ('{"job": 2, "status": "done"}', "status: expected waiting, running, completed"),
    "no time": (
        '{"job": 2, "started": "noon"}',
        "started: expected an ISO 8601 time with a time zone or null, got 'noon'",
    ),
    "a time without zone": (
        '{"job": 2, "ended": "2026-01-01T00:00:00"}',
        "ended: expected an ISO 8601 time with a time zone or null",
    ),
    "a shell command": ('{"job": 2, "cluster_job": "1; rm -rf ."}', "cluster_job: expected a SLURM job ID"),
    "metrics of text": (
        '{"job": 2, "metrics": {"loss": "x"}}',
        "metrics: expected an object that maps names to numbers",
    ),
    "a folder with a NUL character": (r'{"job": 2, "folder": "a\u0000b"}', "folder: expected a path or null"),
    "a checkpoint with a NUL character": (r'{"job": 2, "checkpoint": "\u0000"}', "checkpoint: expected a path or null"),
    "a NUL byte": ('{"job": 2, "reason": "\0"}', "not JSON: Invalid control character"),
    "bytes that are not UTF-8": (b'{"job": 2, "reason": "\xff"}', "not UTF-8: invalid start byte"),
    "half of a line": ('{"job": 2, "overr', "not JSON: Unterminated string"),
    "an empty line": ("", "not JSON: Expecting value at column 1"),
    "escape sequences": ('{"job": 2, "\\u001b[2Jx\\n": 1}', "\\x1b[2Jx\\n: no such field"),
    "the same job": ('{"job": 1}', "job 1 is already recorded on an earlier line"),
}


def write_lines(folder, lines, end=b"\n"):
    """Write a record with these lines."""
    data = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    (folder / "sweep.jsonl").write_bytes(data + end)


@pytest.mark.parametrize(("line", "words"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_reported_and_the_others_are_used(tmp_path, caplog, line, words):
    caplog.set_level("INFO", "xlstm_hydra")
    write_lines(tmp_path, lines_of((2, line)))
    assert [one.job for one in read_record(tmp_path)] == [0, 1, 3, 4]
    assert outcomes.repair_record(tmp_path) == 1
    assert "sweep.jsonl, line 3: " in caplog.text and words in caplog.text and "\x1b" not in caplog.text
    assert [one.job for one in read_record(tmp_path)] == [0, 1, 3, 4]
    kept = (tmp_path / "sweep.jsonl.damaged").read_bytes().split(b"\n")
    assert kept[2] == (line if isinstance(line, bytes) else line.encode()) and outcomes.repair_record(tmp_path) == 0


def test_a_damaged_line_stays_in_its_place_until_it_is_reported(tmp_path, caplog):
    write_lines(tmp_path, lines_of((2, b"\xff"), (3, "{")))
    update_record(tmp_path, [Outcome(job=4, status="failed"), Outcome(job=7)])
    assert [(one.job, one.status) for one in read_record(tmp_path)][2:] == [(4, "failed"), (7, "waiting")]
    assert outcomes.repair_record(tmp_path) == 2
    assert "line 3: not JSON" in caplog.text and "line 4: not JSON" in caplog.text


def test_a_truncated_last_line_is_logged_once(tmp_path, caplog):
    caplog.set_level("INFO", "xlstm_hydra")
    write_lines(tmp_path, [*lines_of(), '{"job": 5, "over'], end=b"")
    assert outcomes.repair_record(tmp_path) == 1 and [one.job for one in read_record(tmp_path)] == list(range(5))
    (note,) = caplog.records
    assert note.levelname == "INFO" and "line 6: truncated (was the process killed?)" in note.getMessage()
    assert not (tmp_path / "sweep.jsonl.damaged").exists()


@pytest.mark.parametrize(("line", "_"), DAMAGED.values(), ids=DAMAGED)
def test_an_update_of_the_job_of_a_damaged_line_replaces_it(tmp_path, line, _):
    write_lines(tmp_path, lines_of((2, line)))
    update_fields(tmp_path, {2: {"status": "lost"}})
    found = {one.job: one for one in read_record(tmp_path)}
    assert found[2].status == "lost" and found[3].overrides == ["a=3"]
    assert outcomes.find_outcome(tmp_path, 2) == found[2]
