"""A sweep of two trainings in its own process, which is killed and resumed."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest

from xlstm_hydra.sweep import read_record

RUN = ["debug=fast", "trainer.max_steps=12", "checkpoint.save_every_n_steps=2", "hydra.sweep.dir=sweep"]


def command(folder, *arguments):
    """Start the command in its own process, with one device."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    line = [sys.executable, "-m", "xlstm_hydra", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, cwd=folder, env=environment, text=True, **pipes)


@pytest.mark.slow
def test_a_killed_sweep_resumes_from_its_checkpoints_with_the_same_results(tmp_path):
    sweep = tmp_path / "sweep"
    first = command(tmp_path, "-m", "optimizer.lr=1e-3,1e-4", *RUN)
    while not list(sweep.glob("0/checkpoints/4*")):  # the one of step 2 is complete then
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert [outcome.status for outcome in read_record(sweep)] == ["running", "waiting"]
    second = command(tmp_path, "resume_sweep=sweep")
    out, err = second.communicate(timeout=600)
    assert second.returncode == 0, err
    assert "resumed  from " in out and "2 jobs: 2 completed" in out
    for outcome in read_record(sweep):
        assert (outcome.status, outcome.steps, outcome.metric) == ("completed", 12, "validation_loss")
        assert outcome.checkpoint == f"{outcome.job}/checkpoints/12" and outcome.tokens_per_second
        with (sweep / str(outcome.job) / "metrics.csv").open() as file:
            assert [int(row["step"]) for row in csv.DictReader(file) if row["loss"]] == list(range(1, 13))
    assert (sweep / "sweep.png").exists() or "xlstm-hydra[plots]" in out
