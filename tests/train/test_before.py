"""Checks and predictions before a run starts, and the measurements beside them at its end."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest
from command import run_command
from tiny import LAYOUTS, tiny_run

import xlstm_hydra.train
from xlstm_hydra._table import duration
from xlstm_hydra.configs import ConfigError, LoggerConfig, Problem
from xlstm_hydra.devices import device_here
from xlstm_hydra.hydra import load_device
from xlstm_hydra.plan import facts, full_report, summary
from xlstm_hydra.step import CompilationStats, build_program
from xlstm_hydra.train import RunPlan, plan_program, train

GIB = 2**30
SMALL = 2**20
"""Bytes of memory, too few for any run."""


@pytest.fixture
def small_host(monkeypatch):
    monkeypatch.setattr("xlstm_hydra.devices._detected.host_memory", lambda: SMALL)
    monkeypatch.setattr("xlstm_hydra.plan._changes.changes_that_fit", lambda plan: ())


def test_a_run_that_does_not_fit_is_refused_before_it_starts(small_host, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "xlstm_hydra")
    monkeypatch.setattr(jax, "jit", None)
    words = r"trainer.ignore_plan=false: a step needs .* MiB per device, but each of the 8 .* of the host's memory"
    with pytest.raises(ConfigError, match=words) as refused:
        train(tiny_run(parallel=LAYOUTS["dp8"]), tmp_path)
    assert str(refused.value).endswith("trainer.ignore_plan=true starts the run anyway.")
    assert "does not fit" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_changes_that_fit_are_suggested(monkeypatch):
    program = build_program(tiny_run(parallel=LAYOUTS["dp8"], trainer={"batch_size": 64}))
    needed = plan_program(program).plan.memory.total
    small = replace(load_device("h100_80gb"), memory_gib=0.8 * needed / GIB, memory_fraction=1)
    monkeypatch.setattr("xlstm_hydra.train._planning.device_here", lambda _: small)
    with pytest.raises(
        ConfigError, match=r"The run fits with (trainer|parallel)\.\w+=.*\. trainer.ignore_plan=true starts"
    ):
        plan_program(program)


def test_ignore_plan_trains_anyway_with_one_warning(small_host, caplog):
    run = tiny_run(parallel=LAYOUTS["dp8"], trainer={"ignore_plan": True})
    assert not plan_program(build_program(run)).plan.fits
    [line] = caplog.messages
    assert line.startswith("trainer.ignore_plan=true: a step needs ")


def test_a_refused_run_does_not_change_the_config_in_its_folder(tmp_path, monkeypatch):
    def refuse(*_):
        raise ConfigError([Problem({"trainer.ignore_plan": False}, "too large")])

    monkeypatch.setattr(xlstm_hydra.train, "train", refuse)
    (tmp_path / "config.yaml").write_text("what was trained here")
    assert run_command(f"hydra.run.dir={tmp_path}").status == 2
    assert (tmp_path / "config.yaml").read_text() == "what was trained here"


@pytest.mark.parametrize("task", ["task=train", "task=evaluate task.checkpoint=somewhere"], ids=["train", "evaluate"])
@pytest.mark.parametrize(
    "path, words", [("nope", "no files found"), ("empty", "no files found"), ("fifo", "is a FIFO")]
)
def test_missing_data_is_reported_before_anything_starts(task, path, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for module in ("train._loop", "inference._load_model"):
        monkeypatch.setattr(f"xlstm_hydra.{module}.start_devices", None)
    monkeypatch.setattr("xlstm_hydra.inference._load_model.find_checkpoint", lambda *_: tmp_path)
    done = run_command("data=text", f"data.path={path}", "model=tiny", *task.split())
    assert done.status == 2
    assert done.err.startswith(f"xlstm-hydra: data.path='{path}': {words}")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty", "fifo"]


# ---- the devices


def devices(monkeypatch, kind="NVIDIA H100 80GB HBM3", limits=(70, 60), platform="gpu"):
    """Let JAX report these devices, with memory limits in GiB."""
    told = [{"bytes_limit": limit * GIB} if limit else None for limit in limits]
    found = [
        SimpleNamespace(device_kind=kind, platform=platform, slice_index=0, memory_stats=lambda told=told: told)
        for told in told
    ]
    monkeypatch.setattr(jax, "devices", lambda: found)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "local_devices", lambda: found)


MISSING_DATA = """
import sys
from hydra import compose, initialize
from xlstm_hydra._jax_internals import backends_are_initialized
from xlstm_hydra.configs import ConfigError
from xlstm_hydra.hydra import VERSION_BASE, load
from xlstm_hydra.train import train

with initialize(config_path=None, **VERSION_BASE):
    run = load(compose("config", overrides=["data=text", "data.path=nope", "trainer.simulated_devices=2"]))
try:
    train(run, "run")
except ConfigError as error:
    sys.exit(f"{error} Devices: {backends_are_initialized()}")
