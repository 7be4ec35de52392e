"""Errors of the machine that end a run: one message, no other output, and no checkpoint is lost."""

import errno
import logging
import resource
import shlex
import shutil
from contextlib import suppress

import pytest
from tiny import tiny_run

from xlstm_hydra.checkpoint import Checkpoints
from xlstm_hydra.checkpoint._faults import Listener, SaveError, saving
from xlstm_hydra.configs import AUTO, CheckpointConfig, LoggerConfig
from xlstm_hydra.runs import _links as links
from xlstm_hydra.runs import saved_steps
from xlstm_hydra.train import _diagnosis as _faults
from xlstm_hydra.train import _log, train
from xlstm_hydra.train._diagnosis import RunEnded, faults_reported


def run_of(logger=None, **checkpoint):
    logger = LoggerConfig(**{"progress": False, "tensorboard": False, "log_every_n_steps": 1} | (logger or {}))
    config = CheckpointConfig(**{"save_every_n_steps": 2, "max_to_keep": 10} | checkpoint)
    return tiny_run("llama", parallel={"data_axis_size": 8}, logger=logger, checkpoint=config)


@pytest.fixture
def before_saving(monkeypatch):
    """Call a function once, right before a step is saved, when all earlier checkpoints are on disk."""

    def add(step, action):
        save, actions = Checkpoints.save, [action]

        def changed(self, state, *args):
            if int(state.step) == step and actions:
                self._wait()
                actions.pop()()
            save(self, state, *args)

        monkeypatch.setattr(Checkpoints, "save", changed)

    return add


