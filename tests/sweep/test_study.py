"""The database of an Optuna study: it works in any folder, and its errors are one message."""

import errno
import sqlite3
import sys
from pathlib import Path

import pytest
from command import run_command
from hydra.core.plugins import Plugins

import xlstm_hydra.train
from xlstm_hydra.configs import ConfigError
from xlstm_hydra.sweep import StorageError, open_storage, storage_errors, storage_url

pytest.importorskip("optuna")
SQLAlchemyError = pytest.importorskip("sqlalchemy.exc").SQLAlchemyError
STUDY = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "optimizer.lr=interval(0.1,1)"]


@pytest.fixture(autouse=True)
def trials(tmp_path, monkeypatch):
    """Functions that trials call first; nothing is trained."""
    found = []

    def train(run, folder, overrides):
        for do in found:
            do()
        return run.optimizer.lr

    monkeypatch.setattr(xlstm_hydra.train, "train", train)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # no plots
    monkeypatch.chdir(tmp_path)
    return found


def states(file):
    with sqlite3.connect(file) as database:
        return [state for (state,) in database.execute("SELECT state FROM trials")]


@pytest.mark.parametrize("name", ["a?b", "a%20b#c", "a {b}", "größe", "a?b&c=d%e{f}#g"])
def test_a_study_is_kept_and_continued_in_a_folder_of_any_name(name):
    for count in (1, 2):
        done = run_command(*STUDY, f"hydra.sweep.dir='{name}/study'")
        assert done.status == 0, done.err
        assert states(f"{name}/study/study.db") == ["COMPLETE"] * count
    assert [path.name for path in Path().iterdir()] == [name]


URLS = {
    "plain": ("sqlite:///sweep/study.db", "sweep", "sqlite:///sweep/study.db"),
    "special": ("sqlite:////a?b/study.db", "/a?b", "sqlite:///file:/a%3Fb/study.db?uri=true"),
    "with an option": ("sqlite:////a?b/c.db?timeout=9", "/a?b", "sqlite:///file:/a%3Fb/c.db?uri=true&timeout=9"),
    "in another folder": ("sqlite:///c.db?timeout=9", "/a?b", "sqlite:///c.db?timeout=9"),
    "on a server": ("postgresql://u:p@host/x?a=b", "/a?b", "postgresql://u:p@host/x?a=b"),
}


@pytest.mark.parametrize(("storage", "sweep", "url"), URLS.values(), ids=URLS)
def test_only_the_folder_of_the_sweep_is_escaped_in_a_storage_url(storage, sweep, url):
    assert storage_url(storage, sweep) == url


UNUSABLE = {
    "no such folder": (
        "sqlite:///nowhere/x.db",
        "unable to open database file. Choose a file in an existing,",
    ),
    "a folder": ("sqlite:///full", "unable to open database file"),
    "no database": ("sqlite:///book", "file is not a database. Choose another file, or remove it."),
    "read-only": ("sqlite:///file:whole.db?mode=ro&uri=true", "attempt to write a readonly database"),
    "no URL": ("study.db", "Could not parse"),
    "no such kind": ("nosql://host/x", "sqlalchemy.dialects:nosql"),
}


@pytest.mark.parametrize(("storage", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_database_that_cannot_be_used_is_one_message_before_anything_starts(storage, words):
    Path("full").mkdir()
    Path("book").write_text("to be or not to be" * 100)
    with sqlite3.connect("whole.db") as database:
        database.execute("CREATE TABLE some (thing INTEGER)")
    done = run_command(*STUDY, "hydra.sweep.dir=sweep", f"hydra.sweeper.storage='{storage}'")
    assert (done.status, done.err.count("\n")) == (2, 1), done.err
    assert f"hydra.sweeper.storage='{storage}'" in done.err and words in done.err
    assert not Path("sweep").exists()


def lock(file):
    connection = sqlite3.connect(file)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def test_a_database_that_another_process_has_locked_is_one_message():
    assert run_command(*STUDY, "hydra.sweep.dir=sweep").status == 0
    locked = lock("sweep/study.db")
    done = run_command(*STUDY, "hydra.sweep.dir=sweep")
    locked.close()
    assert (done.status, done.err.count("\n")) == (2, 1), done.err
    assert "database is locked. Another process is using the database" in done.err


def test_a_database_that_fails_during_a_study_ends_it_without_a_traceback(trials):
    locked = []
    trials.append(lambda: locked.append(lock("sweep/study.db")))
    done = run_command(*STUDY, "hydra.sweep.dir=sweep")
    locked[0].close()
    assert done.status == 1 and "1 job: 1 completed" in done.out
    assert "the sweep ended early: the study database" in done.err and "database is locked\n" in done.err
    assert "Traceback" not in done.err


def test_a_launcher_that_cannot_start_a_job_is_not_blamed_on_the_database(monkeypatch):
    instantiate = Plugins.instantiate_launcher

    def with_no_process_left(plugins, **given):
        def launch(points, initial_job_idx):
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

        launcher = instantiate(plugins, **given)
        launcher.launch = launch
        return launcher

    monkeypatch.setattr(Plugins, "instantiate_launcher", with_no_process_left)
    done = run_command(*STUDY, "hydra.sweep.dir=sweep")
    assert (done.status, done.err) == (1, "xlstm-hydra: Resource temporarily unavailable\n")


WITH_PASSWORD = {
    "on a server": ("nosql://me:secret@host/x", "nosql://me:***@host/x"),
    "without a name": ("nosql://:sec:ret@host/x", "nosql://:***@host/x"),
    "no URL": ("me:sec@ret@host/x", "me:***@host/x"),
    "a wrong port": ("nosql://me:secret@host:port/x", "nosql://me:***@host:port/x"),
}


@pytest.mark.parametrize(("storage", "shown"), WITH_PASSWORD.values(), ids=WITH_PASSWORD)
def test_the_password_of_a_database_is_not_shown(storage, shown):
    with pytest.raises(ConfigError) as refused:
        open_storage(storage, "sweep")
    with pytest.raises(StorageError) as failed, storage_errors(storage):
        raise SQLAlchemyError("gone")
    for error in (refused, failed):
        assert shown in str(error.value) and storage not in str(error.value) and "ret@" not in str(error.value)
