"""The record of a sweep, its report at the end, and its exit status."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
from command import run_command
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus

import xlstm_hydra.inference
import xlstm_hydra.train
from xlstm_hydra.configs import ConfigError, Problem
from xlstm_hydra.preemption import Preempted
from xlstm_hydra.runs import hold_folder
from xlstm_hydra.sweep import (
    STATUSES,
    Outcome,
    finish_sweep,
    read_record,
    record_job,
    start_sweep,
    update_fields,
    update_record,
)

UNPLANNED = "trainer.ignore_plan=true"
"""Nothing is trained here, so nothing need fit."""

COLUMNS = ("step", "loss", "validation_loss", "tokens_per_second")
ROWS = [
    (1, 5.5, None, None),
    (10, 3.0, None, 100.0),
    (10, None, 3.5, None),
    (20, 2.0, None, 300.0),
    (20, None, 3.7, None),
]


def write_metrics(folder, rows=ROWS):
    """Write the metrics of a training run to its folder."""
    with (Path(folder) / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def save(folder, step):
    """Make a folder that is taken for a checkpoint."""
    (Path(folder) / "checkpoints" / str(step)).mkdir(parents=True)


@pytest.fixture(autouse=True)
def endings(tmp_path, monkeypatch):
    """The end of the training of each seed: a loss or an error. Nothing is trained."""
    found = {}

    def train(run, folder, overrides):
        write_metrics(folder)
        save(folder, 20)
        ending = found.get(run.trainer.seed, 3.7)
        if isinstance(ending, BaseException):
            raise ending
        return ending(folder) if callable(ending) else ending

    monkeypatch.setattr(xlstm_hydra.train, "train", train)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # no plots
    monkeypatch.chdir(tmp_path)
    return found


def sweep(*arguments, seeds="0,1,2"):
    return run_command("-m", f"trainer.seed={seeds}", "hydra.sweep.dir=sweep", UNPLANNED, *arguments)


def record():
    return read_record(Path("sweep"))


def test_each_job_has_its_metrics_and_its_checkpoint_in_one_line_of_the_record():
    done = sweep()
    assert done.status == 0
    lines = [json.loads(line) for line in Path("sweep/sweep.jsonl").read_text().splitlines()]
    assert [(line["job"], line["overrides"][0], line["folder"]) for line in lines] == [
        (job, f"trainer.seed={job}", str(job)) for job in range(3)
    ]
    for line in lines:
        assert (line["status"], line["task"], line["reason"]) == ("completed", "train", None)
        assert (line["metric"], line["best"], line["best_step"], line["steps"]) == ("validation_loss", 3.5, 10, 20)
        assert (line["tokens_per_second"], line["result"], line["metrics"]["loss"]) == (200.0, 3.7, 2.0)
        assert line["checkpoint"] == f"{line['job']}/checkpoints/20"
        assert line["started"] <= line["ended"]
    assert json.loads(Path("sweep/1/outcome.json").read_text()) == lines[1]


def test_all_jobs_are_recorded_as_waiting_from_the_start(endings):
    seen = []
    endings[1] = lambda folder: seen.extend(outcome.status for outcome in record())
    sweep()
    assert seen == ["completed", "running", "waiting"]


def test_the_table_lists_the_best_job_first_and_only_differing_overrides(endings):
    endings[2] = lambda folder: write_metrics(folder, [(20, 1.0, 1.5, None)])
    done = sweep("parallel=dp")
    rows = [line.split() for line in done.out.splitlines() if line.strip()[:1].isdigit()]
    assert done.out.splitlines()[1] == "3 jobs: 3 completed (best: lowest validation_loss)"
    assert [row[0] for row in rows[1:]] == ["2", "0", "1"] and "parallel" not in done.out
    assert rows[1][:6] == ["2", "trainer.seed=2", "completed", "1.5000", "20", "20"]
    assert re.fullmatch(r"0:\d\d", rows[1][6]) and rows[1][7] == "2/checkpoints/20"


CONDITIONS = {
    "a diverged loss": (FloatingPointError("loss of step 21 is nan"), "loss of step 21 is nan"),
    "a full disk": (OSError(28, "No space left on device", "x"), "'x': No space left on device."),
}


@pytest.mark.parametrize(("error", "words"), CONDITIONS.values(), ids=CONDITIONS)
def test_a_job_ended_by_a_system_error_shows_a_message_without_a_traceback(endings, error, words):
    Path("sweep/1").mkdir(parents=True)
    Path("sweep/1/error.txt").write_text("that of an earlier attempt")
    endings[1] = error
    done = sweep()
    assert (done.status, record()[1].status) == (1, "failed")
    assert f"job 1 (trainer.seed=1): failed: {words}" in done.err
    assert "Traceback" not in done.err and "earlier" not in done.err and not Path("sweep/1/error.txt").exists()


def test_a_failed_job_shows_its_traceback_and_last_metrics_and_other_jobs_are_listed(endings):
    endings[1] = ValueError("a bug at step 21")
    done = sweep()
    assert done.status == 1
    assert [outcome.status for outcome in record()] == ["completed", "failed", "completed"]
    assert "job 1 (trainer.seed=1): failed: ValueError: a bug at step 21" in done.err
    assert "last metrics: step 20, loss 2, tokens_per_second 300, validation_loss 3.7" in done.err
    assert "Traceback (most recent call last)" in done.err and "in train" in done.err
    assert "ValueError" in Path("sweep/1/error.txt").read_text()
    assert "to run the missing and failed jobs: xlstm-hydra resume_sweep=sweep" in done.err


def test_equal_errors_are_reported_once(endings):
    endings.update({seed: ValueError("the same") for seed in (0, 2)})
    done = sweep()
    assert done.err.count("Traceback") == 1 and "jobs 0, 2: failed: ValueError: the same" in done.err


REFUSED = ConfigError([Problem({"trainer.seed": 1}, "not on this machine")])
ENDINGS = {
    "refused": (REFUSED, 2, "refused"),
    "failed": (OSError("disk full"), 1, "failed"),
    "left": (SystemExit(3), 1, "failed"),
}


@pytest.mark.parametrize(("error", "status", "word"), ENDINGS.values(), ids=ENDINGS)
def test_the_other_jobs_run_if_one_job_fails(endings, error, status, word):
    endings[1] = error
    if word != "left":
        assert sweep().status == status
        assert record()[1].status == word and record()[0].status == "completed"


STOPS = {
    "interrupted": (KeyboardInterrupt("resume=sweep/1 goes on"), 130, "interrupted"),
    "preempted": (SystemExit(75), 75, "preempted"),
}


@pytest.mark.parametrize(("error", "status", "word"), STOPS.values(), ids=STOPS)
def test_an_interrupted_sweep_is_recorded_and_prints_the_command_that_resumes_it(endings, error, status, word):
    endings[1] = error
    done = sweep()
    assert done.status == status
    assert [outcome.status for outcome in record()] == ["completed", word, "waiting"]
    assert "3 jobs: 1 waiting, 1 completed" in done.out
    assert "the sweep was interrupted" in done.err and "xlstm-hydra resume_sweep=sweep" in done.err


def test_a_second_sweep_into_the_folder_is_refused_and_loses_nothing(endings):
    sweep()
    before = {file: file.read_bytes() for file in Path("sweep").rglob("*") if file.is_file()}
    done = sweep(seeds="7,8")
    assert done.status == 2
    assert "already contains a sweep with 3 jobs, 3 of them completed" in done.err
    assert "To run the missing and failed jobs: xlstm-hydra resume_sweep=sweep" in done.err
    after = {file: file.read_bytes() for file in before if file.name != "multirun.yaml"}
    assert after.items() <= before.items()


def test_a_sweep_in_a_folder_where_another_process_sweeps_is_refused(tmp_path):
    start_sweep(tmp_path / "sweep", [["trainer.seed=1"]])
    try:
        with pytest.raises(ConfigError, match="a sweep is already running in this folder"):
            start_sweep(tmp_path / "sweep", [["trainer.seed=1"]], resume=True)
    finally:
        finish_sweep(tmp_path / "sweep")


def test_evaluations_are_recorded_too(monkeypatch):
    monkeypatch.setattr(xlstm_hydra.inference, "evaluate", lambda run, folder, overrides: 2.5)
    done = run_command("-m", "task=evaluate", "task.checkpoint=run", "trainer.seed=1,2", "hydra.sweep.dir=sweep")
    assert done.status == 0, done.err
    assert {(one.task, one.metric, one.best, one.result) for one in record()} == {("evaluate", "loss", 2.5, 2.5)}


def test_sweeps_of_hydras_own_sweeper_are_recorded_too():
    done = sweep("hydra/sweeper=basic")
    assert done.status == 0, done.err
    assert [outcome.status for outcome in record()] == ["completed"] * 3


def test_every_field_and_every_status_is_documented():
    page = (Path(__file__).resolve().parents[2] / "docs" / "explanations" / "sweeps.md").read_text(encoding="utf-8")
    names = [*STATUSES, *(field.name for field in dataclasses.fields(Outcome))]
    assert [name for name in names if f"`{name}`" not in page] == []


# ---- outcomes that are only in the folders of the jobs


def running(folder, job, error=None):
    """A running job, which may end with an error."""
    (folder / str(job)).mkdir(parents=True)
    return record_job(folder, folder / str(job), job, [f"trainer.seed={job}"], "train")


def test_a_dead_job_is_lost_and_one_that_locks_its_folder_is_running(tmp_path, capsys):
    folder = tmp_path / "sweep"
    start_sweep(folder, [["trainer.seed=0"], ["trainer.seed=1"]])
    jobs = [running(folder, job) for job in (0, 1)]
    for job in jobs:
        job.__enter__()
    update_fields(folder, {0: {"reason": "OUT_OF_MEMORY"}})
    write_metrics(folder / "0")
    with hold_folder(folder / "1"):
        assert finish_sweep(folder, KeyboardInterrupt()) == 130
    lost, alive = read_record(folder)
    assert (lost.status, lost.reason, lost.best, alive.status) == ("lost", "OUT_OF_MEMORY", 3.5, "running")
    told = capsys.readouterr()
    assert "still running or queued: job 1" in told.out and "lost: OUT_OF_MEMORY" in told.err


def test_running_cluster_jobs_are_listed_with_the_command_that_cancels_them(tmp_path, capsys, monkeypatch):
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\nprintf '17_0|RUNNING|None\\n17_1|PENDING|Resources\\n17_2|COMPLETING|None\\n'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "sweep"
    points = [[f"trainer.seed={job}"] for job in range(3)]
    start_sweep(folder, points)
    update_record(folder, [Outcome(job=job, overrides=points[job], cluster_job=f"17_{job}") for job in range(3)])
    assert finish_sweep(folder, KeyboardInterrupt()) == 130
    assert "still running or queued: jobs 0, 1\nto cancel the SLURM jobs: scancel 17_0 17_1" in capsys.readouterr().out
    assert start_sweep(folder, points, resume=True) == [2]
    finish_sweep(folder)


def test_a_job_that_failed_before_it_could_record_anything_has_its_error(monkeypatch):
    instantiate = Plugins.instantiate_launcher

    def with_one_broken_process(plugins, **given):
        launcher = instantiate(plugins, **given)
        launch, error = launcher.launch, ImportError("no module of that name")
        broken = JobReturn(status=JobStatus.FAILED, _return_value=error)
        launcher.launch = lambda points, initial_job_idx: [*launch(points[:1], initial_job_idx), broken]
        return launcher

    monkeypatch.setattr(Plugins, "instantiate_launcher", with_one_broken_process)
    done = sweep(seeds="0,1")
    assert (done.status, [one.status for one in record()]) == (1, ["completed", "failed"])
    assert "job 1 (trainer.seed=1): failed: ImportError: no module of that name" in done.err


def test_updates_lost_in_a_race_are_restored_from_the_folders_of_the_jobs(tmp_path):
    folder = tmp_path / "sweep"
    points = [[f"trainer.seed={job}"] for job in range(2)]
    start_sweep(folder, points)
    for job in range(2):
        with running(folder, job) as own:
            own.result = 1.5
    update_record(folder, [Outcome(job=job, overrides=point) for job, point in enumerate(points)])
    assert finish_sweep(folder) == 0
    assert [(one.status, one.result, one.overrides) for one in read_record(folder)] == [
        ("completed", 1.5, point) for point in points
    ]


def test_a_job_continues_if_its_outcome_cannot_be_written(tmp_path):
    (tmp_path / "sweep" / "0").mkdir(parents=True)
    (tmp_path / "sweep" / "sweep.jsonl").mkdir()
    with record_job(tmp_path / "sweep", tmp_path / "sweep" / "0", 0, []) as own:
        own.result = 1.0
    assert json.loads((tmp_path / "sweep" / "0" / "outcome.json").read_text())["status"] == "completed"


def test_a_job_that_recorded_its_preemption_is_not_lost(tmp_path):
    (tmp_path / "0").mkdir()
    with pytest.raises(Preempted), record_job(tmp_path, tmp_path / "0", 0, ["a=1"]):
        raise Preempted("SIGTERM: saved step 3")
    update_fields(tmp_path, {0: {"status": "running", "reason": "SLURM job 1_0 ended as FAILED"}})
    assert finish_sweep(tmp_path) == 75
    assert [outcome.status for outcome in read_record(tmp_path)] == ["preempted"]


def test_a_damaged_row_of_metrics_is_reported_and_the_others_are_used(endings):
    def damage(folder):
        with (Path(folder) / "metrics.csv").open("a") as file:
            file.write("30,\x1b[2J\n")

    endings[1] = damage
    done = sweep(seeds="0,1")
    assert record()[1].best == 3.5 and record()[1].steps == 20
    assert f"{Path('sweep/1/metrics.csv').absolute()}, line 7: expected 4 values, got 2; skipped" in done.err
    assert "\x1b" not in done.err + done.out


def test_a_foreign_record_cannot_send_escape_sequences_to_the_terminal(endings):
    endings[1] = ValueError("\x1b[2J\u202e evil")
    sweep(seeds="0,1")
    lines = [json.loads(line) for line in Path("sweep/sweep.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"overrides": [*line["overrides"], f"data.path={line['job']}\x1b[31m\n日本"], "metric": "\u202eloss"}
    Path("sweep/sweep.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    Path("sweep/1/error.txt").write_text("\x1b]0;title\x07\n")
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        finish_sweep(Path("sweep"))
    text = out.getvalue() + err.getvalue()
    assert "data.path=0\\x1b[31m\\n日本" in text and "\\u202e evil" in text
    assert not {"\x1b", "\u202e", "\x07"} & {*text}
