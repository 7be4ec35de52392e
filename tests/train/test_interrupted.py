"""A run that is killed continues from its last complete checkpoint as if it had never been interrupted."""

import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
from test_processes import TINY

from xlstm_hydra.checkpoint import Checkpoints
from xlstm_hydra.configs import CheckpointConfig, LoggerConfig
from xlstm_hydra.runs import saved_steps
from xlstm_hydra.train import MetricLog

STEPS = 12
SHARED = [*TINY, f"trainer.max_steps={STEPS}", "checkpoint.restore=auto", "checkpoint.save_every_n_steps=1"]
ONE = [*SHARED, "trainer.simulated_devices=2", "hydra.run.dir=run"]
FORKS = """
import json, os, sys
import xlstm_hydra.sweep, xlstm_hydra.train
from xlstm_hydra.cli import main as cli

for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1), os.dup2(output, 2)
        os.chdir(order["folder"])
        sys.argv[1:] = order["arguments"]
        cli.main()
        sys.exit()
    print(child, flush=True)
"""
"""A process that has imported everything but started no device. Each run is a fork of it."""


@pytest.fixture(scope="module")
def forks():
    """Send an order, and return the answer."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    process = subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    orders, answers = process.stdin, process.stdout
    assert orders is not None and answers is not None

    def ask(**order):
        orders.write(json.dumps(order) + "\n")
        orders.flush()
        return int(answers.readline())

    yield ask
    orders.close()
    process.wait()


class Killed:
    """The same command, repeated in the processes of a run until it completes."""

    def __init__(self, forks, folder, commands):
        folder.mkdir()
        self.forks, self.folder, self.commands, self.kills, self.alive = forks, folder, commands, 0, []

    def start(self):
        """All processes of the run."""
        output = str(self.folder / "output.txt")
        commands = self.commands(self.folder)
        self.alive = [self.forks(arguments=arguments, folder=str(self.folder), output=output) for arguments in commands]

    def kill(self):
        """Kill all processes that are still running."""
        for process in self.alive:
            os.kill(process, signal.SIGKILL)
        statuses = self.end()
        self.kills += -signal.SIGKILL in statuses
        return statuses

    def end(self):
        """Wait for all processes and return their exit statuses."""
        statuses = [self.forks(wait=process) for process in self.alive]
        self.alive = []
        return statuses

    def is_running(self):
        return all(state(process) != "Z" for process in self.alive)

    def to_the_end(self):
        """Return the final metrics.csv of each folder, without the throughput."""
        self.start()
        statuses = self.end()
        assert statuses == [0] * len(statuses), (self.folder / "output.txt").read_text()
        files = sorted(self.folder.rglob("metrics.csv"))
        return {file.relative_to(self.folder): rows(file) for file in files}


def state(process):
    """State letter of a process; Z: it has exited."""
    with open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def rows(file):
    with file.open() as text:
        return [{**row, "tokens_per_second": ""} for row in csv.DictReader(text)]


def progress(folder):
    """Value that changes with every step that is logged, saved or being saved."""
    return sum(1 for path in folder.rglob("*") if path.parent.name == "checkpoints"), [
        file.stat().st_size for file in folder.rglob("metrics.csv")
    ]


def one(*overrides):
    return lambda folder: [[*ONE, *overrides]]


def two(folder):
    """Two processes with one device each."""
    with socket.create_server(("", 0)) as free:
        place = {"coordinator_address": f"localhost:{free.getsockname()[1]}", "num_processes": 2}
    settings = ["distributed=explicit", *(f"distributed.{key}={value}" for key, value in place.items())]
    own = ["trainer.simulated_devices=1", "parallel=fsdp", "parallel.fsdp_min_weight_size=0", "hydra.run.dir=run"]
    return [[*SHARED, *own, *settings, f"distributed.process_id={number}"] for number in range(2)]


def sweep(folder):
    """Three short runs, or those without a recorded result."""
    if (folder / "sweep" / "sweep.jsonl").exists():
        return [["resume_sweep=sweep"]]
    rates = "optimizer.lr=1e-2,1e-3,1e-4"
    return [["-m", "hydra.sweep.dir=sweep", rates, *SHARED, "trainer.max_steps=5", "trainer.simulated_devices=2"]]


SCENARIOS = {
    "dp": (one(), 4),
    "fsdp": (one("parallel=fsdp", "parallel.fsdp_axis_size=2"), 2),
    "best": (one("checkpoint.keep=best", "trainer.eval_every_n_steps=1", "checkpoint.max_to_keep=1"), 4),
    "in the foreground": (one("checkpoint.async_save=false", "logger.log_every_n_steps=3"), 4),
    "rare saves": (one("checkpoint.save_every_n_steps=5", "logger.log_every_n_steps=4"), 4),
    "separate cache": (one("trainer.compilation_cache_dir=cache"), 4),
    "two processes": (two, 4),
    "sweep": (sweep, 5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_killed_at_random_moments_repeats_the_losses_of_one_that_was_not(name, forks, tmp_path):
    commands, kills = SCENARIOS[name]
    expected = Killed(forks, tmp_path / "whole", commands).to_the_end()
    killed, moments = Killed(forks, tmp_path / "killed", commands), random.Random(name)
    for _ in range(kills):
        before = progress(killed.folder)
        killed.start()
        if moments.random() < 0.7:  # during training; otherwise while it starts, compiles or reads
            while killed.is_running() and progress(killed.folder) == before:
                time.sleep(0.005)
        time.sleep(moments.random() * 0.8)
        killed.kill()
    assert killed.kills > kills / 2, "most kills came too late"
    assert killed.to_the_end() == expected
    assert not list(killed.folder.glob("run/checkpoints/*tmp*"))


def test_a_partly_deleted_checkpoint_is_ignored(tmp_path):
    trash = tmp_path / "checkpoints" / "deleted"
    (trash / "4" / "params").mkdir(parents=True)
    (tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp-1").mkdir()
    assert saved_steps(tmp_path) == []
    Checkpoints(tmp_path, CheckpointConfig()).close()
    assert not list(trash.iterdir())


def open_metrics(folder, first_step):
    """Open the metrics as a run that continues after this step."""
    with MetricLog(LoggerConfig(progress=False), folder, first_step, 9):
        pass


def test_an_incomplete_row_is_omitted(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\r\n1,5.0\r\n2,4.0\r\n1")
    open_metrics(tmp_path, 2)
    with path.open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]


DAMAGED = {
    "another step": (b"1x,4.0,1", "line 3: step: expected a whole number, got '1x'"),
    "missing step": (b",4.0,1", "line 3: step: expected a whole number, got null"),
    "a negative step": (b"-1,4.0,1", "line 3: step: expected a whole number"),
    "invalid number": (b"2,4.z,1", "line 3: loss: expected a number, got '4.z'"),
    "a missing value": (b"2,4.0", "line 3: expected 3 values, got 2"),
    "a NUL byte": (b"2,4\x000,1", "line 3: loss: expected a number, got '4\\x000'"),
    "no UTF-8": (b"2,\xff,1", "line 3: not UTF-8: invalid start byte at byte 2"),
    "an empty line": (b"", "line 3: expected 3 values, got 1"),
    "a quote": (b'"2,4.0,1', "line 3: step: expected a whole number"),
    "many digits": (b"9" * 5000 + b",4.0,1", "line 3: step: expected a whole number"),
}


@pytest.mark.parametrize(("line", "words"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_row_is_reported_and_the_others_are_kept(tmp_path, caplog, line, words):
    path = tmp_path / "metrics.csv"
    before = b"step,loss,own\r\n1,5.0,\r\n" + line + b"\r\n3,nan,2\r\n4,1.0,2\r\n"
    path.write_bytes(before)
    open_metrics(tmp_path, 3)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["own"]) for row in rows] == [("1", "5.0", ""), ("3", "nan", "2")]
    assert words in caplog.text and (tmp_path / "metrics.csv.damaged").read_bytes() == before


def test_a_damaged_header_is_reported_and_the_file_is_kept(tmp_path, caplog):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"st\x85ep,loss\r\n1,5.0\r\n")
    open_metrics(tmp_path, 3)
    assert path.read_text().startswith("step,loss,") and "line 1: not UTF-8" in caplog.text
    assert (tmp_path / "metrics.csv.damaged").exists()
