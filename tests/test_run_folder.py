"""A rejected command leaves every folder unchanged, and a folder that cannot be used is one message."""

import errno
import fcntl
import logging
from pathlib import Path

import pytest
from command import run_command
from saved import composed, save

import xlstm_hydra.train
from xlstm_hydra.configs import ConfigError, Problem
from xlstm_hydra.runs import RunFolder, hold_folder

pytestmark = pytest.mark.usefixtures("logging_of_the_tests")


@pytest.fixture(autouse=True)
def trained(tmp_path, monkeypatch):
    """The runs that were started. Nothing is trained."""
    found = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda run, folder, overrides: found.append(run))
    return found


def content(folder="."):
    """Every folder and file, with the text of the files."""
    return {path: path.read_text() if path.is_file() else None for path in sorted(Path(folder).rglob("*"))}


def make_link(path):
    Path(path).symlink_to("nowhere")


UNUSABLE = {
    "a file": (lambda: Path("run").touch(), "run", "cannot be written: it is not a folder"),
    "below a file": (lambda: Path("run").touch(), "run/a/b", "/run cannot be written: it is not a folder"),
    "a link to nothing": (lambda: make_link("run"), "run", "cannot be written: it is a broken link"),
    "below a link to nothing": (lambda: make_link("run"), "run/a", "/run cannot be written: it is a broken link"),
    "a long name": (lambda: None, "a" * 300, "cannot be written: File name too long"),
    "a system folder": (lambda: None, "/proc/no/run", "/proc/no cannot be written: No such file or directory"),
    "a NUL": (lambda: None, '"a\0b"', "cannot be written: its name contains a NUL character"),
    "the default below a file": (lambda: Path("outputs").touch(), None, "/outputs cannot be written: it is not a"),
    "a lock that is a folder": (lambda: Path("run/.lock").mkdir(parents=True), "run", "/.lock cannot be written: Is a"),
    "a record that is a file": (lambda: (Path("run").mkdir(), Path("run/.hydra").touch()), "run", "/.hydra cannot be"),
    "a log that is a folder": (lambda: Path("run/xlstm-hydra.log").mkdir(parents=True), "run", ".log cannot be writt"),
}


