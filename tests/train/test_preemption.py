"""A run that is stopped by a signal saves a checkpoint first, and resumes later as if it had never stopped."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from command import run_command
from test_processes import TINY, Pair, losses, signal_once_training, spoken
from tiny import tiny_run

import xlstm_hydra.train
from xlstm_hydra import preemption, tasks
from xlstm_hydra.configs import CheckpointConfig, ConfigError, LoggerConfig
from xlstm_hydra.preemption import STATUS, Preempted, watched
from xlstm_hydra.runs import find_starting_point, saved_steps
from xlstm_hydra.sweep import read_record
from xlstm_hydra.train import MetricLog, train

SAVING = CheckpointConfig(save_every_n_steps=6, restore="auto", keep="best", max_to_keep=1)
RUN = tiny_run(
    parallel={"data_axis_size": 2, "fsdp_axis_size": 4},
    trainer={"max_steps": 13, "eval_batches": 1, "eval_every_n_steps": 3},
    logger=LoggerConfig(progress=False, tensorboard=False, log_every_n_steps=4),
    checkpoint=SAVING,
)


def rows(folder):
    """Rows of metrics.csv, without the throughput."""
    with (folder / "metrics.csv").open() as file:
        return [{**row, "tokens_per_second": ""} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped: the rows of its metrics, its result and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return rows_and_result(folder)


def rows_and_result(folder):
    result = train(RUN, folder)
    return rows(folder), result, folder


@pytest.fixture
def signal_after(monkeypatch):
    """Send this process a signal after a step."""

    def prepare(**signals):
        def send(self, step):
            if name := signals.pop(f"step_{step}", None):
                os.kill(os.getpid(), getattr(signal, name))

        monkeypatch.setattr(MetricLog, "step_done", send)

    return prepare


@pytest.fixture
def heard(tmp_path):
    """Checkpoints on disk when a SIGUSR2 handler of the program itself is called."""
    found = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: found.append((number, saved_steps(tmp_path))))
    yield found
    signal.signal(signal.SIGUSR2, before)


def test_a_run_that_is_stopped_repeatedly_has_the_metrics_of_an_uninterrupted_run(whole, signal_after, heard, tmp_path):
    signal_after(step_2="SIGTERM", step_7="SIGUSR1", step_9="SIGUSR2", step_13="SIGTERM")
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    for name, saved, kept in (("SIGTERM", 2, [2]), ("SIGUSR1", 7, [6, 7]), ("SIGUSR2", 9, [6, 9])):
        with pytest.raises(Preempted, match=rf"{name}: saved step {saved} in (.*); resume=\1 continues the") as stop:
            train(RUN, tmp_path)
        assert stop.value.code == STATUS
        assert saved_steps(tmp_path) == kept  # the best, and the latest
    assert train(RUN, tmp_path) == whole[1]  # a signal after the last step comes too late
    assert rows(tmp_path) == whole[0]
    assert saved_steps(tmp_path) == saved_steps(whole[2])
    assert heard == [(signal.SIGUSR2, [6, 9])]
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_complete_run_is_not_repeated(whole, caplog):
    caplog.set_level("INFO", "xlstm_hydra")
    run = replace(RUN, trainer=replace(RUN.trainer, max_steps=saved_steps(whole[2])[-1]))
    assert train(run, whole[2]) == pytest.approx(float(validation_losses(whole[0])[run.trainer.max_steps]))
    assert "has already completed its" in caplog.text and "mesh" not in caplog.text
    other = replace(run, optimizer=replace(run.optimizer, lr=7.0))
    with pytest.raises(ConfigError, match=r"optimizer.lr=7.0: the run in this folder is complete"):
        train(other, whole[2])


def validation_losses(table):
    return {int(row["step"]): row["validation_loss"] for row in table if row["validation_loss"]}


def test_a_run_that_saves_nothing_reports_that(signal_after, tmp_path):
    signal_after(step_3="SIGTERM")
    with pytest.raises(Preempted, match="SIGTERM: stopped after step 3 without saving: checkpoint.save_every"):
        train(replace(RUN, checkpoint=CheckpointConfig(save_every_n_steps=0, save_last=False)), tmp_path)


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(whole, tmp_path, caplog):
    run = replace(RUN, checkpoint=replace(SAVING, keep="latest", max_to_keep=5, save_every_n_steps=3))
    train(run, tmp_path)
    saved = tmp_path / "checkpoints"
    shutil.rmtree(saved / "13")
    for file in (saved / "12" / "params").rglob("d/*"):
        os.truncate(file, 10)
    (saved / "9" / "metadata" / "metadata").write_text('{"format": ')
    train(run, tmp_path)
    assert re.search(r"checkpoints/12: params/.* is damaged: it has 10 bytes, expected", caplog.text)
    assert "checkpoints/9: metadata/metadata is damaged: it has 11 bytes, expected" in caplog.text
    assert all(f"{saved}/{step} is damaged and was moved to" in caplog.text for step in (9, 12))
    assert validation_losses(rows(tmp_path)) == validation_losses(whole[0])
    assert saved_steps(tmp_path) == [3, 6, 9, 12, 13]
    assert {path.name for path in (tmp_path / "damaged_checkpoints").iterdir()} == {"9_1", "12_1"}
    resume_in_another_folder(run, tmp_path, tmp_path / "other", caplog)


def resume_in_another_folder(run, folder, other, caplog):
    """A bit is flipped in a file of the newest checkpoint that only Orbax reads; the run is named without a step."""
    file = folder / "checkpoints" / "13" / "progress" / "array_metadatas" / "process_0"
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    longer = replace(run, trainer=replace(run.trainer, max_steps=14))
    train(replace(longer, checkpoint=replace(run.checkpoint, restore=str(folder))), other)
    assert "13: progress/array_metadatas/process_0 is damaged: its digest is" in caplog.text
    assert saved_steps(other) == [14] and saved_steps(folder) == [3, 6, 9, 12, 13]


STARTS = {
    "named": ("other", None, "other/checkpoints/5"),
    "from scratch": (None, None, None),
    "auto": ("auto", None, "own/checkpoints/9"),
    "restarted": (None, "1", "own/checkpoints/9"),
    "restarted, named": ("other", "1", "own/checkpoints/9"),
    "first start": ("other", "0", "other/checkpoints/5"),
}


@pytest.fixture
def two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("own/checkpoints/3", "own/checkpoints/9", "own/checkpoints/11", "other/checkpoints/5"):
        (tmp_path / name / "metadata").mkdir(parents=True)
        (tmp_path / name / "metadata" / "metadata").write_text("{}")
    (tmp_path / "own/checkpoints/11/_CHECKPOINT_METADATA").write_text("{}")  # not finished
    return tmp_path


@pytest.mark.parametrize(("place", "restarts", "expected"), STARTS.values(), ids=STARTS)
def test_starting_point_of_a_run(place, restarts, expected, two_folders, monkeypatch):
    if restarts is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    run = replace(RUN, checkpoint=CheckpointConfig(restore=place))
    start = find_starting_point(run, two_folders / "own")
    assert start.checkpoint == (None if expected is None else two_folders / expected)
    assert find_starting_point(replace(RUN, checkpoint=SAVING), two_folders / "none").checkpoint is None


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_from_scratch(two_folders):
    with pytest.raises(ConfigError, match="none of the checkpoints in .*own/checkpoints can be read"):
        find_starting_point(
            RUN, two_folders / "own", [two_folders / "own" / "checkpoints" / name for name in ("3", "9")]
        )


def test_outside_the_main_thread_a_warning_says_that_signals_are_not_received(caplog):
    def body():
        with watched():
            pass

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert "not in the main thread" in caplog.text


def test_a_sweep_stops_with_its_job_and_resumes_from_its_checkpoint(tmp_path, monkeypatch):
    started = []

    def preempted_once(run, folder, overrides):
        started.append((folder.name, run.checkpoint.restore))
        if started == [("0", None), ("1", None)]:
            (folder / "checkpoints" / "3").mkdir(parents=True)
            raise Preempted("SIGTERM: saved step 3")
        return 1.0

    monkeypatch.setattr(xlstm_hydra.train, "train", preempted_once)
    monkeypatch.setattr(tasks, "is_unfinished", lambda run, folder: True)
    monkeypatch.chdir(tmp_path)
    assert run_command("-m", "hydra.sweep.dir=sweep", "trainer.seed=1,2,3").status == STATUS
    assert [outcome.status for outcome in read_record(tmp_path / "sweep")] == ["completed", "preempted", "waiting"]
    done = run_command("resume_sweep=sweep")
    assert done.status == 0, done.err
    assert started == [("0", None), ("1", None), ("1", "auto"), ("2", None)]


BUSY = """
import hashlib, signal, sys, threading
import xlstm_hydra.train
from xlstm_hydra import cli, preemption
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # even if the tests run under nohup
sys.setswitchinterval(1000)  # "ready" comes out when the main thread is in the C function, and not before
preemption.PATIENCE_SECONDS, preemption.SAME_SECONDS = 0.2, 0.05
with preemption.watched() as watch:
    if "saving" in sys.argv:
        watch.defer()
    threading.Timer(0.5, lambda: print("ready", flush=True)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # like a compilation, it lets no Python handler run
"""


@pytest.mark.parametrize(
    ("phase", "signals", "status", "words"),
    [
        ("starting", ["SIGTERM"], STATUS, "SIGTERM: stopped while compiling or starting; nothing new was saved"),
        ("saving", ["SIGUSR2", "SIGTERM"], 128 + signal.SIGTERM, "stopped immediately by a second signal, SIGTERM"),
        ("starting", ["SIGHUP"], STATUS, "SIGHUP: stopped while compiling or starting; nothing new was saved"),
        (
            "saving",
            ["SIGHUP", "SIGHUP", "SIGTERM"],
            128 + signal.SIGTERM,
            "stopped immediately by a second signal, SIGTERM",
        ),
    ],
    ids=["first", "second", "a closed terminal", "a terminal that closes twice"],
)
def test_a_signal_is_received_while_the_main_thread_is_busy(phase, signals, status, words):
    with subprocess.Popen(
        [sys.executable, "-c", BUSY, phase], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            error = answer(process, signals)
        finally:
            process.kill()  # a process that has not ended by now hangs
    assert (process.returncode, words in error) == (status, True), error


def answer(process, signals):
    """Send signals to a busy process, and return its output when it ends."""
    assert process.stdout.readline() == b"ready\n"
    noted = b""
    for earlier, name in enumerate(signals):
        if earlier:
            noted = noted or process.stderr.readline()  # the first signal has been received
            time.sleep(0.15)
        process.send_signal(getattr(signal, name))
    _, error = process.communicate(timeout=300)
    return (noted + error).decode()


@pytest.mark.slow
def test_two_processes_save_the_same_step_and_resume_from_it(tmp_path):
    layout = ["parallel=fsdp", "parallel.fsdp_min_weight_size=0", "trainer.simulated_devices=4", "hydra.run.dir=run"]
    layout += ["trainer.max_steps=2000", "checkpoint.save_every_n_steps=0", "logger.log_every_n_steps=1"]
    both = Pair(tmp_path, *TINY, *layout)
    _, statuses, texts = signal_once_training(tmp_path, both, signal.SIGUSR2)
    assert statuses == [STATUS, STATUS], texts
    [step] = saved_steps(tmp_path / "run")
    assert spoken(texts[0])[-1].startswith(f"xlstm-hydra: SIGUSR2: saved step {step} in ")
    assert len(losses(tmp_path / "run")) == step
    end = [f"trainer.max_steps={step + 2}", "checkpoint.restore=auto"]
    statuses, texts = Pair(tmp_path, *TINY, *layout, *end).end()
    assert statuses == [0, 0], texts
    assert [number for number, _ in losses(tmp_path / "run")] == [*range(1, step + 3), step + 2]
