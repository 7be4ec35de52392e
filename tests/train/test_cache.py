"""Compiled programs that are kept for the next job."""

import csv
import errno
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import LAYOUTS, tiny_run

from xlstm_hydra.configs import AdamWConfig, TrainerConfig
from xlstm_hydra.train import build_program, train
from xlstm_hydra.train._cache import Programs, compilation_cache


@pytest.fixture(scope="module", autouse=True)
def _all_is_kept():
    """Also what is compiled at once, whatever the environment of the tests says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
        yield


# ---- jobs of a sweep


def job(folder, cache, seed=0, **optimizer):
    """Train two steps. Returns what was measured, and the rows of the metrics as text."""
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


def test_a_job_with_other_values_gets_all_programs_from_the_cache(sweep):
    first, _, second, _ = (measured for measured, _ in sweep)
    assert first["programs"] >= 4 and first["programs_from_cache"] == 0
    assert second["programs_from_cache"] == second["programs"] >= 4
    assert second["compile_seconds"] < first["compile_seconds"]


def test_a_job_with_other_values_in_the_same_process_needs_no_cache(sweep):
    assert sweep[1][0]["programs"] == 0 and str(Programs()).startswith("compiled: nothing, an earlier job of this")


def test_a_program_from_the_cache_computes_the_same_bits(sweep):
    (_, first), (_, shared), (_, cached), (measured, compiled) = sweep
    assert measured["programs_from_cache"] == 0 < measured["programs"]
    assert shared == cached == compiled != first


OTHERS = {
    "nesterov": {"optimizer": AdamWConfig(nesterov=True)},
    "what decays": {"optimizer": AdamWConfig(weight_decay_exclude=["dense"])},
    "no clipping": {"optimizer": AdamWConfig(grad_clip_norm=None)},
    "batch": {"trainer": {"batch_size": 16}},
    "model": {"model": {"dropout_rate": 0.1}},
    "layout": {"parallel": LAYOUTS["tp4_dp2"]},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_what_computes_something_else_shares_no_compiled_step(changes):
    plain = {"family": "llama", "parallel": LAYOUTS["dp8"]}
    one, same = build_program(tiny_run(**plain)), build_program(tiny_run(**plain, optimizer=AdamWConfig(lr=0.5)))
    assert same.train_step is one.train_step and same.schedule(0) != one.schedule(0)
    assert build_program(tiny_run(**plain | changes)).train_step is not one.train_step


# ---- one program

NUMBER = np.arange(3, dtype=np.float32)


def compiled(place, folder=Path("/nowhere/run"), **changes):
    """Compile a small program as a run would, and look what became of it."""
    config = TrainerConfig(compilation_cache_dir=place if place is None else str(place), **changes)
    with compilation_cache(config, folder) as programs:
        assert jax.jit(lambda x: 3 * x + 1)(NUMBER).tolist() == [1, 4, 7]
    return programs


def files(folder):
    return {file.name: file.stat().st_size for file in folder.iterdir()}


def test_a_second_run_finds_what_the_first_has_compiled(tmp_path):
    first, second = compiled(tmp_path), compiled(tmp_path)
    assert (first.compiled, first.from_cache) == (1, 0) and "compiled: 1 of 1 programs, " in str(first)
    assert (second.compiled, second.from_cache) == (0, 1)
    assert "compiled: 0 of 1 programs" in str(second) and "1 came from the cache (100%)" in str(second)
    assert len(files(tmp_path)) == 1


def test_the_settings_of_jax_and_its_listeners_are_what_they_were(tmp_path):
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
def test_a_damaged_program_is_told_compiled_again_and_replaced(damage, tmp_path, caplog):
    compiled(tmp_path)
    whole = files(tmp_path)
    [file] = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert compiled(tmp_path).compiled == 1
    [line] = caplog.messages
    assert line == f"a compiled program was cut off, and is compiled again: {file}"
    assert files(tmp_path).keys() == whole.keys() and compiled(tmp_path).from_cache == 1


def test_a_folder_that_cannot_be_made_is_told_once_and_the_run_goes_on(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert compiled(tmp_path / "file").compiled == 1
    [line] = caplog.messages
    assert line == f"the folder of compiled programs cannot be read: {tmp_path}/file: Not a directory"


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path, caplog, monkeypatch):
    def full(path, value):
        path.open("wb").close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert compiled(tmp_path).compiled == 1
    assert "cannot be written" in caplog.text and "No space left on device" in caplog.text
    assert not files(tmp_path)


def test_what_a_kill_has_left_behind_is_removed_and_what_is_being_written_is_not(tmp_path):
    old, new = tmp_path / ".a.new", tmp_path / ".b.new"
    for file in (old, new):
        file.touch()
    os.utime(old, (0, 0))
    compiled(tmp_path)
    assert not old.exists() and new.exists()


# ---- where


@pytest.fixture
def nowhere(monkeypatch):
    """JAX has no folder of its own."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_beside_the_run_folder_for_all_jobs_of_a_sweep(nowhere, tmp_path):
    assert compiled("auto", tmp_path / "0").compiled == 1
    assert compiled("auto", tmp_path / "1").from_cache == 1
    assert [file.name for file in tmp_path.iterdir()] == ["compilation_cache"]


def test_a_run_in_the_current_folder_keeps_them_there(nowhere, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compiled("auto", Path("."))
    assert files(tmp_path / "compilation_cache")


def test_a_folder_that_jax_has_been_given_is_used(nowhere, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert compiled("auto", tmp_path / "run").compiled == 1
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_null_keeps_nothing(tmp_path):
    assert compiled(None, tmp_path / "run").compiled == 1
    assert not files(tmp_path)


def test_a_folder_in_which_others_may_put_programs_is_not_used(nowhere, tmp_path, caplog):
    folder = tmp_path / "compilation_cache"
    folder.mkdir()
    folder.chmod(0o777)
    assert compiled("auto", tmp_path / "run").compiled == 1
    assert not files(folder) and f"{folder} is not used: others may write programs there" in caplog.text
