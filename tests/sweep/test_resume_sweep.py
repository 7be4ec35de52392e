"""`resume_sweep=DIR` runs the missing and failed jobs of a sweep with its command line, in the same folders."""

import json
import os
import sys
from pathlib import Path
from unittest import mock

import pytest
from command import run_command
from hydra.core.hydra_config import HydraConfig
from saved import composed, save

import xlstm_hydra.train
from xlstm_hydra.configs import ConfigError, Problem
from xlstm_hydra.runs import hold_folder, lock_folder
from xlstm_hydra.sweep import expand_resume_sweep, read_record

UNPLANNED = "trainer.ignore_plan=true"
"""Nothing is trained here, so nothing need fit."""


@pytest.fixture(autouse=True)
def sweep(tmp_path, monkeypatch):
    """The end of the training of each seed. Nothing is trained or plotted."""

    class Sweep:
        endings = {}
        runs = []
        is_resumed = []

        def start(self, *arguments, seeds="0,1,2"):
            return run_command("-m", f"trainer.seed={seeds}", "hydra.sweep.dir=sweep", UNPLANNED, *arguments)

        def resume(self, *arguments, place="sweep", endings=()):
            self.endings, self.runs[:], self.is_resumed[:] = dict(endings), [], []
            return run_command(f"resume_sweep={place}", *arguments)

        def statuses(self):
            return [outcome.status for outcome in read_record(tmp_path / "sweep")]

    found = Sweep()

    def train(run, folder, overrides):
        found.runs.append((run, Path(folder)))
        found.is_resumed.append(HydraConfig.get().sweeper.resume)
        ending = found.endings.get(run.trainer.seed, 1.0)
        if isinstance(ending, BaseException):
            raise ending
        return ending

    monkeypatch.setattr(xlstm_hydra.train, "train", train)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # no plots
    monkeypatch.chdir(tmp_path)
    return found


REFUSED = ConfigError([Problem({"trainer.seed": 1}, "not on this machine")])
STOPS = {
    "failed": (ValueError("a bug"), [1]),
    "refused": (REFUSED, [1]),
    "interrupted": (KeyboardInterrupt(), [1, 2]),
    "preempted": (SystemExit(75), [1, 2]),
}


@pytest.mark.parametrize(("error", "missing"), STOPS.values(), ids=STOPS)
def test_only_missing_and_failed_jobs_run_again_in_their_folders(sweep, tmp_path, error, missing):
    sweep.endings[1] = error
    sweep.start("optimizer.lr=2e-3")
    before = read_record(Path("sweep"))[0]
    done = sweep.resume()
    assert done.status == 0, done.err
    assert [(run.trainer.seed, folder) for run, folder in sweep.runs] == [
        (job, tmp_path / "sweep" / str(job)) for job in missing
    ]
    assert {run.optimizer.lr for run, _ in sweep.runs} == {2e-3}
    assert sweep.is_resumed == [True] * len(missing)
    assert sweep.statuses() == ["completed"] * 3 and read_record(Path("sweep"))[0] == before


def test_a_completed_sweep_prints_its_results_and_runs_nothing(sweep):
    sweep.start()
    done = sweep.resume()
    assert (done.status, sweep.runs) == (0, [])
    assert "nothing is missing: all 3 jobs are completed" in done.out and "3 jobs: 3 completed" in done.out
    done = sweep.resume("trainer.max_steps=600")
    assert (done.status, sweep.runs) == (2, []) and "trainer.max_steps: would make" in done.err


def test_a_sweep_can_be_resumed_from_another_folder_and_repeatedly(sweep, tmp_path, monkeypatch):
    sweep.endings.update({0: ValueError(), 1: ValueError()})
    sweep.start()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sweep.endings.clear()
    train = xlstm_hydra.train.train
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda run, *rest: (_ for _ in ()).throw(OSError("again")))
    done = run_command("resume_sweep=../sweep")
    assert (
        done.status == 1
        and "resuming the sweep in" in done.err
        and sweep.statuses() == ["failed", "failed", "completed"]
    )
    monkeypatch.setattr(xlstm_hydra.train, "train", train)
    assert sweep.resume(place=tmp_path / "sweep").status == 0
    assert len(sweep.runs) == 2 and sweep.statuses() == ["completed"] * 3
    assert len(json.loads((tmp_path / "sweep" / "command.json").read_text())) == 3


