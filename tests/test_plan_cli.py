"""The task `plan`: checks, output, files and exit status."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from command import run_command
from omegaconf import OmegaConf
from planning import shared_changes, shared_plan
from tiny import FAMILIES

from xlstm_hydra.configs import PlanTaskConfig, RunConfig, SyntheticDataConfig, TrainerConfig
from xlstm_hydra.devices import known_devices
from xlstm_hydra.hydra import _read
from xlstm_hydra.plan import Comparison, Search, plan

PLAN = ("task=plan", "hydra.run.dir=run")
TINY = (*PLAN, "model.embedding_dim=64", "model.context_length=64", "task.num_devices=16")
SMALL = ("device=h100_80gb", "device.memory_gib=0.0045")
"""A device that is too small for it."""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def plans_are_shared():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xlstm_hydra.plan._task.make_plan", shared_plan)
        patch.setattr("xlstm_hydra.plan._task.changes_that_fit", shared_changes)
        yield


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory):
    """The plan of the README: what it printed, and what it wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("seven"))
        typed = ("parallel=fsdp", "parallel.fsdp_axis_size=8", "model=mlstm_v1_7b", "task.num_devices=256")
        done = run_command(*PLAN, *typed)
        return done, json.loads(Path("run/plan.json").read_text())


def test_a_large_run_is_planned_on_a_small_machine(seven_billion):
    done, content = seven_billion
    assert (done.status, done.err) == (0, "")
    assert "6,865,424,896 parameters" in done.out
    assert "devices  256 x NVIDIA H100 SXM 80GB, 8 per host: 32 hosts" in done.out
    assert "mesh     dp=32 fsdp=8 pp=1 tp=1; dp crosses hosts" in done.out
    assert content["fits"] and content["num_hosts"] == 32


def test_the_default_device_is_named(seven_billion):
    assert seven_billion[0].out.startswith("No device is chosen; the plan is for NVIDIA H100 SXM 80GB.")
    assert "No device is chosen" not in run_command(*TINY, "task.device=h100_80gb").out
    assert "No device is chosen" not in run_command(*TINY, "device=h100_80gb").out


def test_the_figures_in_the_file_add_up(seven_billion):
    content = seven_billion[1]
    memory = dict(content["memory"])
    memory.pop("moment")
    total = memory.pop("total")
    assert sum(memory.values()) == total
    assert content["headroom"] == content["device"]["memory_bytes"] - total
    arrays = content["parameters"]["arrays"]
    assert sum(array["bytes_per_device"] for array in arrays) == memory["parameters"]
    assert sum(math.prod(array["shape"]) for array in arrays) == content["parameters"]["elements"]
    assert content["time"]["seconds"] == max(
        content["time"]["compute"], content["time"]["memory"], sum(content["time"]["network"].values())
    )
    assert content["time"]["tokens_per_second"] == content["tokens"] / content["time"]["seconds"]


def test_the_table_of_parameters_adds_up(seven_billion):
    out, content = seven_billion[0].out, seven_billion[1]
    rows = re.findall(r"^(?:blocks|lm_head|token_embedding)\S* +(\d+) +([\d,]+) ", out, re.MULTILINE)
    assert sum(int(arrays) for arrays, _ in rows) == len(content["parameters"]["arrays"])
    assert sum(int(elements.replace(",", "")) for _, elements in rows) == content["parameters"]["elements"]


@pytest.mark.parametrize("columns", [60, 100])
def test_no_line_is_wider_than_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    done = run_command(*TINY, "parallel=fsdp", "device=h100_80gb", "device.memory_gib=0.004")
    assert done.status == 3 and max(map(len, done.out.partition("\nwritten: ")[0].splitlines())) <= columns


def test_the_table_of_parameters_can_be_complete_or_omitted():
    shown = {detail: run_command(*TINY, f"task.parameters={detail}").out for detail in ("all", "none")}
    paths = [array["path"] for array in json.loads(Path("run/plan.json").read_text())["parameters"]["arrays"]]
    assert all(f"\n{path} " in shown["all"] for path in paths)
    assert not any(path in shown["none"] for path in paths)


