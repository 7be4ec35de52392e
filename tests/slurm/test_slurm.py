"""On a real SLURM: every job of a sweep ends by itself, and interrupted jobs resume to the same losses."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hydra
import numpy as np
import pytest
from cluster import Cluster, why_not
from command import run_command

from xlstm_hydra.hydra import VERSION_BASE, load
from xlstm_hydra.train import train

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

ROOT = Path(__file__).parents[2]
MODEL = "embedding_dim=32 num_blocks=1 num_heads=2 context_length=16 chunk_size=8".split()
TINY = [
    *(f"model.{setting}" for setting in MODEL),
    *("data=synthetic", "data.motif_length=4", "trainer.eval_batches=1", "trainer.max_steps=4"),
    *("logger.log_every_n_steps=1", "logger.tensorboard=false"),
]
CPU_ONLY = "hydra.launcher.gpus_per_node=null"
FSDP = ("parallel=fsdp", "parallel.fsdp_min_weight_size=0")
SLOW = """
import os, sys, threading, time

def slow_down():
    while not hasattr(module := sys.modules.get("xlstm_hydra.train._log"), "MetricLog"):
        time.sleep(0.1)
    done = module.MetricLog.step_done
    module.MetricLog.step_done = lambda self, step: (time.sleep(0.4), done(self, step))

if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    threading.Thread(target=slow_down, daemon=True).start()
"""
"""Makes the first start of a job too slow for its time limit."""
LONG = ("trainer.max_steps=300", "trainer.simulated_devices=1", "checkpoint.save_every_n_steps=50")


class Commands:
    """Commands that run side by side, each in a folder of its own."""

    def __init__(self, folder, cluster):
        self.folder, self.cluster, self.started = folder, cluster, {}
        removed = ("JAX_NUM_CPU_DEVICES", "PYTEST_CURRENT_TEST")
        environment = {key: value for key, value in os.environ.items() if key not in removed}
        self.environment = (
            environment | cluster.environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        )

    def start(self, name, *command):
        """Start a command."""
        (self.folder / name).mkdir()
        log = (self.folder / f"{name}.log").open("w")
        self.started[name] = subprocess.Popen(
            command, cwd=self.folder / name, env=self.environment, stdout=log, stderr=log
        )

    def sweep(self, name, *overrides, launcher="slurm"):
        """Start a sweep in `sweep`."""
        own = [f"hydra/launcher={launcher}", CPU_ONLY, "hydra.sweep.dir=sweep"]
        self.start(name, sys.executable, "-m", "xlstm_hydra", "-m", *TINY, *own, *overrides)

    def end(self, name):
        """Return the exit status and the output."""
        status = self.started[name].wait(timeout=300)
        return status, (self.folder / f"{name}.log").read_text()

    def wait_until_training(self, name):
        """Wait until both runs of a sweep have logged some steps."""
        deadline = time.monotonic() + 200
        while any(len(rows(self.folder / name / "sweep" / str(number))) < 4 for number in range(2)):
            assert self.started[name].poll() is None and time.monotonic() < deadline, self.end(name)
            time.sleep(0.3)

    def kill(self):
        for process in self.started.values():
            process.kill()


def rows(run):
    file = run / "metrics.csv"
    return list(csv.DictReader(file.open())) if file.exists() else []


def losses(run):
    return [(int(row["step"]), float(row["loss"] or row["validation_loss"])) for row in rows(run)]


def in_one_process(folder, *overrides):
    with hydra.initialize(config_path=None, **VERSION_BASE):
        run = load(hydra.compose("config", overrides=[*TINY, *overrides]))
    train(run, folder)
    return losses(folder)


def record(folder):
    file = folder / "sweep" / "sweep.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """All commands, started at once: the nodes have one core each, and the jobs queue for them."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    commands = Commands(tmp_path_factory.mktemp("commands"), cluster)
    (commands.folder / "sitecustomize.py").write_text(SLOW)
    try:
        cluster.start()
        limits = ("hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=20")
        slow = f"hydra.launcher.setup=['export PYTHONPATH={commands.folder}']"
        commands.sweep("timeout", "trainer.seed=0,1", *LONG, *limits, slow)
        ending = ("trainer.max_steps=100000,100001", "checkpoint.save_every_n_steps=2", "checkpoint.max_to_keep=2")
        commands.sweep("ending", *ending, "hydra.launcher.max_num_timeout=0")
        commands.sweep("unseen", "trainer.seed=1,2", f"hydra.sweep.dir={cluster.unseen}/sweep")
        commands.sweep("partition", "trainer.seed=1,2", "hydra.launcher.partition=nowhere")
        commands.sweep("interrupted", "trainer.seed=1,2", "+hydra.launcher.additional_parameters.hold=true")
        commands.wait_until_training("ending")
        commands.sweep("four", "optimizer.lr=1e-2,1e-3", "trainer.seed=1,2")
        commands.sweep("two_nodes", *FSDP, "trainer.simulated_devices=4", launcher="slurm_multinode")
        script = ROOT / "examples" / "slurm" / "train.sbatch"
        free = ("--gpus-per-node=0", "--cpus-per-task=1", "--wait", "--time=5")
        commands.start("script", "sbatch", *free, str(script), *TINY, *FSDP, "trainer.simulated_devices=4")
        yield commands
    finally:
        commands.kill()
        cluster.stop()


