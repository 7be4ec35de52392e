"""Two processes with four simulated devices each train like one process with eight, and exit together."""

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time

import hydra
import numpy as np
import pytest
from command import run_command
from omegaconf import OmegaConf

import xlstm_hydra.devices
import xlstm_hydra.train
from xlstm_hydra.hydra import VERSION_BASE, load
from xlstm_hydra.train import train

MODEL = "embedding_dim=32 num_blocks=2 num_heads=4 context_length=16 chunk_size=8".split()
TINY = [
    *(f"model.{setting}" for setting in MODEL),
    *("data=synthetic", "data.motif_length=4", "optimizer.lr=1e-2", "trainer.max_steps=4", "trainer.eval_batches=1"),
    *("checkpoint.save_every_n_steps=2", "logger.log_every_n_steps=1", "logger.tensorboard=false"),
]
FAR_TP = "distributed.device_order=[dp,pp,fsdp,tp]"
LAYOUTS = {
    "pipeline": (
        ["parallel=fsdp_tp", "parallel.pipeline_axis_size=2", "parallel.model_axis_size=2", "parallel.fsdp_axis_size=2"]
        + ["parallel.tp_async_dense=true", "distributed.device_order=[tp,fsdp,dp,pp]"],
        "pp crosses hosts",
    ),
    "fsdp": (["parallel=fsdp", "parallel.fsdp_min_weight_size=0"], "fsdp crosses hosts"),
    "fsdp_tp": (["parallel=fsdp_tp", "parallel.fsdp_min_weight_size=0", FAR_TP], "tp crosses hosts"),
}
PATIENCE = 600
"""Seconds after which a process counts as hanging, even on a busy machine."""
SECONDS_TO_END = 90
"""Shorter than processes wait for each other (`initialization_timeout_seconds`)."""


class Pair:
    """The same command in two processes."""

    def __init__(self, folder, *overrides, program=("-m", "xlstm_hydra"), each=((), ())):
        """Start the processes with their own overrides in `each` (None: not yet)."""
        with socket.create_server(("", 0)) as free:
            self.address = f"localhost:{free.getsockname()[1]}"
        self.folder, self.program, self.started = folder, program, []
        for number, own in enumerate(each):
            if own is not None:
                self.start(number, *overrides, *own)

    def start(self, number, *overrides):
        """Start a process."""
        environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
        place = {"coordinator_address": self.address, "num_processes": 2, "process_id": number}
        settings = ["distributed=explicit", *(f"distributed.{key}={value}" for key, value in place.items())]
        process = subprocess.Popen(
            [sys.executable, *self.program, *settings, *overrides],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)

    def end(self):
        """Exit statuses and texts."""
        try:
            texts = [process.communicate(timeout=PATIENCE)[0] for process in self.started]
        finally:
            for process in self.started:
                process.kill()
        return [process.returncode for process in self.started], texts


def spoken(text):
    """Remove the lines of Gloo from an output. It prints them in pieces, which several threads may mix."""
    return [line for line in text.splitlines() if "[Gloo]" not in line and "peer ranks" not in line and line.strip()]


def losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row["loss"] or row["validation_loss"])) for row in csv.DictReader(file)]