@pytest.fixture(scope="module")
def too_large(tmp_path_factory):
    """The output and `plan.json` of a run that does not fit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("too_large"))
        done = run_command(*TINY, *SMALL)
        return done, json.loads(Path("run/plan.json").read_text())


def test_a_run_that_does_not_fit_has_status_3_and_the_missing_memory(too_large):
    done, content = too_large
    assert done.status == 3
    assert re.search(r"does not fit: needs [\d.]+ MiB \(\d+%\) more than the available 3\.5 MiB", done.out)
    assert not content["fits"] and content["headroom"] < 0


def test_the_suggested_changes_make_the_run_fit(too_large):
    changes = too_large[1]["changes"]
    assert changes
    assert run_command(*TINY, *SMALL, *changes[0]["overrides"]).status == 0


INVALID = {
    "layout": (["parallel.fsdp_axis_size=5"], "must divide the number of devices, 16", "task.num_devices to 15 or 20"),
    "exact": (["parallel.data_axis_size=4"], "must equal the number of devices, 16", "task.num_devices to 4."),
    "batch": (
        ["trainer.batch_size=24"],
        "the batch size must be a multiple of data_axis_size(16) = 16",
        "to 16 or 32.",
    ),
    "none": (["task.num_devices=0"], "task.num_devices=0: must be 1 or more", ""),
    "too many": (["task.num_devices=9999999999"], "must be less than 2147483648", ""),
    "device": (["task.device=h100"], "no such option. Did you mean 'h100_80gb'?", "Known: a100_40gb"),
    "table": (["task.parameters=some"], "not a known value", "Choose modules, all or none."),
    "simulated": (["trainer.simulated_devices=16"], "has no effect with task=plan", "Remove this setting."),
    "gpus": (["distributed.local_device_ids=[0]"], "has no effect with task=plan", "task.num_devices sets the number"),
    "heads": (["parallel=tp"], "must divide model.num_heads", "Set parallel.model_axis_size to 1, 2, 4 or 8"),
    "restore": (["checkpoint.restore=x"], "only training can continue from a checkpoint", ""),
}


@pytest.mark.parametrize(("overrides", "rule", "fix"), INVALID.values(), ids=INVALID)
def test_an_invalid_plan_is_one_error_with_the_choices(overrides, rule, fix):
    done = run_command(*TINY, *overrides)
    assert done.status == 2
    assert rule in done.err and fix in done.err
    if overrides != ["parallel=tp"]:  # it breaks a rule of each width
        assert done.err.count("\n") == 1


def test_only_one_process_plans(monkeypatch):
    srun = {"STEP_ID": 0, "STEP_NUM_TASKS": 4, "PROCID": 0, "JOB_ID": 1, "STEP_NODELIST": "n[1-4]", "LOCALID": 0}
    for name, value in (srun | {"STEP_TASKS_PER_NODE": "1(x4)", "NODEID": 0}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    done = run_command(*TINY)
    assert done.status == 2 and "this is process 0 of 4. Run the command without srun." in done.err


def batch_of(*overrides):
    done = run_command("--cfg", "job", "--resolve", "task=plan", *overrides)
    return OmegaConf.create(done.out).trainer.batch_size


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ([], 8),
        (["task.num_devices=3"], 9),
        (["task.num_devices=256"], 256),
        (["device=tpu_v5e"], 256),
        (["parallel=tp", "parallel.model_axis_size=2", "task.num_devices=64"], 32),
        (["parallel=pp", "task.num_devices=64", "trainer.pipeline_microbatches=3"], 192),
        (["task.num_devices=16", "trainer.gradient_accumulate_steps=3"], 48),
        (["parallel=auto", "task.num_devices=64"], 64),
        (["task.num_devices=16", "parallel.fsdp_axis_size=5"], 10),
        (["model=custom"], 8),
        (["task.num_devices=0"], 8),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_default_batch_of_a_plan_is_valid_for_its_layout(overrides, size):
    assert batch_of(*overrides) == size


def test_the_default_batch_of_a_plan_reads_the_rest_of_the_config_once(monkeypatch):
    read, calls = _read.read_groups, []
    monkeypatch.setattr(_read, "read_groups", lambda *args, **kwargs: calls.append(args) or read(*args, **kwargs))
    assert batch_of("task.num_devices=3") == 9
    assert len(calls) == 1


def test_the_default_batch_of_a_run_is_that_of_the_dataclass():
    done = run_command("--cfg", "job", "--resolve", "trainer.simulated_devices=3")
    assert OmegaConf.create(done.out).trainer.batch_size == TrainerConfig().batch_size


def test_a_sweep_prints_summaries_and_continues_after_a_plan_that_does_not_fit():
    sweep = ("-m", *TINY[0:1], *TINY[2:], "hydra.sweep.dir=sweep", "device=h100_80gb", "device.memory_gib=0.0045,50")
    done = run_command(*sweep, "task.parameters=all")
    assert done.status == 0  # one fits
    assert "on each device: does not fit" in done.out and "on each device: fits" in done.out
    assert "partition specs" not in done.out and "not sharded" not in done.out


def test_a_search_prints_the_overrides_of_the_best_layouts(monkeypatch):
    def found(run, number, device, best):
        parallel = dataclasses.replace(run.parallel, remat=["mLSTMBlock"])
        changed = dataclasses.replace(run, model=dataclasses.replace(run.model, parallel=parallel))
        plans = (shared_plan(changed, number, device),)
        values: dict[str, Any] = {field.name: () for field in dataclasses.fields(Search)}
        values |= {"run": run, "num_devices": number, "device": device, "limit": 2**30, "best": plans}
        return Search(**values)

    monkeypatch.setattr("xlstm_hydra.plan._task.search", found)
    done = run_command(*TINY, "task.search=true")
    assert done.status == 0 and "the fastest 1:" in done.out
    best = json.loads(Path("run/search.json").read_text())["best"][0]
    assert best["overrides"] and " ".join(best["overrides"]) in done.out
    assert run_command(*TINY, *best["overrides"]).status == 0
    assert json.loads(Path("run/plan.json").read_text())["memory"]["total"] == best["memory_bytes"]


def test_the_compilers_figures_are_printed_next_to_the_plan(monkeypatch):
    compared = [Comparison("parameters", "bytes", 100, 80), Comparison("operations", "operations", 7, 7, "a note")]
    monkeypatch.setattr("xlstm_hydra.plan._task.compile_step", lambda run, number: number)
    monkeypatch.setattr("xlstm_hydra.plan._task.compare", lambda plan, compiled: compared if compiled == 16 else [])
    done = run_command(*TINY, "task.compile=true")
    assert done.status == 0, done.err
    assert re.search(r"^parameters +bytes +100 +80 +1\.25$", done.out, re.MULTILINE)
    assert re.search(r"^operations +operations +7 +7 +1 +a note$", done.out, re.MULTILINE)
    assert json.loads(Path("run/plan.json").read_text())["compiled"] == [dataclasses.asdict(row) for row in compared]


def test_python_can_plan_without_hydra(tmp_path, capsys, monkeypatch):
    for name in ("known_devices", "shortest_layout"):
        monkeypatch.setattr(f"xlstm_hydra._hooks.hooks.{name}", None)
    run = RunConfig(
        model=FAMILIES["v1"](),
        task=PlanTaskConfig(num_devices=8),
        data=SyntheticDataConfig(motif_length=4),
        device=known_devices()["cpu"],
    )
    assert 0 < plan(run, tmp_path) < math.inf
    assert "8 x CPU, 2 cores, 1 per host: 8 hosts" in capsys.readouterr().out
    assert json.loads((tmp_path / "plan.json").read_text())["device"]["platform"] == "cpu"