def test_a_running_job_is_not_started_again(sweep):
    sweep.endings[1] = KeyboardInterrupt()
    sweep.start()
    with hold_folder(Path("sweep/1")):
        done = sweep.resume()
    assert [run.trainer.seed for run, _ in sweep.runs] == [2]
    assert done.status == 1 and sweep.statuses()[2] == "completed"


def test_skipped_invalid_points_are_checked_again(sweep):
    done = sweep.start("hydra.sweeper.on_invalid=skip", "optimizer.lr=1e-3,-1", seeds="0,1")
    assert done.status == 0 and sweep.statuses() == ["completed", "invalid", "completed", "invalid"]
    assert read_record(Path("sweep"))[1].reason == "optimizer.lr=-1.0: must be 0 or more"
    done = sweep.resume()
    assert sweep.runs == [] and sweep.statuses() == ["completed", "invalid", "completed", "invalid"]


def test_settings_of_how_jobs_run_may_be_changed(sweep):
    sweep.endings[1] = ValueError()
    sweep.start("logger.log_every_n_steps=5")
    done = sweep.resume("logger.log_every_n_steps=7", "parallel=fsdp", "trainer.ignore_plan=true")
    assert done.status == 0, done.err
    ((run, _),) = sweep.runs
    assert (run.logger.log_every_n_steps, run.parallel.fsdp_axis_size, run.trainer.seed) == (7, -1, 1)


def test_arguments_of_one_resumption_do_not_block_the_next(sweep):
    sweep.endings.update({1: ValueError(), 2: ValueError()})
    sweep.start()
    sweep.resume("logger.csv=false", endings={2: ValueError()})
    assert sweep.statuses() == ["completed", "completed", "failed"]
    done = sweep.resume()
    assert (done.status, [run.trainer.seed for run, _ in sweep.runs]) == (0, [2]), done.err


WRONG = {
    "other steps": (["trainer.max_steps=600"], "trainer.max_steps: would make the remaining jobs differ"),
    "another model": (["model=mlstm_120m"], "model: would make the remaining jobs"),
    "what is swept": (["trainer.seed=0,1,2,3"], "trainer.seed: cannot be changed, because the jobs of"),
    "a group left out": (["~debug"], "debug: would make the remaining jobs differ"),
    "another folder": (["hydra.sweep.dir=x"], "hydra.sweep.dir: is set by resume_sweep"),
    "a run": (["resume=x"], "resume_sweep and resume: cannot be given together"),
    "twice": (["resume_sweep=sweep"], "resume_sweep: given more than once"),
}


@pytest.mark.parametrize(("typed", "words"), WRONG.values(), ids=WRONG)
def test_arguments_that_would_change_the_sweep_are_rejected(sweep, typed, words):
    sweep.endings[1] = ValueError()
    sweep.start()
    done = sweep.resume(*typed)
    assert (done.status, sweep.runs) == (2, []) and words in done.err


PLACES = {"nothing": "", "no folder": "nowhere", "no sweep": "."}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_folder_without_a_sweep_is_rejected(sweep, place):
    done = sweep.resume(place=place)
    assert done.status == 2 and done.err.startswith("xlstm-hydra: resume_sweep")


def test_a_running_sweep_is_rejected(sweep):
    sweep.endings[1] = ValueError()
    sweep.start()
    with lock_folder(Path("sweep"), ".sweeping.lock", "sweep"):
        done = sweep.resume()
    assert done.status == 2 and "a sweep is already running in this folder" in done.err


def test_changed_points_are_rejected(sweep):
    sweep.endings[1] = ValueError()
    sweep.start()
    commands = json.loads(Path("sweep/command.json").read_text())
    commands[0]["arguments"][1] = "trainer.seed=0,5,2"
    Path("sweep/command.json").write_text(json.dumps(commands))
    done = sweep.resume()
    assert (
        done.status == 2 and "its job 1 has the overrides 'trainer.seed=1', but would get 'trainer.seed=5'" in done.err
    )


def test_a_sweep_restarted_by_slurm_resumes_by_itself(sweep, monkeypatch):
    sweep.endings[1] = SystemExit(75)
    assert sweep.start().status == 75
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    sweep.endings.clear()
    sweep.runs.clear()
    done = sweep.start()
    assert done.status == 0, done.err
    assert [run.trainer.seed for run, _ in sweep.runs] == [1, 2] and sweep.is_resumed[-2:] == [True, True]


