"""The compilation cache: compiled programs are saved for the next job."""

import csv
import errno
import json
import os
import stat
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import LAYOUTS, tiny_run

from xlstm_hydra.configs import AdamWConfig, TrainerConfig
from xlstm_hydra.step import CompilationStats, build_program, compilation_cache, compiled_folder
from xlstm_hydra.train import train

CACHE = "xlstm_hydra.step._compilation_cache"


@pytest.fixture(scope="module", autouse=True)
def _all_is_kept():
    """Cache programs that compile quickly too, whatever the environment of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
        yield


# ---- jobs of a sweep


def job(folder, cache, seed=0, **optimizer):
    """Train two steps. Returns the measurements, and the rows of the metrics as text."""
    trainer = {"max_steps": 2, "eval_batches": 1, "seed": seed, "compilation_cache_dir": cache and str(cache)}
    train(tiny_run("llama", LAYOUTS["dp8"], trainer=trainer, optimizer=AdamWConfig(**optimizer)), folder)
    measured = json.loads((folder / "plan.json").read_text())["measured"]
    with (folder / "metrics.csv").open() as file:
        return measured, [{**row, "tokens_per_second": ""} for row in csv.DictReader(file)]


VALUES = {"seed": 3, "lr": 0.01, "beta1": 0.8, "weight_decay": 0.05, "grad_clip_norm": 0.5}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A job, and then one with other values: right after it in the same process, as if in another process, and without
    the cache."""
    folder = tmp_path_factory.mktemp("sweep")
    jax.clear_caches()
    done = [job(folder / "0", folder / "cache"), job(folder / "1", folder / "cache", **VALUES)]
    for name, cache in {"2": folder / "cache", "3": None}.items():
        jax.clear_caches()
        done.append(job(folder / name, cache, **VALUES))
    return done


def test_a_job_with_other_values_loads_all_programs_from_the_cache(sweep):
    first, _, second, _ = (measured for measured, _ in sweep)
    assert first["programs"] >= 4 and first["programs_from_cache"] == 0
    assert second["programs_from_cache"] == second["programs"] >= 4
    assert second["compile_seconds"] < first["compile_seconds"]


def test_a_job_with_other_values_in_the_same_process_needs_no_cache(sweep):
    assert sweep[1][0]["programs"] == 0 and str(CompilationStats()).startswith("nothing, because an earlier job")


def test_a_program_from_the_cache_computes_the_same_bits(sweep):
    (_, first), (_, shared), (_, cached), (measured, compiled) = sweep
    assert measured["programs_from_cache"] == 0 < measured["programs"]
    assert shared == cached == compiled != first


