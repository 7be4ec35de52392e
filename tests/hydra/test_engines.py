"""Launchers and sweepers: missing packages, settings, and options with the same name in other apps."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hydra
import pytest
from command import run_command
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import xlstm_hydra.train
from xlstm_hydra.configs import LocalLauncherConfig, SlurmLauncherConfig
from xlstm_hydra.hydra import VERSION_BASE
from xlstm_hydra.sweep import _run_sweep as _sweep
from xlstm_hydra.sweep import _work
from xlstm_hydra.sweep._slurm import parameters
from xlstm_hydra.sweep._work import _gpus_of_slots

MODEL = "embedding_dim=32 num_blocks=1 num_heads=2 context_length=16 chunk_size=8".split()
TINY = [
    *(f"model.{setting}" for setting in MODEL),
    *("data=synthetic", "data.motif_length=4", "trainer.eval_batches=1", "trainer.max_steps=4"),
    "logger.tensorboard=false",
]

INSTALLED_BY = {
    "hydra/launcher=slurm": "pip install 'xlstm-hydra[slurm]'",
    "hydra/launcher=slurm_multinode": "pip install 'xlstm-hydra[slurm]'",
    "hydra/launcher=local": "pip install 'xlstm-hydra[slurm]'",
    "hydra/launcher=submitit_slurm": "pip install 'xlstm-hydra[slurm]'",
    "hydra/launcher='joblib'": "pip install 'xlstm-hydra[joblib]'",
    "hydra/launcher=ray": "pip install 'xlstm-hydra[ray]'",
    "hydra/sweeper=optuna": "pip install 'xlstm-hydra[optuna]'",
    "hydra/sweeper=nevergrad": "pip install 'hydra-nevergrad-sweeper'",
    "+hydra/sweeper=ax": "pip install 'hydra-ax-sweeper'",
}


@pytest.fixture
def nothing_extra(monkeypatch):
    """An environment with the base install only."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module if module == "hydra" else None)


@pytest.mark.parametrize(("choice", "line"), INSTALLED_BY.items(), ids=INSTALLED_BY)
def test_a_missing_engine_is_reported_with_its_package_before_composing(choice, line, nothing_extra, monkeypatch):
    monkeypatch.setattr(hydra, "main", None)
    done = run_command("-m", choice, "optimizer.lr=-1,1")
    assert done.status == 2 and done.err.count("\n") == 1
    assert choice.lstrip("+").partition("=")[0] in done.err and "is not installed" in done.err and line in done.err


def test_a_missing_engine_in_a_file_is_reported_with_its_package(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [override /hydra/launcher: rq]\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    done = run_command(f"--config-dir={tmp_path}", "-m", "experiment=mine", "trainer.seed=1,2")
    assert done.status == 2 and "pip install 'hydra-rq-launcher'" in done.err, done.err


MISSPELT = {"hydra/launcher=slrum": "slurm", "hydra/launcher=raay": "ray", "hydra/sweeper=optina": "optuna"}


@pytest.mark.parametrize(("choice", "meant"), MISSPELT.items(), ids=MISSPELT)
def test_a_misspelled_engine_is_rejected_with_the_nearest_name(choice, meant):
    done = run_command("-m", choice)
    assert done.status == 2 and f"no such option. Did you mean '{meant}'?" in done.err and "pip install '" in done.err


IDLE = ["hydra/launcher=local", "hydra.launcher.jobs_at_once=2", "hydra/sweeper=basic"]


@pytest.mark.parametrize("text", IDLE)
def test_settings_of_a_sweep_are_rejected_in_a_single_run(text):
    done = run_command(text)
    assert (done.status, done.err) == (2, f"xlstm-hydra: {text}: only applies to sweeps. Add -m.\n")


def test_a_file_that_chooses_a_launcher_serves_single_runs_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda run, folder, overrides: 1.0)
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [override /hydra/launcher: basic]\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    assert run_command("--config-dir=.", "experiment=mine").status == 0


