"""Finding checkpoints, and telling complete from incomplete ones."""

import asyncio
import errno
import json
import logging
import re
import shutil
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from etils import epath
from saved import save_text

from xlstm_hydra.checkpoint._faults import _ignore_abandoned_requests as ignore_abandoned_requests
from xlstm_hydra.checkpoint._faults import reading
from xlstm_hydra.configs import ConfigError
from xlstm_hydra.runs import find_checkpoint, read_metadata_text, refuse_to_overwrite, saved_steps, step_of


def mark(run, step, content):
    """What Orbax writes when a save begins, and again when it ends."""
    (run / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").write_text(content)


@pytest.fixture
def run(tmp_path):
    """A run with finished checkpoints of steps 2 and 10."""
    for step in (2, 10):
        save_text(tmp_path / "run", f"text of {step}", step)
        mark(tmp_path / "run", step, json.dumps({"commit_timestamp_nsecs": 1}))
    return tmp_path / "run"


PLACES = {
    "latest": ("{}", 10),
    "step": ("{}@2", 2),
    "folder": ("{}/checkpoints/2", 2),
    "folder with a slash": ("{}/checkpoints/2/", 2),
}


@pytest.mark.parametrize(("place", "step"), PLACES.values(), ids=PLACES)
def test_a_source_refers_to_a_checkpoint(run, place, step):
    checkpoint = find_checkpoint(place.format(run))
    assert step_of(checkpoint) == step and read_metadata_text(checkpoint) == f"text of {step}"


def test_a_moved_checkpoint_is_found(run, tmp_path):
    shutil.move(run / "checkpoints" / "2", tmp_path / "2")
    assert find_checkpoint(str(tmp_path / "2")) == tmp_path / "2"


@pytest.mark.parametrize("place", ["{}", "{}@20", "{}/checkpoints/checkpoint_20"])
def test_checkpoints_of_xlstm_jax_are_found(tmp_path, place):
    save_text(tmp_path / "run", "text", "checkpoint_20")
    assert find_checkpoint(place.format(tmp_path / "run")).name == "checkpoint_20"


UNFINISHED = {
    "its name is temporary": ("12.orbax-checkpoint-tmp-3", '{"commit_timestamp_nsecs": null}'),
    "no time of its end": ("12", '{"init_timestamp_nsecs": 1, "commit_timestamp_nsecs": null}'),
    "the mark is cut off": ("12", '{"init_times'),
}


@pytest.mark.parametrize(("name", "content"), UNFINISHED.values(), ids=UNFINISHED)
def test_an_incomplete_save_is_not_found(run, name, content):
    save_text(run, "", name)
    mark(run, name, content)
    assert saved_steps(run) == [2, 10]
    with pytest.raises(ConfigError, match="no checkpoint of step 12. Saved steps: 2 or 10"):
        find_checkpoint(f"{run}@12")


def test_an_old_checkpoint_without_marks_is_finished_on_a_disk(tmp_path):
    assert saved_steps(save_text(tmp_path, "", 12)) == [12]


@pytest.fixture
def bucket(run, monkeypatch):
    """The same run in a bucket, which is a folder here."""
    from etils.epath import gpath

    class Backend(gpath.backend_lib.os_backend.__class__):
        def __getattribute__(self, name):
            found = super().__getattribute__(name)
            if name.startswith("_") or not callable(found):
                return found
            return lambda path, *args, **kwargs: found(
                str(path).replace("gs://bucket", str(run.parent)), *args, **kwargs
            )

    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", Backend())
    return "gs://bucket/run"


@pytest.mark.parametrize(("suffix", "step"), [("", 10), ("@2", 2), ("/checkpoints/2", 2)])
def test_a_source_may_be_a_bucket(bucket, suffix, step):
    checkpoint = find_checkpoint(f"{bucket}{suffix}")
    assert checkpoint == epath.Path(f"gs://bucket/run/checkpoints/{step}")
    assert read_metadata_text(checkpoint) == f"text of {step}"


def test_in_a_bucket_a_save_without_a_mark_is_not_finished(bucket, run):
    save_text(run, "", 12)
    assert find_checkpoint(bucket).name == "10"


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="it is installed, and would ask the network")
def test_a_bucket_without_its_package_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"cannot be read: .*pip install 'xlstm-hydra\[remote\]'"):
        find_checkpoint("gs://bucket/run")


