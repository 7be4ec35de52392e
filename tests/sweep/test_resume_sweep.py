"""`resume_sweep=DIR` runs what is missing or failed, with the command line of the sweep, in the same folders."""

import json
from pathlib import Path

import pytest
from command import run_command
from hydra.core.hydra_config import HydraConfig

import xlstm_hydra.train
from xlstm_hydra.configs import ConfigError, Problem
from xlstm_hydra.metadata import hold_folder
from xlstm_hydra.sweep import _driver, _report, read_record

UNPLANNED = "trainer.ignore_plan=true"
"""Nothing is trained here, so nothing need fit."""


@pytest.fixture(autouse=True)
def sweep(tmp_path, monkeypatch):
    """How the training of a seed ends. Nothing is trained, and nothing drawn."""

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
    monkeypatch.setattr(_report, "_picture", lambda *_: [])
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
def test_only_what_is_missing_runs_again_each_in_its_folder(sweep, tmp_path, error, missing):
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


def test_where_nothing_is_missing_the_results_are_told_and_nothing_runs(sweep):
    sweep.start()
    done = sweep.resume()
    assert (done.status, sweep.runs) == (0, [])
    assert "nothing is missing: all 3 jobs are completed" in done.out and "3 jobs: 3 completed" in done.out
    done = sweep.resume("trainer.max_steps=600")
    assert (done.status, sweep.runs) == (2, []) and "trainer.max_steps: would make" in done.err


def test_a_sweep_can_go_on_from_another_folder_and_more_than_once(sweep, tmp_path, monkeypatch):
    sweep.endings.update({0: ValueError(), 1: ValueError()})
    sweep.start()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sweep.endings.clear()
    train = xlstm_hydra.train.train
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda run, *rest: (_ for _ in ()).throw(OSError("again")))
    done = run_command("resume_sweep=../sweep")
    assert done.status == 1 and "goes on in" in done.err and sweep.statuses() == ["failed", "failed", "completed"]
    monkeypatch.setattr(xlstm_hydra.train, "train", train)
    assert sweep.resume(place=tmp_path / "sweep").status == 0
    assert len(sweep.runs) == 2 and sweep.statuses() == ["completed"] * 3
    assert len(json.loads((tmp_path / "sweep" / "command.json").read_text())) == 3


def test_a_job_that_still_runs_is_not_started_again(sweep):
    sweep.endings[1] = KeyboardInterrupt()
    sweep.start()
    with hold_folder(Path("sweep/1")):
        done = sweep.resume()
    assert [run.trainer.seed for run, _ in sweep.runs] == [2]
    assert done.status == 1 and sweep.statuses()[2] == "completed"


def test_points_that_were_skipped_as_invalid_are_checked_anew(sweep):
    done = sweep.start("hydra.sweeper.on_invalid=skip", "optimizer.lr=1e-3,-1", seeds="0,1")
    assert done.status == 0 and sweep.statuses() == ["completed", "invalid", "completed", "invalid"]
    assert read_record(Path("sweep"))[1].reason == "optimizer.lr=-1.0: must be 0 or more"
    done = sweep.resume()
    assert sweep.runs == [] and sweep.statuses() == ["completed", "invalid", "completed", "invalid"]


def test_how_jobs_run_may_be_typed_anew(sweep):
    sweep.endings[1] = ValueError()
    sweep.start("logger.log_every_n_steps=5")
    done = sweep.resume("logger.log_every_n_steps=7", "parallel=fsdp", "trainer.ignore_plan=true")
    assert done.status == 0, done.err
    ((run, _),) = sweep.runs
    assert (run.logger.log_every_n_steps, run.parallel.fsdp_axis_size, run.trainer.seed) == (7, -1, 1)


def test_what_was_typed_at_one_resume_does_not_hinder_the_next(sweep):
    sweep.endings.update({1: ValueError(), 2: ValueError()})
    sweep.start()
    sweep.resume("logger.csv=false", endings={2: ValueError()})
    assert sweep.statuses() == ["completed", "completed", "failed"]
    done = sweep.resume()
    assert (done.status, [run.trainer.seed for run, _ in sweep.runs]) == (0, [2]), done.err


WRONG = {
    "other steps": (["trainer.max_steps=600"], "trainer.max_steps: would make the jobs that are run now others"),
    "another model": (["model=mlstm_120m"], "model: would make the jobs"),
    "what is swept": (["trainer.seed=0,1,2,3"], "trainer.seed: the jobs of this sweep differ in it"),
    "a group left out": (["~debug"], "debug: would make the jobs that are run now others"),
    "another folder": (["hydra.sweep.dir=x"], "hydra.sweep.dir: follows from resume_sweep"),
    "a run": (["resume=x"], "resume_sweep and resume: cannot be given together"),
    "twice": (["resume_sweep=sweep"], "resume_sweep: given more than once"),
}


@pytest.mark.parametrize(("typed", "words"), WRONG.values(), ids=WRONG)
def test_what_would_make_another_sweep_of_it_is_refused(sweep, typed, words):
    sweep.endings[1] = ValueError()
    sweep.start()
    done = sweep.resume(*typed)
    assert (done.status, sweep.runs) == (2, []) and words in done.err


PLACES = {"nothing": "", "no folder": "nowhere", "no sweep": "."}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_place_that_is_no_sweep_is_refused(sweep, place):
    done = sweep.resume(place=place)
    assert done.status == 2 and done.err.startswith("xlstm-hydra: resume_sweep")


def test_a_sweep_that_is_at_work_is_refused(sweep):
    sweep.endings[1] = ValueError()
    sweep.start()
    _driver._drive(Path("sweep").absolute())
    done = sweep.resume()
    _driver._leave(Path("sweep").absolute())
    assert done.status == 2 and "another process is sweeping in this folder" in done.err


def test_points_that_are_others_now_are_refused(sweep):
    sweep.endings[1] = ValueError()
    sweep.start()
    commands = json.loads(Path("sweep/command.json").read_text())
    commands[0]["arguments"][1] = "trainer.seed=0,5,2"
    Path("sweep/command.json").write_text(json.dumps(commands))
    done = sweep.resume()
    assert done.status == 2 and "its job 1 is 'trainer.seed=1', and would be 'trainer.seed=5'" in done.err


def test_a_sweep_that_slurm_has_started_again_goes_on_by_itself(sweep, monkeypatch):
    sweep.endings[1] = SystemExit(75)
    assert sweep.start().status == 75
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    sweep.endings.clear()
    sweep.runs.clear()
    done = sweep.start()
    assert done.status == 0, done.err
    assert [run.trainer.seed for run, _ in sweep.runs] == [1, 2] and sweep.is_resumed[-2:] == [True, True]