def record_by_hand(arguments, cwd):
    """Write the files of a sweep of three jobs that have not run. Return them with their times."""
    Path("sweep").mkdir()
    points = [{"job": seed, "overrides": [f"trainer.seed={seed}", UNPLANNED]} for seed in range(3)]
    Path("sweep/sweep.jsonl").write_text("".join(f"{json.dumps(point)}\n" for point in points))
    Path("sweep/command.json").write_text(json.dumps([{"arguments": arguments, "cwd": str(cwd)}]))
    return files()


def files():
    """All files below the current folder, with their times."""
    return {file: file.stat().st_mtime_ns for file in Path().rglob("*")}


def change_command(**changes):
    """Change the recorded command of the sweep, as another person could."""
    file = Path("sweep/command.json")
    commands = json.loads(file.read_text())
    commands[-1] |= changes
    file.write_text(json.dumps(commands))


BASE = ["-m", "trainer.seed=0,1,2", UNPLANNED]
CODE = {
    "a callback": ["+hydra.callbacks.x._target_=os.system"],
    "a callback as a dictionary": ["+hydra.callbacks={x: {_target_: os.system}}"],
    "an option at another place": ["+model@hydra.callbacks.x=tiny"],
    "a target": ["+optimizer._target_=os.system"],
    "a target in a dictionary": ["optimizer={_target_: os.system}"],
    "a target among values": ["optimizer=choice({_target_: os.system},adamw)"],
    "a target in a list": ["+data.extra=[{_target_: os.system}]"],
    "a target that is appended": ["data.extra=extend_list({_target_: os.system})"],
    "all of Hydra": ["hydra={callbacks: {x: {_target_: os.system}}}"],
    "a class": ["model.model_class=evil.Model"],
    "a class in a dictionary": ["model={model_class: evil.Model}"],
    "a folder of options": ["--config-dir=/tmp"],
    "a folder of options in two words": ["--config-dir", "/tmp"],
    "a single run": ["hydra.mode=RUN"],
    "a short flag": ["-cd=/tmp"],
    "another primary config": ["--config-path=/tmp", "--config-name=x"],
    "a search path": ["hydra.searchpath=[file:///tmp]"],
    "a search path beside a checkpoint": ["hydra.searchpath=['ckpt:///tmp/run',pkg://evil]"],
    "an option that is a path": ["model=../../../../tmp/evil"],
    "options that are paths": ["experiment=[../evil]"],
    "an absolute option": ["model=/tmp/evil"],
    "a device that is a path": ["task.device=../../evil"],
    "an environment": ["+hydra.job.env_set.LD_PRELOAD=/tmp/evil.so"],
    "a copied environment": ["hydra.job.env_copy=[HOME]"],
    "a variable": ["data.path=${oc.env:HOME}"],
    "a variable in quotes": ["data.path='${oc.env:HOME}'"],
    "a variable behind backslashes": [r"data.path=$\{oc.env:HOME\}"],
    "a variable in another": ["data.path=${data.${oc.env:HOME}}"],
    "a resolver": ["data.path=${x:1}"],
    "a value of Hydra": ["data.path=${hydra.runtime.cwd}"],
    "another launcher": ["hydra/launcher=evil"],
    "lines of the shell": ["hydra/launcher=local", "hydra.launcher.setup=['touch x']"],
    "options of srun": ["hydra/launcher=slurm", "hydra.launcher.srun_args=[--prolog=x]"],
    "options of sbatch": ["hydra/launcher=slurm", "+hydra.launcher.additional_parameters={export: x}"],
    "options of sbatch in a name": ["hydra/launcher=slurm", "hydra.launcher.partition='a --export=LD_PRELOAD=x'"],
    "a line in a name": ["hydra/launcher=slurm", "hydra.launcher.partition='a\ntouch x'"],
    "a folder of pickles": ["hydra/launcher=local", "hydra.launcher.submitit_folder=/tmp/evil"],
    "a handler of logs": ["+hydra.job_logging.handlers.x={class: evil.Handler}"],
    "a run elsewhere": ["hydra.run.dir=/tmp/x"],
    "the name of a log elsewhere": ["hydra.job.name=../../x"],
    "Hydra's record elsewhere": ["hydra.output_subdir=/tmp/x"],
    "jobs elsewhere": ["hydra.sweep.subdir=../../x${hydra.job.num}"],
    "jobs in the root": ["hydra.sweep.subdir=/tmp/x${hydra.job.num}"],
    "jobs elsewhere by a value": ["hydra.sweep.subdir=${data.path}${hydra.job.num}", "data.path=../../x"],
    "overrides in a setting": ["hydra.sweeper.params={'model': '../evil'}"],
    "a cache": ["trainer.compilation_cache_dir=/tmp/evil"],
    "another machine": ["distributed.coordinator_address=evil:1"],
    "another key": ["+evil=1"],
    "no override": ["evil"],
    "escape sequences": ["data.path=\x1b[2J"],
}