def test_a_job_that_slurm_rejects_is_one_message(commands):
    status, said = commands.end("partition")
    assert status == 2
    message = "hydra.launcher.partition='nowhere': SLURM rejected the job: invalid partition specified: nowhere"
    assert message in said and "Traceback" not in said


def test_a_folder_that_nodes_cannot_access_is_one_message_with_the_fix(commands):
    status, said = commands.end("unseen")
    assert status == 1 and "2 jobs: 2 lost" in said
    assert "left no log in" in said and "Set hydra.sweep.dir to a folder on a file system that all nodes share." in said
    assert "_log.err" not in said and "_log.out" not in said


def processes_of(job):
    """The processes of a job step, without those of SLURM."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURM_JOB_ID={job}".encode() in environment and b"submitit.core._submit" in command:
            if b"python" in Path(os.fsdecode(command[0])).name.encode():
                yield int(folder.name)


def test_killed_jobs_and_failed_nodes_are_reported_and_can_be_resumed(commands, monkeypatch):
    queue = commands.cluster.ask("squeue", "--noheader", "--array", "--states=R", "--format=%i %A %N").splitlines()
    jobs = {job: (raw, node) for job, raw, node in map(str.split, queue)}
    killed, failed = (jobs[outcome["cluster_job"]] for outcome in record(commands.folder / "ending"))
    for process in processes_of(killed[0]):
        os.kill(process, signal.SIGKILL)
    commands.cluster.ask("scontrol", "update", f"NodeName={failed[1]}", "State=DOWN", "Reason=test")
    status, said = commands.end("ending")
    assert status in (1, 75), said  # 75: the job on the node that failed was stopped and has saved
    assert "#0: SLURM job" in said and "FAILED (it was killed by SIGKILL" in said
    assert "#1: SLURM job" in said and "NODE_FAIL (one of its nodes failed" in said
    outcomes = record(commands.folder / "ending")
    assert outcomes[0]["status"] == "lost" and "killed by SIGKILL" in outcomes[0]["reason"]
    monkeypatch.chdir(commands.folder / "ending")
    for number in range(2):
        run = Path("sweep") / str(number)
        last = losses(run)[-1][0] + 4
        done = run_command(f"resume={run}", f"trainer.max_steps={last}", "trainer.simulated_devices=1")
        assert done.status == 0, done.err
        assert [step for step, _ in losses(run)][:last] == list(range(1, last + 1))


def all_submitted(folder):
    outcomes = record(folder)
    return outcomes and all(outcome["cluster_job"] for outcome in outcomes)


def test_ctrl_c_lists_the_jobs_that_continue_and_how_to_cancel_them(commands):
    deadline = time.monotonic() + 60
    while not all_submitted(commands.folder / "interrupted"):
        assert time.monotonic() < deadline, (commands.folder / "interrupted.log").read_text()
        time.sleep(0.3)
    commands.started["interrupted"].send_signal(signal.SIGINT)
    status, said = commands.end("interrupted")
    jobs = [outcome["cluster_job"] for outcome in record(commands.folder / "interrupted")]
    assert status == 130 and f"scancel {' '.join(jobs)}" in said and "resume_sweep=sweep" in said
    queue = commands.cluster.ask("squeue", "--noheader", "--array", "--format=%i").split()
    assert set(jobs) <= set(queue)
    commands.cluster.ask("scancel", *jobs)


def test_four_trainings_are_recorded(commands):
    status, said = commands.end("four")
    assert status == 0, said
    outcomes = record(commands.folder / "four")
    assert [outcome["status"] for outcome in outcomes] == ["completed"] * 4
    assert all(len(losses(commands.folder / "four" / "sweep" / str(number))) == 5 for number in range(4))
    assert len({outcome["best"] for outcome in outcomes}) == 4


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return in_one_process(tmp_path_factory.mktemp("alone"), *FSDP, "trainer.simulated_devices=8")


def test_a_job_on_two_nodes_trains_like_one_process_and_leaves_one_folder(commands, alone):
    status, said = commands.end("two_nodes")
    assert status == 0, said
    run = commands.folder / "two_nodes" / "sweep" / "0"
    np.testing.assert_allclose(losses(run), alone, rtol=1e-5)
    said = [file.read_text() for file in sorted((run.parent / ".submitit").glob("*/*_log.out"))]
    assert len(said) == 2 and "8 cpu devices in 2 processes" in said[0] and "step" not in said[1]
    steps = [line for line in (run / "xlstm-hydra.log").read_text().splitlines() if " step 4/4 " in f"{line} "]
    assert len(steps) == 2  # the loss, and the validation loss


def test_the_script_without_a_sweep_gives_the_same_losses(commands, alone):
    status, said = commands.end("script")
    [log] = (commands.folder / "script").glob("*.log")
    assert status == 0, log.read_text()
    [run] = (commands.folder / "script" / "outputs").iterdir()
    np.testing.assert_allclose(losses(run), alone, rtol=1e-5)


def test_a_job_resumed_after_its_time_limit_reaches_the_same_losses(commands, tmp_path):
    expected = in_one_process(tmp_path, *LONG)
    status, said = commands.end("timeout")
    assert status == 0, said
    folder = commands.folder / "timeout"
    for number in range(2):  # each task of an array is requeued on its own
        [log] = (folder / "sweep" / ".submitit").glob(f"*_{number}/*_log.out")
        said = log.read_text()
        assert "SIGTERM: the run saves and stops" in said and said.count("step 300/300  loss") == 1
    assert losses(folder / "sweep" / "0") == expected
    assert [outcome["status"] for outcome in record(folder)] == ["completed"] * 2