"""


def test_a_run_with_missing_data_starts_no_device(tmp_path):
    done = subprocess.run([sys.executable, "-c", MISSING_DATA], cwd=tmp_path, capture_output=True, text=True)
    assert "data.path='nope': no files found" in done.stderr and done.stderr.endswith("Devices: False\n"), done.stderr


def test_a_device_has_the_speed_of_its_kind_and_the_smallest_memory_limit(monkeypatch):
    devices(monkeypatch)
    known = load_device("h100_80gb")
    assert device_here(None) == replace(known, memory_gib=60, memory_fraction=1, devices_per_host=2)


def test_only_memory_is_planned_on_an_unknown_device(monkeypatch):
    devices(monkeypatch, kind="NVIDIA L4", limits=(20,))
    here = device_here(None)
    assert (here.name, here.memory_gib, here.has_speeds) == ("NVIDIA L4", 20, False)


def test_configured_figures_are_used_except_for_the_memory(monkeypatch):
    devices(monkeypatch, kind="NVIDIA L4", limits=(20,))
    here = device_here(load_device("a100_40gb"))
    assert (here.name, here.memory_gib) == ("NVIDIA A100 SXM 40GB", 20)


def test_a_device_that_does_not_report_its_memory_has_that_of_its_kind(monkeypatch):
    devices(monkeypatch, limits=(None,))
    assert device_here(None).memory_bytes == pytest.approx(load_device("h100_80gb").memory_bytes, abs=1)


def test_the_process_with_the_least_memory_counts_for_all(monkeypatch):
    devices(monkeypatch)
    other = {"host": "b", "devices": 2, "own": 50 * GIB, "shared": 1}
    monkeypatch.setattr("xlstm_hydra.devices._detected.gather_texts", lambda key, text: [text, json.dumps(other)])
    assert device_here(None).memory_gib == 50


def test_simulated_devices_share_the_memory_of_their_host_over_all_processes(monkeypatch):
    monkeypatch.setattr("xlstm_hydra.devices._detected.host_memory", lambda: 64 * GIB)
    alone, known = device_here(None), load_device("cpu")
    assert (alone.memory_gib, alone.memory_bandwidth) == (64 / 8, known.memory_bandwidth / 8)
    monkeypatch.setattr("xlstm_hydra.devices._detected.gather_texts", lambda key, text: [text, text])
    assert device_here(None).memory_gib == 64 / 16


# ---- what was measured


@pytest.fixture(scope="module")
def planned():
    return plan_program(build_program(tiny_run(parallel=LAYOUTS["dp8"]))).plan


@pytest.mark.parametrize(
    ("earlier", "peak", "words"),
    [
        (None, None, "peak memory: not reported on CPU"),
        (0, 3 * GIB, r"peak memory 3.00 GiB per device \(predicted: "),
        (3 * GIB, 3 * GIB, "peak memory: not measured, because an earlier run in this process used more"),
    ],
    ids=["not reported", "reported", "hidden by an earlier run"],
)
def test_peak_memory_is_of_this_run_or_not_reported(planned, earlier, peak, words, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("xlstm_hydra.train._planning.peak_memory", lambda: peak)
    caplog.set_level("INFO", "xlstm_hydra")
    programs = CompilationStats(total=5, from_cache=4, seconds=2.5)
    RunPlan(planned, earlier).compare(tmp_path, SimpleNamespace(seconds_per_step=0.25), programs)
    assert re.search(f"measured 250.0 ms per step .*\n.*         {words}", caplog.text)
    measured = json.loads((tmp_path / "plan.json").read_text())["measured"]
    assert measured == {
        "step_seconds": 0.25,
        "peak_bytes": peak if peak != earlier else None,
        "programs": 5,
        "programs_from_cache": 4,
        "compile_seconds": 2.5,
    }


# ---- the facts at the start


def test_the_facts_of_a_plan_fit_a_terminal_of_60_columns(planned):
    keys, texts = zip(*facts(planned, done=1), strict=True)
    steps = planned.run.trainer.max_steps - 1
    assert keys == ("device", "memory", "", "time", "")
    assert texts[1].endswith(" on each device: fits") and re.match("at least .* ms per step, bound by ", texts[3])
    assert re.match(rf"\d+:\d\d for {steps} steps, at most ", texts[4])
    assert max(map(len, summary(planned))) <= 60


@pytest.mark.parametrize("verbose", [False, True])
def test_the_whole_plan_is_printed_if_verbose_and_always_kept(verbose, planned, tmp_path, caplog):
    caplog.set_level("INFO", "xlstm_hydra")
    run = RunPlan(planned, None)
    run.log_details(LoggerConfig(verbose=verbose).verbose)
    run.keep(tmp_path)
    assert caplog.messages == (full_report(planned).splitlines() if verbose else [])
    assert (tmp_path / "plan.txt").read_text() == full_report(planned) + "\n"


def test_a_run_without_a_plan_keeps_no_plan_of_an_earlier_start(planned, tmp_path):
    RunPlan(planned, None).keep(tmp_path)
    RunPlan(None, None, "no reason").keep(tmp_path)
    assert not (tmp_path / "plan.txt").exists()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3723, "1:02:03"), (90061, "1 d 1:01:01")], ids=str
)
def test_durations_are_clock_times(seconds, text):
    assert duration(seconds) == text