def in_one_process(folder, *overrides):
    with hydra.initialize(config_path=None, **VERSION_BASE):
        run = load(hydra.compose("config", overrides=[*TINY, "trainer.simulated_devices=8", *overrides]))
    train(run, folder)
    return losses(folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with eight devices."""
    folder = tmp_path_factory.mktemp("alone")
    in_one_process(folder, "parallel=dp")
    return folder


@pytest.fixture(scope="module", params=LAYOUTS)
def pair(request, tmp_path_factory):
    """Two processes, each in the same folder with the same command."""
    folder = tmp_path_factory.mktemp(request.param)
    overrides, across = LAYOUTS[request.param]
    statuses, texts = Pair(folder, *TINY, *overrides, "trainer.simulated_devices=4").end()
    assert statuses == [0, 0], texts
    [run] = (folder / "outputs").glob("*/*")
    return folder, run, texts, across


@pytest.mark.slow
def test_two_processes_train_like_one_and_leave_one_folder(pair, alone):
    folder, run, texts, across = pair
    steps, values = zip(*losses(run), strict=True)
    expected_steps, expected = zip(*losses(alone), strict=True)
    assert steps == expected_steps
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert {path.name for path in folder.iterdir()} == {"outputs"}
    files = {"config.yaml", "metadata.json", "parameters.txt", "plan.json", "plan.txt", "metrics.csv", "checkpoints"}
    assert {path.name for path in run.iterdir()} == files | {".hydra", ".lock", "xlstm-hydra.log"}
    assert any("8 cpu devices in 2 processes: " in line and line.endswith(across) for line in spoken(texts[0]))
    assert spoken(texts[1]) == []


@pytest.mark.slow
def test_one_process_continues_what_two_have_saved(pair, tmp_path):
    _, run, _, _ = pair
    resumed = in_one_process(tmp_path, "parallel=fsdp", f"checkpoint.restore='{run}@2'")
    np.testing.assert_allclose(resumed, losses(run)[2:], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_continue_what_one_has_saved(alone, tmp_path):
    overrides = [*LAYOUTS["fsdp_tp"][0], f"checkpoint.restore='{alone}@2'", "hydra.run.dir=again"]
    statuses, texts = Pair(tmp_path, *TINY, *overrides, "trainer.simulated_devices=4").end()
    assert statuses == [0, 0], texts
    np.testing.assert_allclose(losses(tmp_path / "again"), losses(alone)[2:], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_use_a_checkpoint_like_one(alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layout = ["parallel=fsdp_tp", "parallel.model_axis_size=2", "parallel.fsdp_min_weight_size=0"]
    use = [*TINY, f"task.checkpoint='{alone}'", "hydra.run.dir=.", "trainer.simulated_devices=4"]
    tasks = {"evaluate": ["task.num_batches=1"], "generate": ["task.prompt_tokens=[1,2]", "task.max_new_tokens=4"]}
    found = []
    for name, settings in tasks.items():
        statuses, texts = Pair(tmp_path, f"task={name}", *settings, *layout, *use).end()
        assert statuses == [0, 0], texts
        assert spoken(texts[1]) == []
        done = run_command(f"task={name}", *settings, *use, "hydra.run.dir=one", "trainer.simulated_devices=8")
        assert done.status == 0, done.err
    for folder in (tmp_path, tmp_path / "one"):
        samples = json.loads((folder / "generated.json").read_text())["samples"]
        found.append((json.loads((folder / "evaluation.json").read_text())["loss"], samples))
    assert found[0] == (pytest.approx(losses(alone)[-1][1], rel=1e-5), found[1][1])


FAIL_LATE = """
import sys
from xlstm_hydra.cli import main as cli
from xlstm_hydra.train import MetricLog

def fail(self, step):
    if step == 2 and "distributed.process_id=1" in sys.argv:
        raise ZeroDivisionError("a bug in one process")

MetricLog.step_done = fail
cli.main()
"""
ENDLESS = [*TINY, "trainer.max_steps=100000", "checkpoint=none", "trainer.simulated_devices=4", "hydra.run.dir=run"]


@pytest.mark.slow
def test_an_error_in_one_process_ends_both_and_both_report_the_cause(tmp_path):
    (tmp_path / "fail.py").write_text(FAIL_LATE)
    statuses, texts = Pair(tmp_path, *ENDLESS, program=["fail.py"]).end()
    assert statuses == [1, 1]
    assert "process 1 failed:\nTraceback" in texts[1] and "ZeroDivisionError: a bug in one process" in texts[1]
    assert "process 0 exits because process 1 failed: ZeroDivisionError: a bug in one process" in texts[0]


@pytest.mark.slow
def test_a_config_error_in_one_process_ends_both_with_status_2(tmp_path):
    (tmp_path / "book").write_bytes(b"to be or not to be " * 100)
    each = ([f"data.path={tmp_path}/book"], ["data.path=nowhere"])
    settings = [text for text in ENDLESS if not text.startswith("data")]
    statuses, texts = Pair(tmp_path, *settings, "data=text", each=each).end()
    assert statuses == [2, 2]
    refusal = "data.path='nowhere': no files found"
    assert f"xlstm-hydra: process 1: {refusal}" in texts[1]
    assert f"process 0 exits because process 1 failed: {refusal}" in texts[0]


LEAVE_LAST = """
import sys, time
import xlstm_hydra.train
from xlstm_hydra.cli import main as cli

def train(run, folder, overrides):
    if "distributed.process_id=1" in sys.argv:
        time.sleep(3)
        sys.exit(7)

xlstm_hydra.train.train = train
cli.main()
"""


def test_a_process_that_has_finished_exits_with_one_that_is_stopped(tmp_path):
    (tmp_path / "leave.py").write_text(LEAVE_LAST)
    statuses, texts = Pair(tmp_path, *ENDLESS, program=["leave.py"]).end()
    assert statuses == [7, 7], texts
    assert "process 0 exits because process 1 failed: the program called sys.exit(7)" in texts[0]


@pytest.mark.slow
def test_processes_that_were_given_different_runs_end_before_they_train(tmp_path):
    each = (["optimizer.lr=1e-2"], ["optimizer.lr=1e-4", "trainer.seed=3", "model.num_blocks=4"])
    statuses, texts = Pair(tmp_path, *ENDLESS, each=each).end()
    assert statuses == [2, 2]
    for text in texts:
        assert "optimizer.lr=0.0001: process 0 has 0.01. Start all processes with the same command." in text
        assert "trainer.seed=3: process 0 has 0." in text
        assert "model.num_blocks=4: process 0 has 2." in text


def signal_once_training(folder, both, number):
    """Send a signal to process 1. Returns the seconds until both processes exit, their statuses and outputs."""
    try:
        metrics, patience = folder / "run" / "metrics.csv", time.monotonic() + PATIENCE
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2) and time.monotonic() < patience:
            if any(process.poll() is not None for process in both.started):
                break  # it has failed; its output is in the result
            time.sleep(0.2)
        both.started[1].send_signal(number)
        sent = time.monotonic()
    finally:
        statuses, texts = both.end()
    return time.monotonic() - sent, statuses, texts


@pytest.mark.slow
def test_a_process_that_is_killed_takes_the_other_with_it(tmp_path):
    both = Pair(tmp_path, *ENDLESS, "distributed.heartbeat_timeout_seconds=8")
    seconds, statuses, texts = signal_once_training(tmp_path, both, signal.SIGKILL)
    assert seconds < SECONDS_TO_END
    assert statuses[0] not in (0, None) and statuses[1] == -signal.SIGKILL
    # Either the heartbeat or a failing collective ends it first.
    assert "another task died" in texts[0] or "another process may have died" in texts[0]


LIBRARY = """
import sys
from hydra import compose, initialize
from xlstm_hydra.hydra import VERSION_BASE, load
from xlstm_hydra.train import train

with initialize(config_path=None, **VERSION_BASE):
    short = load(compose("config", overrides=[*sys.argv[1:], "trainer.max_steps=1", "hydra.run.dir=first"]))
    run = load(compose("config", overrides=sys.argv[1:]))
train(short, "first")
train(run, "run")
"""


@pytest.mark.slow
def test_sigterm_to_one_process_of_a_program_that_trains_twice_ends_both(tmp_path):
    (tmp_path / "program.py").write_text(LIBRARY)
    both = Pair(tmp_path, *ENDLESS, program=["program.py"])
    seconds, statuses, texts = signal_once_training(tmp_path, both, signal.SIGTERM)
    assert seconds < SECONDS_TO_END
    assert statuses == [75, 75], texts
    assert "process 1: SIGTERM: the run saves and stops" in texts[1] or "SIGTERM: the run saves and stops" in texts[1]


def test_a_process_that_times_out_reports_the_missing_process(tmp_path):
    both = Pair(tmp_path, *ENDLESS, "distributed.initialization_timeout_seconds=3")
    both.started[1].kill()
    statuses, texts = both.end()
    assert statuses[0] == 1
    assert "process 0: not all of the 2 processes connected to localhost:" in texts[0]


@pytest.fixture
def second_task(monkeypatch, tmp_path):
    """Set the environment of the second task of `srun -N2 -n2`. The task does not wait for the first one."""
    step = {"STEP_ID": 0, "STEP_NUM_TASKS": 2, "PROCID": 1, "NODEID": 1, "LOCALID": 0, "JOB_ID": 7}
    step |= {"STEP_NODELIST": "node[1-2]", "STEP_TASKS_PER_NODE": "1(x2)"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setattr(xlstm_hydra.devices, "together", lambda config: contextlib.nullcontext())
    monkeypatch.chdir(tmp_path)


def test_a_task_other_than_the_first_writes_no_file(second_task, monkeypatch, tmp_path):
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda run, folder, overrides: 1.0)
    assert run_command("hydra.run.dir=run").status == 0
    assert run_command().status == 0
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_a_config_file_makes_not_the_first_writes_no_file(second_task, monkeypatch, tmp_path):
    monkeypatch.delenv("SLURM_PROCID")
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda run, folder, overrides: 1.0)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    place = "coordinator_address: host:1234, num_processes: 2, process_id: 1"
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = f"# @package _global_\ndistributed: {{name: explicit, {place}}}\n"
    (tmp_path / "conf" / "experiment" / "two.yaml").write_text(text)
    done = run_command(f"--config-dir={tmp_path}/conf", "experiment=two")
    assert done.status == 0, done.err
    assert list((tmp_path / "work").iterdir()) == []


def test_the_record_of_a_run_does_not_have_the_address_of_process_0(monkeypatch, tmp_path):
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda run, folder, overrides: 1.0)
    monkeypatch.setattr(xlstm_hydra.devices, "together", lambda config: contextlib.nullcontext())
    monkeypatch.chdir(tmp_path)
    place = {"coordinator_address": "host:1234", "num_processes": 2, "process_id": 0}
    done = run_command(
        *("distributed=explicit", *(f"distributed.{key}={value}" for key, value in place.items())), "hydra.run.dir=run"
    )
    assert done.status == 0, done.err
    saved = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert saved.distributed.name == "auto" and all(saved.distributed[key] is None for key in place)


def is_open(address):
    """True if a server listens at this address."""
    host, _, port = address.rpartition(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


REFUSED_LATE = {
    "a rule": ("optimizer.lr=-1", "optimizer.lr=-1"),
    "an unknown key": ("optimizer.learning=1", "optimizer.learning"),
}


@pytest.mark.parametrize(("override", "words"), REFUSED_LATE.values(), ids=REFUSED_LATE)
def test_a_command_that_is_refused_while_process_0_waits_ends_both(override, words, tmp_path):
    both = Pair(tmp_path, *ENDLESS, each=((), None))
    deadline = time.monotonic() + PATIENCE
    while not is_open(both.address):
        assert both.started[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    both.start(1, *ENDLESS, override)
    statuses, texts = both.end()
    assert statuses == [2, 2], texts
    assert "process 1: " in texts[1] and words in texts[1]
    assert "process 0 exits because process 1 failed: " in texts[0] and words in texts[0]


def test_an_error_in_all_processes_ends_each_immediately(tmp_path):
    started = time.monotonic()
    statuses, texts = Pair(tmp_path, *ENDLESS, "optimizer.lr=-1").end()
    assert statuses == [2, 2] and time.monotonic() - started < SECONDS_TO_END
    assert all("optimizer.lr=-1.0" in text and "because of" not in text for text in texts)


def test_simulated_devices_of_all_tasks_are_counted(second_task):
    done = run_command("parallel=fsdp", "parallel.fsdp_axis_size=4", "trainer.simulated_devices=3")
    assert done.status == 2 and "the number of devices, 6" in done.err
    assert done.err.startswith("xlstm-hydra: process 1: ")
    assert "Each of the 2 processes has trainer.simulated_devices=3" in done.err


def test_a_sweep_in_several_tasks_is_refused(second_task):
    done = run_command("-m", "trainer.seed=1,2")
    assert done.status == 2
    assert "a sweep must be started by a single process, but this is process 1 of 2" in done.err


def test_a_port_in_use_is_refused():
    from xlstm_hydra.configs import ConfigError, DistributedConfig
    from xlstm_hydra.devices import join

    with socket.create_server(("", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        config = DistributedConfig(name="explicit", coordinator_address=address, num_processes=2, process_id=0)
        with pytest.raises(ConfigError, match="process 0 cannot open the port"):
            join(config)