@pytest.mark.parametrize(("prepare", "folder", "words"), UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("task", ["train", "plan"])
def test_a_folder_that_cannot_be_used_is_one_message_and_nothing_is_started(prepare, folder, words, task, trained):
    prepare()
    before = content()
    given = [] if folder is None else [f"hydra.run.dir={folder}"]
    done = run_command(f"task={task}", *given, quiet=False)
    assert (done.status, trained) == (2, [])
    assert done.err.startswith("xlstm-hydra: hydra.run.dir=") and words in done.err
    assert done.err.endswith(". Choose another folder with hydra.run.dir=DIR.\n") and done.err.count("\n") == 1
    assert content() == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_every_system_error_about_a_new_folder_is_one_message(number, monkeypatch):
    def fail(self, *_, **__):
        raise OSError(number, "the reason", str(self))

    monkeypatch.setattr(Path, "mkdir", fail)
    done = run_command("hydra.run.dir=new/run")
    assert done.status == 2
    way = "Free some space. " if number == errno.ENOSPC else ""
    assert f"/new cannot be written: the reason. {way}Choose another folder with hydra.run.dir=DIR." in done.err


def test_a_disk_that_is_full_when_hydra_writes_its_record_is_one_message(monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hydra.core.utils._save_config", fail)
    done = run_command("hydra.run.dir=new/run")
    assert done.status == 2 and "cannot be written: No space left on device. Free some space. Choose an" in done.err
    assert content() == {}


def test_problems_of_the_config_come_before_those_of_its_folder():
    Path("run").touch()
    assert (
        run_command("hydra.run.dir=run", "optimizer.lr=-1").err == "xlstm-hydra: optimizer.lr=-1.0: must be 0 or more\n"
    )


def test_a_sweep_whose_folder_cannot_be_used_is_one_message(trained):
    Path("sweep").touch()
    done = run_command("-m", "trainer.seed=1,2", "hydra.sweep.dir=sweep/a")
    assert (done.status, trained) == (2, [])
    assert "/sweep cannot be written: it is not a folder. Choose another folder with hydra.sweep.dir=DIR." in done.err


REJECTED = {
    "a rule": (["optimizer.lr=-1"], "must be 0 or more"),
    "an unknown key": (["optimizer.lrr=1"], "Did you mean optimizer.lr?"),
    "an unknown option": (["model=tinyy"], "Did you mean 'tiny'?"),
    "checkpoints of later steps": ([], "already has checkpoints of later steps (20), which would be overwritten"),
    "no such checkpoint": (["checkpoint.restore=nowhere"], "no checkpoints in"),
    "another run in the folder": (["checkpoint.restore=auto"], "another run is writing in this folder"),
    "devices that are not there": (["checkpoint.restore=auto", "trainer.seed=3"], "not on this machine"),
    "a resumed run, by its devices": (["resume=run", "trainer.max_steps=99"], "not on this machine"),
    "a resumed run, by its step": (["resume=run@7"], "no checkpoint of step 7. Saved steps: 20."),
    "of the log": (["hydra.job_logging.root.level=LOUD", "checkpoint.restore=auto"], "hydra.job_logging: Unable to"),
}


@pytest.fixture
def run_with_record(trained, monkeypatch):
    """A run that has saved a step, in the folder `run`, with a record and a log of its own. On this machine, no other
    can be trained."""
    save(Path("run").absolute(), composed(), step=20)
    assert run_command("hydra.run.dir=run", "checkpoint.restore=auto", quiet=False).status == 0
    (Path("run") / "xlstm-hydra.log").write_text("what was logged\n")

    def refuse(run, folder, overrides):
        xlstm_hydra.train._log.log.info("started")
        raise ConfigError([Problem({"trainer.seed": run.trainer.seed}, "not on this machine")])

    monkeypatch.setattr(xlstm_hydra.train, "train", refuse)
    monkeypatch.setattr(xlstm_hydra.train, "read_resumed", lambda *_: None)


@pytest.mark.parametrize(("typed", "words"), REJECTED.values(), ids=REJECTED)
def test_a_rejected_command_in_the_folder_of_a_run_leaves_it_as_it_was(run_with_record, typed, words):
    before = content("run")
    folder = [] if any(text.startswith("resume=") for text in typed) else ["hydra.run.dir=run"]
    with hold_folder(Path("run")) if "another run" in words else open("run/config.yaml"):
        done = run_command(*typed, *folder, quiet=False)
    assert done.status == 2 and words in done.err, done.err
    assert content("run") == before


@pytest.mark.parametrize("folder", ["hydra.run.dir=a/b/c", "trainer.seed=1"], ids=["a named one", "that of the time"])
@pytest.mark.parametrize("typed", ["optimizer.lr=-1", "trainer.seed=3"], ids=["by a rule", "by its devices"])
def test_a_rejected_command_leaves_no_new_folder(run_with_record, folder, typed):
    before = content()
    assert run_command(folder, typed, quiet=False).status == 2
    assert content() == before


def test_other_files_in_a_new_folder_stay_when_the_run_is_rejected(monkeypatch):
    def refuse(run, folder, overrides):
        (folder / "mine.txt").write_text("mine")
        raise ConfigError([Problem({}, "not on this machine")])

    monkeypatch.setattr(xlstm_hydra.train, "train", refuse)
    assert run_command("hydra.run.dir=a/run", quiet=False).status == 2
    assert content() == {Path("a"): None, Path("a/run"): None, Path("a/run/mine.txt"): "mine"}


def test_a_run_that_fails_keeps_its_record_and_log(monkeypatch):
    def fail(run, folder, overrides):
        raise FloatingPointError("loss is nan")

    monkeypatch.setattr(xlstm_hydra.train, "train", fail)
    assert run_command("hydra.run.dir=run", quiet=False).status == 1
    assert {"xlstm-hydra.log", ".hydra", "config.yaml"} <= {path.name for path in Path("run").iterdir()}


def test_a_launcher_that_takes_no_job_leaves_no_folder_of_the_sweep(monkeypatch):
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    def refuse(*_, **__):
        raise ConfigError([Problem({"hydra.launcher": "x"}, "takes no jobs")])

    monkeypatch.setattr(BasicLauncher, "launch", refuse)
    assert run_command("-m", "trainer.seed=1,2", "hydra.sweep.dir=a/sweep").status == 2
    assert content() == {}


@pytest.mark.parametrize("group", ["distributed", "task", "trainer", "data", "optimizer", "parallel", "model"])
@pytest.mark.parametrize("mode", [["hydra.run.dir=run"], ["-m"]], ids=["a run", "a sweep"])
def test_a_group_that_a_run_needs_is_not_removed(group, mode, trained):
    done = run_command(*mode, f"~{group}")
    assert (done.status, trained, content()) == (2, [], {})
    words = f"the group is required. To select another option, write {group}=OPTION.\n"
    assert done.err == f"xlstm-hydra: ~{group}: {words}"


@pytest.mark.parametrize("typed", ["hydra/job_logging=none", "hydra/job_logging=default"])
def test_a_run_may_have_another_log_or_none(typed, trained):
    assert run_command("hydra.run.dir=run", typed, quiet=False).status == 0
    assert len(trained) == 1


@pytest.mark.parametrize("mode", [(), ("-m",)], ids=["a run", "a sweep"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python 3.13: lines left when freed
def test_a_log_on_a_full_disk_is_one_warning(mode, monkeypatch):
    log = logging.getLogger("xlstm_hydra")
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda *_: [log.warning("line %d", number) for number in range(3)])
    done = run_command(*mode, "hydra.job_logging.handlers.file.filename=/dev/full", quiet=False)
    assert "Traceback" not in done.err and "line 2" in done.out
    assert done.out.count("the log /dev/full cannot be written: No space left on device") == 1


def test_callbacks_of_the_user_are_called_around_a_run(tmp_path, monkeypatch, trained):
    (tmp_path / "mine.py").write_text(
        "from hydra.experimental.callback import Callback\n"
        "class Mine(Callback):\n"
        "    def on_run_start(self, config, **_): print('start', config.hydra.runtime.output_dir)\n"
        "    def on_job_start(self, config, **_): print('job')\n"
        "    def on_run_end(self, config, job_return, **_): print('end', job_return.status.name)\n"
    )
    done = run_command("hydra.run.dir=run", "+hydra.callbacks.mine._target_=mine.Mine")
    assert done.out == f"start {tmp_path / 'run'}\njob\nend COMPLETED\n"


@pytest.mark.parametrize("mode", [["hydra.run.dir=run"], ["-m", "trainer.seed=1,2"]], ids=["a run", "a sweep"])
@pytest.mark.parametrize("group", ["job_logging", "hydra_logging"])
def test_a_group_of_hydras_that_is_removed_is_one_message(mode, group, trained):
    done = run_command(*mode, f"~hydra/{group}")
    assert (done.status, trained, content()) == (2, [], {})
    words = "is required by Hydra. To select another option, write"
    assert done.err == f"xlstm-hydra: ~hydra/{group}: {words} hydra/{group}=OPTION.\n"


def test_a_rejected_run_is_restored_before_another_one_may_start(tmp_path):
    folder = RunFolder(tmp_path / "run")
    seen = []

    def look() -> None:
        with pytest.raises(ConfigError, match="another run is writing"):
            with hold_folder(folder.path):
                pass
        seen.append(sorted(path.name for path in folder.path.iterdir()))

    class Restored(type(tmp_path)):
        def unlink(self, missing_ok: bool = False) -> None:
            look()
            super().unlink(missing_ok)

    with pytest.raises(ConfigError, match="no"):
        with folder.held([Restored(folder.path / "config.yaml")], lambda: True):
            raise ConfigError([Problem({}, "no")])
    assert seen == [[".lock", "config.yaml"]] and not folder.path.exists()


def test_a_lock_file_removed_by_a_rejected_run_does_not_admit_two_runs(tmp_path, monkeypatch):
    lock, flock = tmp_path / ".lock", fcntl.flock

    def removed_meanwhile(file, operation):
        flock(file, operation)
        monkeypatch.undo()
        lock.unlink()  # by the run that held it before

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with hold_folder(tmp_path), pytest.raises(ConfigError, match="another run is writing"):
        with hold_folder(tmp_path):
            pass


@pytest.mark.parametrize("size", [10, 3 * 2**20], ids=["small", "large"])
def test_the_content_of_a_log_is_restored(tmp_path, size):
    log = tmp_path / "xlstm-hydra.log"
    log.write_bytes(b"x" * size)
    with pytest.raises(ConfigError):
        with RunFolder(tmp_path).held([log], lambda: True):
            with log.open("ab") as file:
                file.write(b"more")
            raise ConfigError([Problem({}, "no")])
    assert log.read_bytes() == b"x" * size