@pytest.fixture
def file_limit():
    """Set the maximum file size of this process. Exceeding it is reported like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


SAVES = {
    "in the background": ({}, 4, [2]),
    "in the foreground": ({"async_save": False}, 4, [2]),
    "the last one": ({}, 6, [2, 4]),
    "the first one": ({"save_every_n_steps": 0}, 6, []),
}


@pytest.mark.parametrize(("checkpoint", "step", "whole"), SAVES.values(), ids=SAVES)
def test_a_failed_save_ends_the_run_with_one_message_and_keeps_earlier_checkpoints(
    checkpoint, step, whole, before_saving, file_limit, tmp_path, capfd, caplog
):
    before_saving(step, lambda: file_limit(2000))
    with pytest.raises(RunEnded) as ended:
        train(run_of(**checkpoint), tmp_path)
    file_limit(resource.RLIM_INFINITY)
    saved = f"complete checkpoint is step {whole[-1]}." if whole else "There is no complete checkpoint."
    way_out = f"then continue with xlstm-hydra resume={tmp_path}" if whole else "then start the run again."
    assert str(ended.value).startswith(f"saving step {step} in {tmp_path}/checkpoints failed: File too large")
    assert saved in str(ended.value) and str(ended.value).endswith(f"Allow larger files (ulimit -f), {way_out}")
    assert capfd.readouterr().err == "" and not [record for record in caplog.records if record.exc_info]
    assert "the step was saved" not in caplog.text
    assert saved_steps(tmp_path) == whole


def test_the_run_resumes_once_the_cause_is_fixed(before_saving, file_limit, tmp_path):
    before_saving(4, lambda: file_limit(2000))
    with pytest.raises(RunEnded):
        train(run_of(), tmp_path)
    file_limit(resource.RLIM_INFINITY)
    train(run_of(restore=AUTO), tmp_path)
    assert saved_steps(tmp_path) == [2, 4, 6]


def test_checkpoints_removed_during_the_run_end_it_with_one_message(before_saving, tmp_path, capfd):
    def replace_by_file():
        shutil.rmtree(tmp_path / "checkpoints")
        (tmp_path / "checkpoints").touch()

    before_saving(4, replace_by_file)
    with pytest.raises(RunEnded, match="^saving step 4 in .*/checkpoints failed: .*There is no complete checkpoint"):
        train(run_of(), tmp_path)
    assert capfd.readouterr().err == ""


def full_disk_for(name, open_new):
    """Return a function that opens new files; the file of this name does not fit on the disk."""
    return lambda file, **how: open("/dev/full", "w", **how) if name in file.name else open_new(file, **how)


FULL = {"metrics.new": {}, "metadata.json": {}, "plan.json": {}, "plan.txt": {}, "parameters.txt": {}}


@pytest.mark.parametrize(("name", "logger"), FULL.items(), ids=FULL)
def test_a_file_that_does_not_fit_on_the_disk_ends_the_run_with_one_message(name, logger, tmp_path, monkeypatch):
    for module in (links, _log):
        monkeypatch.setattr(module, "open_new", full_disk_for(name, links.open_new))
    with pytest.raises(RunEnded, match=f"^writing in {tmp_path} failed: No space left on device.* Free some space"):
        train(run_of(logger), tmp_path)


def test_metrics_for_tensorboard_that_do_not_fit_on_the_disk_end_the_run(tmp_path, monkeypatch):
    from tensorboardX import record_writer

    monkeypatch.setattr(record_writer, "open_file", lambda path: open("/dev/full", "wb"))
    with pytest.raises(RunEnded, match="failed: No space left on device"):
        train(run_of({"tensorboard": True}), tmp_path)


def test_a_log_file_that_does_not_fit_on_the_disk_is_one_warning(tmp_path, monkeypatch, capfd, caplog):
    handler = logging.FileHandler("/dev/full")
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler, caplog.handler])
    with faults_reported(tmp_path):
        for number in range(3):
            logging.getLogger().warning("line %d", number)
    with suppress(OSError):
        handler.close()  # what it still holds does not fit either
    assert [record.msg for record in caplog.records if "cannot be written" in record.msg] == [
        "the log %s cannot be written: %s"
    ]
    assert capfd.readouterr().err == ""


CAUSES = {
    "full": (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded", "/run/a"), "Disk quota exceeded: /run/a"),
    "of TensorStore": (ValueError("RESOURCE_EXHAUSTED: Failed [os_error_code='28'] [x='1']"), "No space left on"),
    "a missing folder": (ValueError("No ArrayMetadata found for process_index=0"), "No such file or directory"),
    "no errno": (ValueError("PERMISSION_DENIED: Error opening"), "Permission denied"),
}


@pytest.mark.parametrize(("error", "words"), CAUSES.values(), ids=CAUSES)
def test_errors_of_the_system_are_recognized_however_deep(error, words, tmp_path):
    (tmp_path / "4.tmp").mkdir()
    with pytest.raises(SaveError, match=f"^saving step 4 in {tmp_path} failed: {words}"), saving(4, tmp_path):
        raise Exception("while saving") from error


def test_the_end_of_another_process_is_not_an_error_of_this_machine(tmp_path):
    with pytest.raises(RuntimeError, match="UNAVAILABLE"), saving(4, tmp_path):
        raise RuntimeError("UNAVAILABLE: the coordinator has ended")


def test_an_optional_write_of_orbax_does_not_end_a_run(caplog):
    listener, absl = Listener(), logging.getLogger("absl")
    try:
        with caplog.at_level(logging.WARNING):
            for log in (absl.warning, absl.error):
                try:
                    raise ValueError(f"from {log.__name__}")
                except ValueError:
                    log("Orbax falls back", exc_info=True)
        with pytest.raises(ValueError, match="from error"):
            listener.raise_heard()
        listener.report()
        listener.raise_heard()  # it is forgotten
    finally:
        listener.stop()
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [
        "Orbax falls back",
        "Orbax reported an error, but the step was saved: ValueError: from error",
    ]


def test_errors_that_orbax_logged_in_a_failed_run_are_not_printed_in_the_next_one(caplog):
    first = Listener()
    try:
        raise ValueError("of the first run")
    except ValueError:
        logging.getLogger("absl").error("while saving", exc_info=True)
    Listener().stop()
    assert first not in logging.getLogger("absl").filters and not caplog.records


def test_the_resume_command_is_quoted_for_the_shell(tmp_path):
    (tmp_path / "a run" / "checkpoints" / "4").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunEnded) as ended:
        patch.setattr(_faults, "saved_steps", lambda folder: [4])
        with faults_reported(tmp_path / "a run"):
            raise OSError(errno.ENOSPC, "No space left on device")
    typed = str(ended.value).partition("continue with ")[2]
    assert shlex.split(typed) == ["xlstm-hydra", f"resume={tmp_path}/a run"]


def test_a_bug_while_saving_is_reported_as_a_bug(tmp_path):
    with pytest.raises(TypeError, match="a mistake of ours"), saving(4, tmp_path):
        raise TypeError("a mistake of ours")


def test_data_that_cannot_be_read_is_named_in_the_message(tmp_path):
    with pytest.raises(RunEnded, match="^No such file or directory: /books/a.txt. There is no complete checkpoint"):
        with faults_reported(tmp_path):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/books/a.txt")