CUT_OFF = "its parameters cannot be read: DATA_LOSS: cut off. The checkpoint may be incomplete; choose another step."
TENSORSTORE = ValueError("DATA_LOSS: cut off [tensorstore_spec='{\"base\": 1}']")
"""What TensorStore says of an array, with where it lies in all detail."""


def test_errors_about_damaged_files_become_one_error():
    with pytest.raises(ConfigError) as told, reading("parameters"):
        raise TENSORSTORE
    assert str(told.value) == CUT_OFF and told.value.__cause__ is TENSORSTORE
    with pytest.raises(ConfigError) as told, reading("parameters"):
        raise Exception("while reading an array: <bound method ...>\n") from TENSORSTORE  # as Orbax does
    assert str(told.value) == CUT_OFF


DISTURBED = {
    "by a network": OSError(errno.EIO, "Input/output error"),
    "by a network, for TensorStore": ValueError("UNKNOWN: Error reading [os_error_code='5']"),
}


@pytest.mark.parametrize("error", DISTURBED.values(), ids=DISTURBED)
def test_a_checkpoint_that_the_machine_cannot_read_does_not_count_as_damaged(error, tmp_path):
    with pytest.raises(OSError, match="its parameters cannot be read: Input/output error"):
        with reading("parameters", tmp_path):
            raise Exception("while reading an array") from error


@pytest.mark.parametrize("error", [ConfigError([]), TypeError("a mistake of ours"), MemoryError()], ids=repr)
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as told, reading("parameters"):
        raise error
    assert told.value is error


REFUSED = {
    "no step": ("{}@abc", "expected a step number after '@', got 'abc'. Saved steps: 2 or 10."),
    "an empty step": ("{}@", "expected a step number after '@', got ''"),
    "no run": ("{}/nope@2", "/nope/checkpoints: the folder "),
    "no run, in a folder with an at sign": ("{}/me@home/nope", "/me@home/nope/checkpoints: the folder "),
}


@pytest.mark.parametrize(("place", "words"), REFUSED.values(), ids=REFUSED)
def test_a_source_without_a_checkpoint_is_explained(tmp_path, place, words):
    for step in (2, 10):
        save_text(tmp_path / "run", "{}", step)
    with pytest.raises(ConfigError, match=re.escape(words)):
        find_checkpoint(place.format(tmp_path / "run"))


OTHER_PLACES = {
    "the folder of the checkpoints": ("run/checkpoints", 10),
    "the folder of the checkpoints with a slash": ("run/checkpoints/", 10),
    "a step in the folder of the checkpoints": ("run/checkpoints@2", 2),
    "a step behind a slash": ("run/@2", 2),
    "a step before a slash": ("run@2/", 2),
    "a link": ("run/checkpoints/latest", 2),
    "the name of a link": ("run@latest", 2),
    "a copy": ("best", 2),
    "a copy with its step": ("best@2", 2),
    "a copy of all": ("steps", 10),
    "the metadata file": ("run/checkpoints/2/metadata/metadata", 2),
    "its arrays": ("run/checkpoints/2/params/d", 2),
    "a job of a sweep": ("sweep/1", 10),
    "relative": ("../{}/best", 2),
}


@pytest.fixture
def copied(run, monkeypatch):
    """The same run with copies and links of its checkpoints, and a sweep."""
    monkeypatch.chdir(run.parent)
    for item, name in {"params/d": "array", "data": "metadata"}.items():
        (run / "checkpoints" / "2" / item).mkdir(parents=True)
        (run / "checkpoints" / "2" / item / name).write_text('{"step": 2}')
    (run / "checkpoints" / "latest").symlink_to("2")
    shutil.copytree(run / "checkpoints" / "2", "best")
    shutil.copytree(run / "checkpoints", "steps")
    for job in ("0", "1", "10", "2"):
        shutil.copytree(run, f"sweep/{job}")
    shutil.copytree("sweep", "runs")
    (run.parent / "sweep" / "sweep.jsonl").touch()
    return run.parent


@pytest.mark.parametrize(("place", "step"), OTHER_PLACES.values(), ids=OTHER_PLACES)
def test_whatever_is_a_checkpoint_by_its_contents_is_found(copied, place, step):
    checkpoint = find_checkpoint(place.format(copied.name))
    assert step_of(checkpoint) == step and read_metadata_text(checkpoint) == f"text of {step}"
    assert checkpoint.is_absolute() and "latest" not in str(checkpoint)


