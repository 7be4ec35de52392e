"""The exit status of a sweep is that of its worst job: a failed job outweighs one that can be resumed."""

import itertools
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

import pytest

from xlstm_hydra.configs import ConfigError, Problem
from xlstm_hydra.preemption import Preempted
from xlstm_hydra.runs import hold_folder
from xlstm_hydra.sweep import STATUSES, Outcome, finish_sweep, read_record, start_sweep, update_record

WORST_FIRST = [
    *(("failed", 1), ("lost", 1), ("refused", 2), ("interrupted", 1), ("preempted", 75)),
    *(("running", 1), ("waiting", 1), ("completed", 0)),
]
"""Statuses of jobs, each with the exit status of a sweep that has none before it in this list."""


@pytest.fixture
def status_of(tmp_path, monkeypatch):
    """Return the exit status of a sweep whose jobs have these statuses, and which may have ended with an error."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # no plots
    numbers = itertools.count()

    def finish(*statuses, error=None):
        folder = tmp_path / str(next(numbers))
        start_sweep(folder, [[f"trainer.seed={job}"] for job in range(len(statuses))])
        update_record(folder, [Outcome(job=job, status=status) for job, status in enumerate(statuses)])
        with ExitStack() as held:
            for job in (job for job, status in enumerate(statuses) if status == "running"):
                (folder / str(job)).mkdir()
                held.enter_context(hold_folder(folder / str(job)))
            return finish_sweep(folder, error)

    return finish


def test_every_status_has_a_rank():
    assert {status for status, _ in WORST_FIRST} | {"invalid"} == {*STATUSES}


@pytest.mark.parametrize(
    "statuses", list(itertools.combinations_with_replacement(dict(WORST_FIRST), 2)), ids=" and ".join
)
def test_the_worse_of_two_jobs_determines_the_status(statuses, status_of):
    worst = next(status for name, status in WORST_FIRST if name in statuses)
    for order in itertools.permutations(statuses):
        assert status_of(*order) == worst
        assert status_of(*order, "invalid") == worst


ENDS = {
    "Ctrl-C": (KeyboardInterrupt(), 130, 130),
    "SIGTERM": (Preempted("SIGTERM"), 75, 75),
    "a launcher that gives up": (ConfigError([Problem.about("a", "b")]), 2, 1),
    "a full disk": (OSError("no space left"), 1, 1),
    "a bug": (ZeroDivisionError(), 1, 1),
}


@pytest.mark.parametrize(("error", "completed", "lost"), ENDS.values(), ids=ENDS)
def test_a_signal_that_ends_the_sweep_determines_its_status(error, completed, lost, status_of):
    assert status_of("completed", error=error) == completed
    assert status_of("completed", "lost", "preempted", error=error) == lost


def test_skipped_points_are_not_a_failure_unless_all_are_skipped(status_of):
    assert status_of("completed", "invalid") == 0
    assert status_of("invalid", "invalid") == 2


def test_lost_and_cancelled_jobs_are_in_the_table(tmp_path, capsys):
    start_sweep(tmp_path / "sweep", [["trainer.seed=0"], ["trainer.seed=1"]])
    lost = Outcome(job=0, overrides=["trainer.seed=0"], status="running", reason="SLURM job 7_0 ended as OUT_OF_MEMORY")
    cancelled = Outcome(job=1, overrides=["trainer.seed=1"], status="interrupted", reason="SLURM job 7_1: CANCELLED")
    update_record(tmp_path / "sweep", [lost, cancelled])
    assert finish_sweep(tmp_path / "sweep") == 1
    printed = capsys.readouterr()
    assert "2 jobs: 1 interrupted, 1 lost" in printed.out
    assert "lost: SLURM job 7_0 ended as OUT_OF_MEMORY" in printed.err
    assert "interrupted: SLURM job 7_1: CANCELLED" in printed.err
    assert [one.status for one in read_record(tmp_path / "sweep")] == ["lost", "interrupted"]


@pytest.mark.parametrize("kind", [OSError, BrokenProcessPool], ids=["a disk", "a worker"])
def test_a_system_error_that_ends_a_sweep_is_reported_in_one_line(kind, tmp_path, capsys):
    start_sweep(tmp_path / "sweep", [["trainer.seed=0"]])
    assert finish_sweep(tmp_path / "sweep", kind("no space left\nand more")) == 1
    printed = capsys.readouterr().err
    assert "the sweep ended early: no space left\n" in printed and "Traceback" not in printed


@pytest.fixture
def full_disk(monkeypatch):
    """Make every later write to a new file fail."""
    opened = Path.open

    def open_full(file, mode="r", *arguments, **options):
        is_new = mode.startswith("x")
        return opened(Path("/dev/full") if is_new else file, "w" if is_new else mode, *arguments, **options)

    return lambda: monkeypatch.setattr(Path, "open", open_full)


def test_a_record_that_cannot_be_written_does_not_hide_how_the_jobs_ended(tmp_path, full_disk, capsys):
    start_sweep(tmp_path / "sweep", [["trainer.seed=0"], ["trainer.seed=1"]])
    jobs = [
        Outcome(job=0, overrides=["trainer.seed=0"], status="failed", reason="saving step 6 failed"),
        Outcome(job=1, overrides=["trainer.seed=1"], status="completed", best=2.5),
    ]
    update_record(tmp_path / "sweep", jobs)
    full_disk()
    assert finish_sweep(tmp_path / "sweep") == 1
    printed = capsys.readouterr()
    assert "2 jobs: 1 completed, 1 failed" in printed.out and "failed: saving step 6 failed" in printed.err
    for name in ("sweep.csv", "sweep.jsonl"):
        assert f"{tmp_path}/sweep/{name} cannot be written: No space left on device\n" in printed.err
    assert "written:" not in printed.out and "Traceback" not in printed.err


def test_a_sweep_whose_record_cannot_be_written_does_not_succeed(tmp_path, full_disk):
    start_sweep(tmp_path / "sweep", [["trainer.seed=0"]])
    update_record(tmp_path / "sweep", [Outcome(job=0, overrides=["trainer.seed=0"], status="completed", best=2.5)])
    full_disk()
    assert finish_sweep(tmp_path / "sweep") == 1
