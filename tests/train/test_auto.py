"""`parallel=auto`: the run trains with the chosen layout, and is recorded with it."""

import json
from pathlib import Path

import pytest
from command import run_command
from omegaconf import OmegaConf

from xlstm_hydra.configs import ParallelConfig
from xlstm_hydra.runs import find_checkpoint, record_of

SMALL = (
    *(
        "model.embedding_dim=32",
        "model.num_blocks=1",
        "model.num_heads=4",
        "model.context_length=32",
        "model.chunk_size=16",
    ),
    *("data=synthetic", "data.motif_length=4", "data.num_examples=64", "trainer.eval_batches=0"),
    *("trainer.simulated_devices=4", "trainer.max_steps=1", "logger=quiet"),
    *("parallel=auto", "parallel.pipeline_axis_size=1", "parallel.remat=[mLSTMBlock]"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with a fixed degree of tensor parallelism."""
    place = tmp_path_factory.mktemp("auto")
    done = run_command(*SMALL, "parallel.model_axis_size=2", f"hydra.run.dir={place}")
    assert done.status == 0, done.err
    return place


def test_the_run_is_recorded_with_the_layout_and_given_fields_are_kept(folder):
    layout = record_of(find_checkpoint(str(folder)), "run").groups["parallel"]
    assert type(layout) is ParallelConfig
    assert layout.axis_sizes(4)["tp"] == 2 and layout.pipeline_axis_size == 1
    assert layout.remat == ["mLSTMBlock"]


def test_the_config_in_the_run_folder_has_the_same_layout(folder):
    written = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    recorded = record_of(find_checkpoint(str(folder)), "run").groups
    assert written["parallel"] == written["model"]["parallel"] == recorded["parallel"].to_dict()
    assert written["trainer"] == recorded["trainer"].to_dict()


def test_the_candidate_layouts_are_written_to_the_run_folder(folder):
    told = json.loads(Path(folder, "search.json").read_text(encoding="utf-8"))
    seconds = [row["seconds"] for row in told["best"]]
    assert seconds == sorted(seconds) and told["num_devices"] == 4
    assert all(row["sizes"]["tp"] == 2 for row in told["candidates"])


def test_the_plan_of_the_run_is_the_one_found_by_the_search(folder):
    search, plan = (json.loads(Path(folder, name).read_text(encoding="utf-8")) for name in ("search.json", "plan.json"))
    assert search["best"][0]["sizes"] == plan["mesh"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["parallel.model_axis_size=3"], "parallel.model_axis_size must divide model.num_heads"),
        (["parallel.headroom=1"], "parallel.headroom=1.0: must be less than 1"),
        (["parallel.remat=[mLSTMBlok]"], "Did you mean 'mLSTMBlock'"),
        (["parallel.name=best"], "must be auto for AutoParallelConfig"),
        (["task=evaluate", "task.checkpoint=run"], "parallel=auto chooses a layout for training only"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_impossible_settings_are_refused_before_any_layout_is_tried(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    done = run_command(*SMALL, *arguments)
    assert done.status == 2 and words in done.err