NOT_ONE = {
    "a sweep": ("sweep", "is a sweep, not a run; it contains the runs sweep/0, sweep/1, sweep/2, sweep/10."),
    "a folder of runs": ("runs", "is a folder of runs, not a run; it contains the runs runs/0, runs/1"),
    "a misspelt run": ("rnu", "the folder {}/rnu does not exist. Did you mean run"),
    "a file of a run": ("run/config.yaml", "is a file, not a run or a checkpoint. Give the run folder instead: run."),
    "another step of a copy": ("best@3", "best is the checkpoint of step 2. Remove '@3'."),
    "a save that did not end": ("run/checkpoints/12", "12 is incomplete: the checkpoint was not saved completely"),
    "a stray file": ("run/checkpoints/14", "is a file, not a run or a checkpoint. Give the run folder instead: run."),
}


@pytest.mark.parametrize(("place", "words"), NOT_ONE.values(), ids=NOT_ONE)
def test_a_path_that_is_not_a_checkpoint_is_described(copied, place, words):
    save_text(copied / "run", "{}", 12)
    mark(copied / "run", 12, '{"commit_timestamp_nsecs": null}')
    (copied / "run" / "config.yaml").touch()
    (copied / "run" / "checkpoints" / "14").touch()
    with pytest.raises(ConfigError, match=re.escape(words.format(copied))):
        find_checkpoint(place)


INCOMPLETE = {
    "an empty folder": lambda folder: folder.mkdir(),
    "a file": lambda folder: folder.touch(),
    "empty metadata": lambda folder: save_text(folder.parents[1], "", 12),
}


@pytest.mark.parametrize("make", INCOMPLETE.values(), ids=INCOMPLETE)
def test_the_latest_complete_checkpoint_is_used_and_others_are_logged(tmp_path, make, caplog):
    for step in (2, 10):
        save_text(tmp_path, "{}", step)
    make(tmp_path / "checkpoints" / "12")
    assert find_checkpoint(str(tmp_path)).name == "10"
    assert f"skipped incomplete or damaged checkpoints: {tmp_path}/checkpoints/12; using step 10" in caplog.text


def test_an_empty_folder_is_not_listed_among_the_saved_steps(tmp_path):
    for step in (2, 10):
        save_text(tmp_path, "{}", step)
    (tmp_path / "checkpoints" / "6").mkdir()
    with pytest.raises(ConfigError, match=r"no checkpoint of step 6\. Saved steps: 2 or 10\.$"):
        find_checkpoint(f"{tmp_path}@6")


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/6"])
def test_a_file_in_place_of_a_checkpoint_folder_is_refused(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f"{name} is a file, but a checkpoint would be saved there"):
        refuse_to_overwrite(tmp_path, 0)


@pytest.mark.parametrize(("content", "words"), [("", "is empty"), ('{"a": ', "is truncated")])
def test_the_damaged_file_is_named(tmp_path, content, words):
    (tmp_path / "_METADATA").write_text(content)
    (tmp_path / "commit_success.txt").touch()
    with pytest.raises(ConfigError, match=f"its parameters cannot be read: {tmp_path}/_METADATA {words}. "):
        with reading("parameters", tmp_path):
            raise TENSORSTORE


def test_a_pointer_of_git_lfs_in_place_of_arrays_is_named(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "d").write_text(pointer)
    with pytest.raises(ConfigError, match="its parameters cannot be read: .*/d: the file is only a Git LFS pointer"):
        with reading("parameters", tmp_path):
            raise ValueError("what TensorStore says")


def closed_loop():
    loop = asyncio.new_event_loop()
    loop.close()
    try:
        loop.call_soon_threadsafe(print)
    except RuntimeError as error:
        return error


UNRAISABLE = {"an abandoned request": (closed_loop(), 0), "another error": (RuntimeError("Event loop is closed"), 1)}


@pytest.mark.parametrize(("error", "printed"), UNRAISABLE.values(), ids=UNRAISABLE)
def test_requests_that_are_abandoned_because_another_one_failed_print_nothing(error, printed, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    ignore_abandoned_requests.__wrapped__()
    sys.unraisablehook(SimpleNamespace(exc_value=error, object=None))  # pyright: ignore[reportArgumentType]
    assert len(seen) == printed


@pytest.mark.parametrize(("text", "logged"), [("DATA_LOSS: [tensorstore_spec='1']", 0), ("a mistake of ours", 1)])
def test_futures_of_tensorstore_that_nobody_reads_print_nothing(text, logged, caplog):
    ignore_abandoned_requests()
    logging.getLogger("asyncio").error("Future exception was never retrieved", exc_info=ValueError(text))
    assert len(caplog.records) == logged
