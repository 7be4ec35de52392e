"""A sweep of plans ends with one comparison of them."""

import csv
import json
import sys

import pytest
from command import run_command

from xlstm_hydra.plan import MEMORY_KINDS
from xlstm_hydra.sweep import COMPLETED, Outcome, finish_sweep, update_record

SWEEP = ["-m", "task=plan", "task.num_devices=16", "parallel=dp,fsdp,tp", "hydra.sweep.dir=sweep"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Three layouts on sixteen devices; eight heads have no tensor parallelism over as many."""
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run_command(*SWEEP), folder / "sweep"


def lines_of(done, start):
    return [line for line in done.out.splitlines() if line.strip().startswith(start)]


def test_every_job_has_a_row_with_its_overrides_and_verdict(swept):
    done, _ = swept
    assert done.status == 0, done.err
    assert [line.split()[1] for line in lines_of(done, ("0 ", "1 ", "2 "))] == [
        *("parallel=dp", "parallel=fsdp", "parallel=tp")
    ]
    [dp], [fsdp], [tp] = (lines_of(done, f"{number} ") for number in range(3))
    assert [line.split()[2] for line in (dp, fsdp, tp)] == ["fits", "fits", "invalid"]


def test_an_invalid_layout_has_a_row_with_the_reason_and_does_not_stop_the_others(swept):
    done, folder = swept
    [reason] = lines_of(done, "job 2 is invalid: ")
    assert "parallel.model_axis_size must divide model.num_heads" in reason
    assert [(folder / str(number) / "plan.json").exists() for number in range(3)] == [True] * 3


def test_csv_and_json_have_the_rows_in_bytes(swept):
    _, folder = swept
    in_json = json.loads((folder / "plans.json").read_text())
    with (folder / "plans.csv").open() as file:
        in_csv = list(csv.DictReader(file))
    assert [row["verdict"] for row in in_json] == [row["verdict"] for row in in_csv] == ["fits", "fits", "invalid"]
    for written, row in zip(in_json[:2], in_csv, strict=False):
        assert sum(written["memory"].values()) == written["total"] == int(row["total_bytes"])
        assert written["device_memory"] - written["total"] == written["headroom"] == int(row["headroom_bytes"])
        assert [int(row[f"{kind}_bytes"]) for kind in MEMORY_KINDS] == list(written["memory"].values())
        assert float(row["step_seconds"]) == written["step_seconds"] > 0
    assert in_csv[2]["total_bytes"] == "" and in_json[2]["memory"] is None


def test_a_bar_chart_is_drawn_if_matplotlib_is_installed(swept):
    pytest.importorskip("matplotlib")
    done, folder = swept
    assert (folder / "plans.png").read_bytes().startswith(b"\x89PNG")
    assert "plans.png" in lines_of(done, "written: ")[0]


def test_without_matplotlib_the_package_to_install_is_printed(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    update_record(tmp_path, [Outcome(job=0, status=COMPLETED, task="plan")])
    finish_sweep(tmp_path)
    assert "pip install 'xlstm-hydra[plots]'" in capsys.readouterr().out


def test_the_status_says_that_no_plan_fits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("xlstm_hydra.plan._task.changes_that_fit", lambda plan: ())
    small = ["device=h100_80gb", "device.memory_gib=0.001", "optimizer=adamw,sgd"]
    done = run_command("-m", "task=plan", *small, "hydra.sweep.dir=sweep")
    assert done.status == 3, done.err
    written = json.loads((tmp_path / "sweep" / "plans.json").read_text())
    assert [row["verdict"] for row in written] == ["does not fit"] * 2
    assert all(row["headroom"] < 0 for row in written)


def test_a_sweep_without_a_valid_plan_is_rejected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_command("-m", "task=plan", "parallel=tp,fsdp_tp", "model.num_heads=3")
    assert done.status == 2 and "must divide" in done.err


@pytest.mark.parametrize("word", ["parallel=dp,fsdpp", "optimizer.lr=a,1"])
def test_an_unknown_word_is_rejected_before_planning(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_command("-m", "task=plan", word, "hydra.sweep.dir=sweep")
    assert done.status == 2 and done.out == ""