OTHERS = {
    "nesterov": {"optimizer": AdamWConfig(nesterov=True)},
    "weight decay": {"optimizer": AdamWConfig(weight_decay_exclude=["dense"])},
    "no clipping": {"optimizer": AdamWConfig(grad_clip_norm=None)},
    "batch": {"trainer": {"batch_size": 16}},
    "model": {"model": {"dropout_rate": 0.1}},
    "layout": {"parallel": LAYOUTS["tp4_dp2"]},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_runs_with_different_computations_share_no_compiled_step(changes):
    plain = {"family": "llama", "parallel": LAYOUTS["dp8"]}
    one, same = build_program(tiny_run(**plain)), build_program(tiny_run(**plain, optimizer=AdamWConfig(lr=0.5)))
    assert same.train_step is one.train_step and same.schedule(0) != one.schedule(0)
    assert build_program(tiny_run(**plain | changes)).train_step is not one.train_step


# ---- one program

NUMBER = np.arange(3, dtype=np.float32)


def compiled(place, **changes):
    """Compile a small program as a run does, and return the statistics."""
    config = TrainerConfig(compilation_cache_dir=place if place is None else str(place), **changes)
    with compilation_cache(config) as programs:
        assert jax.jit(lambda x: 3 * x + 1)(NUMBER).tolist() == [1, 4, 7]
    return programs


def files(folder):
    return {file.name: file.stat().st_size for file in folder.iterdir()}


def test_a_second_run_finds_the_programs_of_the_first(tmp_path):
    first, second = compiled(tmp_path), compiled(tmp_path)
    assert (first.compiled, first.from_cache) == (1, 0) and "1 of 1 programs, " in str(first)
    assert (second.compiled, second.from_cache) == (0, 1)
    assert "0 of 1 programs" in str(second) and "1 came from the cache (100%)" in str(second)
    assert len(files(tmp_path)) == 1


def test_settings_and_listeners_of_jax_are_restored(tmp_path):
    before = dict(jax.config.values)
    programs = compiled(tmp_path)
    assert dict(jax.config.values) == before
    jax.jit(lambda x: x - 5)(NUMBER)
    assert programs.total == 1 and len(files(tmp_path)) == 1


DAMAGE = {
    "cut off": lambda value: value[: len(value) // 2],
    "empty": lambda value: b"",
    "garbage": lambda value: b"\0" * len(value),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_program_is_reported_recompiled_and_replaced(damage, tmp_path, caplog):
    compiled(tmp_path)
    whole = files(tmp_path)
    [file] = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert compiled(tmp_path).compiled == 1
    [line] = caplog.messages
    assert line == f"a program in the compilation cache is truncated and will be compiled again: {file}"
    assert files(tmp_path).keys() == whole.keys() and compiled(tmp_path).from_cache == 1


def test_a_folder_that_cannot_be_created_is_reported_once_and_the_run_continues(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert compiled(tmp_path / "file").compiled == 1
    [line] = caplog.messages
    assert line == f"the compilation cache cannot be read: {tmp_path}/file: Not a directory"


def test_a_folder_that_cannot_be_searched_is_reported_and_the_run_continues(tmp_path, caplog):
    assert compiled(tmp_path / ("x" * 300)).compiled == 1  # an error for root too, unlike missing permissions
    [line] = caplog.messages
    assert line.startswith("the compilation cache cannot be read: ") and line.endswith(": File name too long")


def test_a_full_disk_is_reported_and_no_partial_file_remains(tmp_path, caplog, monkeypatch):
    def full(path, value):
        path.open("wb").close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert compiled(tmp_path).compiled == 1
    assert "cannot be written" in caplog.text and "No space left on device" in caplog.text
    assert not files(tmp_path)


def test_partial_files_of_killed_runs_are_removed_but_not_files_being_written(tmp_path):
    old, new = tmp_path / ".a.new", tmp_path / ".b.new"
    for file in (old, new):
        file.touch()
    os.utime(old, (0, 0))
    compiled(tmp_path)
    assert not old.exists() and new.exists()


# ---- where


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The compilation cache directory of this user. JAX has no other one set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache" / "xlstm_hydra" / "compiled"
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_of_all_runs_are_kept_in_the_cache_directory_of_the_user(own):
    assert compiled("auto").compiled == 1
    assert compiled("auto").from_cache == 1
    assert len(files(own)) == 1


@pytest.mark.parametrize("variable", [None, "", "relative"], ids=["unset", "empty", "relative"])
def test_the_cache_directory_is_in_the_home_folder_by_default(variable, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if variable is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", variable)
    assert compiled_folder() == Path("/home/me/.cache/xlstm_hydra/compiled")


def test_nothing_is_cached_for_a_user_without_a_home_folder(own, monkeypatch, caplog):
    monkeypatch.setattr(f"{CACHE}.compiled_folder", lambda: None)
    assert compiled("auto").compiled == 1
    assert caplog.messages == ["compiled programs are not cached: this user has no home folder"]


def test_a_cache_directory_set_for_jax_is_used(own, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert compiled("auto").compiled == 1
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_null_turns_the_cache_off(own, tmp_path):
    assert compiled(None).compiled == 1
    assert not files(tmp_path)


def test_programs_not_loaded_for_a_month_are_removed_only_from_the_cache_directory_of_the_user(own, tmp_path):
    for folder, place in {own: "auto", tmp_path / "named": tmp_path / "named"}.items():
        compiled(place)
        os.utime(next(folder.iterdir()), (0, 0))
        assert compiled(place).compiled == (folder == own)


def test_a_program_that_was_loaded_counts_as_used(own):
    compiled("auto")
    [file] = own.iterdir()
    os.utime(file, (time.time() - 20 * 86400, time.time() - 20 * 86400))
    compiled("auto")
    assert time.time() - file.stat().st_mtime < 86400


# ---- permissions


def test_only_this_user_can_read_the_folders_and_files(own):
    before = os.umask(0)
    try:
        compiled("auto")
    finally:
        os.umask(before)
    assert [own.stat().st_mode & 0o777, *(file.stat().st_mode & 0o777 for file in own.iterdir())] == [0o700, 0o600]


WRITERS = {"everyone": (0o777, "everyone"), "its group": (0o770, "its group")}


@pytest.mark.parametrize(("mode", "who"), WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("how", ["auto", "typed", "given to JAX"])
def test_a_folder_that_others_may_write_to_is_not_used(how, mode, who, own, caplog):
    own.mkdir(parents=True)
    own.chmod(mode)
    if how == "given to JAX":
        jax.config.update("jax_compilation_cache_dir", str(own))
    assert compiled(own if how == "typed" else "auto").compiled == 1
    assert not files(own) and f"{own} is not used: {who} can write programs to it" in caplog.text


def someone_else(path, monkeypatch):
    """Let a path appear to belong to another user, even for a user who cannot change its owner."""
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    if path.stat().st_uid == 0:
        os.chown(path, 12345, -1)


def test_a_folder_of_another_user_is_not_used(own, monkeypatch, caplog):
    own.mkdir(parents=True)
    someone_else(own, monkeypatch)
    assert compiled("auto").compiled == 1
    assert not files(own) and f"{own} is not used: its owner (user " in caplog.text


FOREIGN = {
    "writable by everyone": lambda file, _: file.chmod(0o666),
    "writable by its group": lambda file, _: file.chmod(0o660),
    "a link": lambda file, _: file.rename(file.with_name("other")) and file.symlink_to("other"),
    "a pipe": lambda file, _: (file.unlink(), os.mkfifo(file)),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_program_is_not_loaded_from_a_file(change, own, monkeypatch, caplog):
    compiled("auto")
    [file] = own.iterdir()
    change(file, monkeypatch)
    assert compiled("auto").compiled == 1
    assert f"the compilation cache cannot be read: {own}: " in caplog.text


def test_a_program_of_another_user_is_not_loaded(own, monkeypatch, caplog):
    compiled("auto")
    [file] = own.iterdir()
    monkeypatch.setattr(
        "xlstm_hydra.step._compilation_cache._other_writer",
        lambda status: "someone" if stat.S_ISREG(status.st_mode) else None,
    )
    assert compiled("auto").compiled == 1
    assert f"{file.name} can be written by someone, and this process would run it" in caplog.text