@pytest.mark.parametrize("arguments", CODE.values(), ids=CODE)
def test_a_recorded_command_that_can_load_code_needs_trust(sweep, tmp_path, arguments):
    before = record_by_hand([*BASE, *arguments], tmp_path)
    done = sweep.resume()
    assert (done.status, sweep.runs, done.err.count("\n")) == (2, [], 1), done.err
    assert "can load code or access other folders" in done.err and "add --trust" in done.err
    assert done.out == "" and "\x1b" not in done.err and files() == before


def test_a_flag_and_its_folder_are_listed_as_one(sweep, tmp_path):
    record_by_hand([*BASE, "--config-dir", "mine"], tmp_path)
    assert "other folders: --config-dir mine (adds a folder with options). The command is:" in sweep.resume().err


def test_a_sweep_that_was_recorded_by_hand_runs(sweep, tmp_path):
    record_by_hand(BASE, tmp_path)
    done = sweep.resume()
    assert done.status == 0 and [run.trainer.seed for run, _ in sweep.runs] == [0, 1, 2], done.err


def test_each_resumption_uses_a_new_folder_for_pickles(tmp_path):
    own = "hydra.launcher.submitit_folder={}/sweep/.submitit/{}/%j"
    record_by_hand([*BASE, "hydra/launcher=local", own.format(tmp_path, "0123abcd")], tmp_path)
    found = [text for text in expand_resume_sweep(["resume_sweep=sweep"]) if "submitit_folder" in text]
    assert len(found) == 1 and f"{tmp_path}/sweep/.submitit/" in found[0] and "0123abcd" not in found[0]


HARMLESS = {
    "choices": ["optimizer=lion", "parallel=fsdp", "scheduler=constant"],
    "recipes": ["experiment=[copying]", "debug=fast"],
    "a group left out": ["~debug"],
    "values": ["optimizer.lr=1e-3", "parallel.remat=[mLSTMBlock]", "trainer.max_steps=70"],
    "shell metacharacters": ["data=text", "data.path='$(touch x); `touch x` | & > < * ? ~'"],
    "the value of another field": ["optimizer.weight_decay=${optimizer.lr}"],
    "names of jobs": ["hydra.sweep.subdir=s${trainer.seed}_${hydra.job.num}"],
    "settings of the sweep": ["hydra.sweeper.on_invalid=skip", "hydra.sweeper.max_batch_size=2"],
    "logging": ["hydra/job_logging=none", "hydra.verbose=false"],
}


@pytest.mark.parametrize("arguments", HARMLESS.values(), ids=HARMLESS)
def test_a_sweep_that_loads_no_code_resumes_without_trust(sweep, arguments):
    sweep.endings[1] = ValueError()
    started = sweep.start(*arguments, seeds="0,1")
    assert started.status == 1, started.err
    done = sweep.resume()
    assert (done.status, [run.trainer.seed for run, _ in sweep.runs]) == (0, [1]), done.err


def test_a_sweep_from_a_checkpoint_resumes_without_trust(sweep, tmp_path):
    save(tmp_path / "run", composed("model.embedding_dim=64", "data=synthetic"))
    sweep.endings[1] = ValueError()
    assert sweep.start("--from", "run").status == 1
    assert sweep.resume().status == 0
    assert [run.model.model_config.embedding_dim for run, _ in sweep.runs] == [64]


def test_a_trusted_command_is_printed_and_run(sweep):
    sweep.endings[1] = ValueError()
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/mine.yaml").write_text("# @package _global_\noptimizer: {lr: 0.5}\n")
    sweep.start("--config-dir=conf", "experiment=mine")
    refused = sweep.resume()
    assert refused.status == 2 and "--config-dir=conf (adds a folder with options)" in refused.err
    done = sweep.resume("--trust")
    assert (done.status, [run.optimizer.lr for run, _ in sweep.runs]) == (0, [0.5]), done.err
    assert "the recorded command of the sweep is: xlstm-hydra " in done.err and "--config-dir=conf" in done.err
    assert "--trust" not in Path("sweep/command.json").read_text()


def test_trust_only_applies_to_resumed_sweeps(sweep):
    done = run_command("--trust")
    assert done.status == 2 and "--trust: only applies to resume_sweep=DIR" in done.err