def test_the_option_optuna_is_ours_in_our_command_and_the_plugins_in_other_apps():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = run_command("--cfg", "hydra", "-p", "hydra.sweeper", "hydra/sweeper=optuna")
    ours = OmegaConf.create(done.out)
    assert ours._target_.startswith("hydra_plugins.xlstm_hydra_plugin.") and ours.max_failure_rate == 1
    with hydra.initialize(config_path=None, **VERSION_BASE):
        theirs = hydra.compose(None, overrides=["hydra/sweeper=optuna"], return_hydra_config=True).hydra.sweeper
    assert theirs._target_.startswith("hydra_plugins.hydra_optuna_sweeper.")
    assert "_target_" in ConfigStore.instance().load("hydra/sweeper/optuna.yaml").node


LR = "optimizer.lr=interval(0,1)"
DOOMED_STUDIES = {
    "no validation": ([LR, "trainer.eval_batches=0"], "trainer.eval_batches=0: a study minimizes the validation loss"),
    "no result": ([LR, "task=generate", "task.checkpoint=x"], "task='generate': has no result"),
    "nothing to search": (["optimizer.lr=0.1"], "hydra/sweeper=optuna: no key has a search space"),
    "no trial": ([LR, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: must be 1 or more"),
    "no such key": (["optimizer.lrr=interval(0,1)"], "optimizer.lrr: no such key. Did you mean optimizer.lr?"),
    "an empty interval": (["optimizer.lr=interval(1e-2,1e-4)"], "interval(1e-2,1e-4): the end of an interval must"),
    "the logarithm of 0": (["optimizer.lr=tag(log,interval(0,1))"], "the start of a logarithmic interval must be "),
    "unreadable params": (["hydra.sweeper.params={optimizer.lr: 'interval(1'}"], "=interval(1: the ( is not closed"),
    "a rule that all trials break": ([LR, "model.num_heads=3"], "model.num_heads must divide the width"),
}


@pytest.mark.parametrize(("overrides", "words"), DOOMED_STUDIES.values(), ids=DOOMED_STUDIES)
def test_a_study_that_cannot_succeed_is_rejected_before_it_starts(overrides, words, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    done = run_command("-m", "hydra/sweeper=optuna", *overrides)
    assert done.status == 2 and words in done.err
    assert not list(tmp_path.rglob("study.db"))


BAD_SETTINGS = {
    "n_trials=x": ": expected int, got 'x'",
    "n_jobs=0": "=0: must be 1 or more",
    "max_failure_rate=2": "=2.0: must be at most 1",
    "direction=[minimize,maximize]": "=['minimize', 'maximize']: must be minimize or maximize",
    "storage=3": ": expected a database URL or null, got 3",
    "sampler=3": ": expected an Optuna sampler, got 3",
    "custom_search_space=nope.f": "='nope.f': cannot be imported: No module named 'nope'",
}


def test_all_invalid_settings_of_a_study_are_reported_before_it_starts(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    done = run_command("-m", "hydra/sweeper=optuna", LR, *(f"hydra.sweeper.{setting}" for setting in BAD_SETTINGS))
    assert done.status == 2 and f"{len(BAD_SETTINGS)} problems:" in done.err
    for setting, words in BAD_SETTINGS.items():
        assert f"hydra.sweeper.{setting.partition('=')[0]}{words}" in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("setting", ["n_trials=2.5", "direction=up", "n_jobs=x", "max_failure_rate=x"])
def test_a_wrong_setting_of_a_study_is_one_message(setting, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    done = run_command("-m", "hydra/sweeper=optuna", LR, f"hydra.sweeper.{setting}")
    assert (done.status, done.err.count("\n")) == (2, 1) and f"hydra.sweeper.{setting.partition('=')[0]}" in done.err


def test_a_study_continues_in_its_folder_and_after_failed_trials(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    seen = []

    def train(run, folder, overrides):
        seen.append((folder.name, run.optimizer.weight_decay, run.data.path))
        if len(seen) == 2:
            raise FloatingPointError("loss is nan")
        return run.optimizer.lr

    monkeypatch.setattr(xlstm_hydra.train, "train", train)
    (tmp_path / "a b").write_text("text" * 1000)
    study = ["-m", "hydra/sweeper=optuna", "hydra.sweep.dir=study", "hydra.sweeper.n_trials=3"]
    point = ["optimizer.lr=interval(0.1,1)", "optimizer.weight_decay=0.125", "data=text", "data.path='a b'"]
    for _ in range(2):
        assert run_command(*study, *point).status == 0
    assert seen == [(str(number), 0.125, "a b") for number in range(6)]
    trials = optuna.load_study(study_name="xlstm-hydra", storage=f"sqlite:///{tmp_path}/study/study.db").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", *["COMPLETE"] * 4]


ASKED = {
    "a GPU": ({"gpus_per_node": 1}, {"gpus_per_node": 1}, []),
    "cores": ({"cpus_per_task": 4}, {"cpus_per_task": 4}, ["--cpus-per-task=4"]),
    "memory": ({"mem_gb": 1.5}, {"mem": "1536M"}, []),
    "nodes": ({"nodes": 2, "tasks_per_node": 4, "gpus_per_task": 1}, {"nodes": 2, "ntasks_per_node": 4}, []),
    "srun": ({"srun_args": ["--mpi=none"]}, {}, ["--mpi=none"]),
}


@pytest.mark.parametrize(("settings", "expected", "srun"), ASKED.values(), ids=ASKED)
def test_the_resources_of_a_job_are_requested_from_slurm(settings, expected, srun):
    found = parameters(SlurmLauncherConfig(name="x", submitit_folder="y", **settings))
    assert found.items() >= expected.items()
    assert found["srun_args"] == ["--kill-on-bad-exit=1", *srun]


def test_a_job_that_must_not_be_requeued_says_so_to_slurm():
    additional = [
        parameters(SlurmLauncherConfig(name="x", submitit_folder="y", max_num_timeout=times))["additional_parameters"]
        for times in (0, 3)
    ]
    assert additional == [{"signal": "TERM@120", "no-requeue": True}, {"signal": "TERM@120", "requeue": True}]


BAD = {
    "timeout_min=-4": "xlstm-hydra: hydra.launcher.timeout_min=-4: must be 1 or more\n",
    "signal_delay_s=3540": "to 61 or more, or hydra.launcher.signal_delay_s to less than 3540.",
    "timeout_min=1": "so the job would be stopped at the moment it starts. Set hydra.launcher.timeout_min to 4",
    "gpus_per_task=1": "request GPUs in two different ways",
    "mem_gb=-1": "must be greater than 0",
    "timeout=5": "no such key. Did you mean hydra.launcher.timeout_min?",
}


@pytest.mark.parametrize(("setting", "words"), BAD.items(), ids=BAD)
def test_an_invalid_job_is_rejected_and_nothing_is_submitted(setting, words, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    done = run_command("-m", "hydra/launcher=slurm", f"hydra.launcher.{setting}", "trainer.seed=1,2")
    assert done.status == 2 and words in done.err and f"hydra.launcher.{setting.partition('=')[0]}" in done.err
    assert not list(tmp_path.iterdir())


BAD_HERE = {
    "hydra/launcher=local hydra.launcher.jobs_at_once=0": "hydra.launcher.jobs_at_once=0: must be 1 or more",
    "hydra/launcher=local hydra.launcher.gpus_per_job=4": "hydra.launcher.gpus_per_job=4: this machine has no GPUs",
    "hydra/launcher=joblib hydra.launcher.n_jobs=0": "hydra.launcher.n_jobs=0: must not be 0",
}


@pytest.mark.parametrize(("line", "words"), BAD_HERE.items(), ids=BAD_HERE)
def test_an_invalid_local_launcher_is_rejected_before_planning(line, words, tmp_path, monkeypatch):
    pytest.importorskip("submitit" if "local" in line else "hydra_plugins.hydra_joblib_launcher")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(_work, "_has_gpus", lambda: False)
    monkeypatch.setattr(_sweep, "check_points", None)
    done = run_command("-m", *line.split(), "trainer.seed=1,2")
    assert (done.status, done.err.count("\n"), words in done.err) == (2, 1, True), done.err
    assert not list(tmp_path.iterdir())


def test_processes_that_could_not_connect_are_rejected(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    done = run_command("-m", "hydra/launcher=slurm_multinode", "distributed=none")
    assert done.status == 2 and "distributed='none', hydra.launcher.nodes=2" in done.err


def test_more_gpus_than_available_are_rejected(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    done = run_command("-m", "hydra/launcher=local", "hydra.launcher.jobs_at_once=2", "hydra.launcher.gpus_per_job=2")
    assert done.status == 2 and "4 GPUs are required, but 3 are available here (CUDA_VISIBLE_DEVICES=4,5,6)" in done.err
    two = LocalLauncherConfig(jobs_at_once=3, submitit_folder="")
    assert _gpus_of_slots(two) == [[4], [5], [6]]


def test_a_machine_without_slurm_is_reported_and_nothing_is_submitted(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    done = run_command("-m", "hydra/launcher=slurm", "trainer.seed=1,2")
    assert done.status == 2 and "SLURM is not available on this machine (sbatch or srun not found)" in done.err


@pytest.mark.slow
def test_local_jobs_end_independently_of_each_other(tmp_path):
    pytest.importorskip("submitit")
    settings = ["hydra/launcher=local", "hydra.launcher.jobs_at_once=2", "hydra.sweep.dir=sweep"]
    settings += ["hydra.launcher.setup=['export SEEN=$CUDA_VISIBLE_DEVICES']"]
    point = ["trainer.max_steps=4,100000", "logger.log_every_n_steps=1"]
    command = [sys.executable, "-m", "xlstm_hydra", "-m", *TINY, *settings, *point]
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as sweep:
        metrics = tmp_path / "sweep" / "1" / "metrics.csv"
        while not metrics.exists() or metrics.read_text().count("\n") < 3:
            assert sweep.poll() is None
            time.sleep(0.2)
        for process in _children(sweep.pid):
            if (Path("/proc") / str(process) / "cmdline").read_bytes().count(b"submitit.core._submit"):
                environ = (Path("/proc") / str(process) / "environ").read_bytes()
                if b"CUDA_VISIBLE_DEVICES=1" in environ:
                    os.kill(process, signal.SIGKILL)
        said = sweep.communicate(timeout=120)[1]
    assert sweep.returncode == 1, said
    outcomes = [json.loads(line) for line in (tmp_path / "sweep" / "sweep.jsonl").read_text().splitlines()]
    assert [outcome["status"] for outcome in outcomes] == ["completed", "lost"]
    assert "exited without a result" in outcomes[1]["reason"]


def _children(process):
    """All descendants of a process."""
    found = [int(text) for text in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return [*found, *(child for own in found for child in _children(own))]


@pytest.mark.slow
def test_joblib_runs_jobs_whose_devices_differ_in_the_same_process(tmp_path):
    pytest.importorskip("joblib")
    settings = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "hydra.sweep.dir=sweep"]
    command = [sys.executable, "-m", "xlstm_hydra", "-m", *TINY, *settings, "trainer.simulated_devices=2,4"]
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    logs = [(tmp_path / "sweep" / str(number) / "xlstm-hydra.log").read_text() for number in range(2)]
    assert "mesh     2 cpu devices" in logs[0] and "mesh     4 cpu devices" in logs[1]
