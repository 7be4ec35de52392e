"""A sweep is checked whole before its first job, and each job has its own folder and its own config."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from command import run_command
from planning import shared_plan

import xlstm_hydra.plan
import xlstm_hydra.train
from xlstm_hydra import preemption
from xlstm_hydra.configs import ConfigError, Problem

UNPLANNED = "trainer.ignore_plan=true"


@pytest.fixture(autouse=True)
def jobs(tmp_path, monkeypatch):
    """Jobs that were started. They do not train."""
    started = []
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda run, folder, overrides: started.append((run, folder)))
    monkeypatch.setattr(xlstm_hydra.plan, "make_plan", shared_plan)
    monkeypatch.chdir(tmp_path)
    return started


def test_every_job_has_its_own_folder_and_its_own_layout(jobs, tmp_path):
    assert run_command("-m", "parallel=dp,fsdp,tp", "hydra.sweep.dir=sweep", UNPLANNED).status == 0
    assert [folder for _, folder in jobs] == [tmp_path / "sweep" / str(number) for number in range(3)]
    sizes = [tuple(run.parallel.axis_sizes(8).values()) for run, _ in jobs]
    assert sizes == [(8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 1, 8)]


def test_a_sweep_over_all_options_of_a_group_leaves_schemas_out(jobs):
    assert run_command("-m", "parallel=glob(*)", UNPLANNED).status == 0
    assert len(jobs) == 6


@pytest.mark.parametrize("batches", [(), ("hydra.sweeper.max_batch_size=1",)], ids=["one batch", "a batch per job"])
def test_no_job_starts_if_the_last_point_is_invalid(jobs, batches):
    done = run_command("-m", "optimizer.lr=1e-3,3e-4,-1", *batches)
    assert (done.status, jobs) == (2, [])
    assert (
        "1 of 3 points is invalid: no job was started; hydra.sweeper.on_invalid=skip skips invalid points" in done.err
    )
    assert "  job 2 (optimizer.lr=-1): optimizer.lr=-1.0: must be 0 or more\n" in done.err


BAD_SWEEPS = [
    ("trainer.seed=1,2 +hydra.sweeper.foo=1", ["xlstm-hydra: hydra.sweeper.foo: no such key. Known: max_batch_size,"]),
    ("trainer.seed=1,2 hydra.sweep.subdir=same", ["hydra.sweep.subdir='same': all jobs would have the same folder."]),
    ("trainer.seed=1,2 hydra.sweep.dir=/proc/no", ["hydra.sweep.dir='/proc/no': cannot be written: "]),
    ("parallel=dp,fsdpp", ["  job 1 (parallel=fsdpp): parallel='fsdpp': no such option. Did you mean 'fsdp'?"]),
    ("optimizer.lr=a,1", ["  job 0 (optimizer.lr=a): optimizer.lr: expected float, got 'a'"]),
    ("optimizer.lrr=1,2", ["xlstm-hydra: optimizer.lrr: no such key. Did you mean optimizer.lr?"]),
    (
        "parallel=dp,fsdpp optimizer.lr=1,-1",
        ["  jobs 2, 3 (parallel=fsdpp): parallel='fsdpp': no such", "  jobs 1, 3 (optimizer.lr=-1): optimizer.lr=-1.0"],
    ),
    ("parallel=fsdpp trainer.seed=1,2", ["xlstm-hydra: parallel='fsdpp': no such option."]),
    ("optimzer=3 optimizer.lr=1,-1", ["1. optimzer: no such key.", "2. job 1 (optimizer.lr=-1): "]),
    ("optimizer=sgd,adamw optimizer.beta1=0.9", ["  job 0 (optimizer=sgd): optimizer.beta1: no such key."]),
    ("model=tiny,custom", ["  job 1 (model=custom): model.model_class: missing"]),
    ("parallel=fsdp parallel.fsdp_axis_size=4 trainer.simulated_devices=4,6", ["  job 1 (trainer.simulated"]),
    ("optimizer.lr=interval(0,1)", ["an interval has infinitely many values. Set hydra.sweeper.num_samples="]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), BAD_SWEEPS, ids=[line for line, _ in BAD_SWEEPS])
def test_an_invalid_sweep_reports_each_problem_once_with_its_jobs(jobs, line, expected):
    done = run_command("-m", *line.split(" "))
    assert (done.status, jobs) == (2, [])
    is_list = "invalid: no job" in done.err
    assert done.err.count("\n") == len(expected) + (is_list or len(expected) > 1)
    for words in expected:
        assert words in done.err


def test_hydras_own_values_can_be_used_in_a_sweep(jobs):
    line = ["-m", "data=text", "data.path=${hydra:runtime.cwd}/${hydra:job.num}", "trainer.seed=1,2"]
    assert run_command(*line).status == 0
    assert [run.data.path.rpartition("/")[2] for run, _ in jobs] == ["0", "1"]


def test_a_job_rejected_by_its_machine_does_not_stop_the_others(jobs, monkeypatch):
    def train(run, folder, overrides):
        jobs.append(run)
        if run.trainer.seed == 1:
            raise ConfigError([Problem({"trainer.seed": 1}, "not on this machine")])

    monkeypatch.setattr(xlstm_hydra.train, "train", train)
    done = run_command("-m", "trainer.seed=1,2")
    assert (done.status, len(jobs)) == (2, 2)
    assert "xlstm-hydra: job 0 (trainer.seed=1): refused: trainer.seed=1: not on this machine" in done.err


def test_a_sweep_of_many_points_is_checked_in_milliseconds_each():
    done = run_command("-m", "optimizer.lr=range(0,25)", "trainer.seed=range(0,4)", "model.num_heads=3")
    assert done.err.count("\n") == 1


@pytest.mark.slow
def test_layouts_and_numbers_of_devices_are_in_effect_in_every_job_of_a_real_sweep(tmp_path):
    sweep = ["parallel=dp,fsdp", "trainer.simulated_devices=1,8", "debug=fast", "hydra.sweep.dir=sweep"]
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, "-m", "xlstm_hydra", "-m", *sweep]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    meshes = [line for line in done.stdout.splitlines() if line.startswith("mesh ")]
    assert [line.removeprefix("mesh").strip() for line in meshes] == [
        "1 cpu device: dp=1 fsdp=1 pp=1 tp=1",
        "8 cpu devices: dp=8 fsdp=1 pp=1 tp=1",
        "1 cpu device: dp=1 fsdp=1 pp=1 tp=1",
        "8 cpu devices: dp=1 fsdp=8 pp=1 tp=1",
    ]
    saved = [json.loads((tmp_path / "sweep" / str(number) / "metadata.json").read_text()) for number in range(4)]
    assert len(saved) == 4


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 75), ("SIGINT", 130)], ids=["SIGTERM", "SIGINT"])
def test_a_signal_whose_exception_python_drops_ends_the_sweep_before_the_next_job(jobs, monkeypatch, name, status):
    def train(run, folder, overrides):
        jobs.append(run)
        with suppress(BaseException):  # as inside a callback of the garbage collector
            os.kill(os.getpid(), getattr(signal, name))
        watch = preemption._active
        while watch is not None and not (watch.request or watch.is_interrupted):  # a thread notes the signal
            time.sleep(0.01)

    monkeypatch.setattr(xlstm_hydra.train, "train", train)
    assert run_command("-m", "trainer.seed=1,2,3").status == status
    assert len(jobs) == 1


def test_an_engine_is_checked_together_with_the_config_of_a_saved_run(jobs):
    done = run_command("--from", "nowhere", "-m", "hydra/launcher=basic", "trainer.seed=1,2")
    assert (done.status, jobs) == (2, []) and "--from='nowhere': no" in done.err, done.err