def test_a_command_that_was_typed_elsewhere_needs_trust(sweep, tmp_path):
    sweep.endings[1] = ValueError()
    sweep.start()
    (tmp_path / "elsewhere").mkdir()
    change_command(cwd=str(tmp_path / "elsewhere"))
    done = sweep.resume()
    assert (done.status, sweep.runs) == (2, []) and "nor a parent of the sweep folder" in done.err
    assert sweep.resume("--trust", place=tmp_path / "sweep").status == 0 and Path.cwd() == tmp_path / "elsewhere"


@pytest.mark.parametrize("is_trusted", [False, True], ids=["not trusted", "trusted"])
def test_modules_next_to_a_trusted_sweep_are_imported(sweep, tmp_path, monkeypatch, is_trusted):
    sweep.endings[1] = ValueError()
    sweep.start()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    seen = []
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda *_: seen.append(sys.path) or 1.0)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with mock.patch.dict(os.environ):
        done = run_command("resume_sweep=../sweep", *["--trust"] * is_trusted)
    ((*path,),) = seen
    assert done.status == 0 and ("are not imported" in done.err) is not is_trusted
    assert (str(tmp_path) in path) is is_trusted and "" not in path and str(tmp_path / "elsewhere") in path


COMMANDS = {
    "no JSON": ("[{", "not JSON"),
    "no list": ('{"arguments": []}', "expected a list of commands"),
    "none": ("[]", "expected a list of commands"),
    "a text": ('["x"]', "[0]: expected an object with arguments and cwd"),
    "another field": ('[{"arguments": [], "cwd": "/", "env": {}}]', "[0]: expected an object with arguments and cwd"),
    "numbers": ('[{"arguments": [1], "cwd": "/"}]', "[0].arguments: expected a list of strings"),
    "null": ('[{"arguments": null, "cwd": "/"}]', "[0].arguments: expected a list of strings"),
    "a relative folder": ('[{"arguments": [], "cwd": "../x"}]', "[0].cwd: expected the absolute path of a folder"),
    "a NUL": ('[{"arguments": [], "cwd": "/\\u0000"}]', "[0].cwd: expected the absolute path of a folder"),
    "deep nesting": ("[" * 9000 + "]" * 9000, "nested too deeply to be a list of commands"),
    "twice": ('[{"arguments": [], "cwd": "/", "cwd": "/"}]', "duplicate key"),
}


@pytest.mark.parametrize(("text", "words"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_file_not_written_by_a_sweep_is_rejected(sweep, tmp_path, text, words):
    record_by_hand(BASE, tmp_path)
    Path("sweep/command.json").write_text(text)
    done = sweep.resume()
    assert (done.status, sweep.runs) == (2, []) and words in done.err and "Traceback" not in done.err


def test_a_job_whose_line_is_damaged_runs_again_unless_its_folder_has_its_outcome(sweep):
    sweep.start()
    file = Path("sweep/sweep.jsonl")
    lines = file.read_text().split("\n")
    lines[0], lines[2] = '{"job": 0, "overrides": null}', lines[2][:40]
    file.write_text("\n".join(lines))
    Path("sweep/2/outcome.json").unlink()
    done = sweep.resume()
    assert done.status == 0, done.err
    assert [run.trainer.seed for run, _ in sweep.runs] == [2] and sweep.statuses() == ["completed"] * 3


def test_a_record_without_a_readable_line_is_recreated(sweep):
    sweep.start()
    Path("sweep/sweep.jsonl").write_bytes(b"\xff\n\0\n{\n")
    for job in (0, 1):
        Path(f"sweep/{job}/outcome.json").unlink()
    done = sweep.resume()
    assert done.status == 0, done.err
    assert [run.trainer.seed for run, _ in sweep.runs] == [0, 1] and sweep.statuses() == ["completed"] * 3


@pytest.mark.parametrize(("text", "status"), [(b"\0" * 100, 0), (b"", 2)], ids=["NUL bytes", "an empty file"])
def test_a_sweep_is_not_complete_if_no_line_of_its_record_can_be_read(sweep, text, status):
    sweep.start()
    Path("sweep/sweep.jsonl").write_bytes(text)
    Path("sweep/2/outcome.json").unlink()
    done = sweep.resume()
    assert done.status == status, done.err
    assert "nothing is missing" not in done.out
    assert [run.trainer.seed for run, _ in sweep.runs] == ([2] if status == 0 else [])
