"""A run that is killed goes on from its last whole checkpoint as if nothing had been."""

import csv
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from test_processes import TINY

from xlstm_hydra.checkpoint import Checkpoints
from xlstm_hydra.configs import CheckpointConfig
from xlstm_hydra.metadata import saved_steps
from xlstm_hydra.train._log import _CsvFile

STEPS = 12
SAVING = ("checkpoint.save_every_n_steps=1", "checkpoint.max_to_keep=2", f"trainer.max_steps={STEPS}")


def start(folder, *overrides):
    """The command in a process of its own, anew or from where it was."""
    settings = [*TINY, *SAVING, f"hydra.run.dir={folder}", "trainer.simulated_devices=2", *overrides]
    if saved_steps(folder):
        settings = [f"resume={folder}"]
    with (folder.parent / "output.txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "xlstm_hydra", *settings], stdout=output, stderr=output, cwd=folder.parent
        )


def losses(folder):
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): row["loss"] for row in csv.DictReader(file) if row["loss"]}


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(), ("parallel=fsdp", "parallel.fsdp_axis_size=2")], ids=["dp", "fsdp"])
def test_a_run_killed_at_random_moments_repeats_the_losses_of_one_that_was_not(tmp_path, layout):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, *layout).wait() == 0
    pauses, kills = random.Random(0), 0
    while not saved_steps(killed) or saved_steps(killed)[-1] < STEPS:
        before = saved_steps(killed)
        process = start(killed, *layout)
        while process.poll() is None and saved_steps(killed)[-1:] == before[-1:]:
            time.sleep(0.01)
        time.sleep(pauses.random() * 0.4)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        assert kills or process.returncode == 0, (tmp_path / "output.txt").read_text()
    assert kills >= 3
    assert losses(killed) == losses(whole)
    assert not list((killed / "checkpoints").glob("*tmp*"))


def test_a_checkpoint_that_was_being_deleted_is_none(tmp_path):
    trash = tmp_path / "checkpoints" / "deleted"
    (trash / "4" / "params").mkdir(parents=True)
    (tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp-1").mkdir()
    assert saved_steps(tmp_path) == []
    Checkpoints(tmp_path, CheckpointConfig()).close()
    assert not list(trash.iterdir())


def test_a_row_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\r\n1,5.0\r\n2,4.0\r\n1")
    _CsvFile(path, first_step=2).close()
    with path.open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]
