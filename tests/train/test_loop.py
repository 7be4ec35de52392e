"""The log, the metrics and the files of a run."""

import csv
import json
import logging
import math
import re
from pathlib import Path

import numpy as np
import pytest
from saved import composed
from tiny import LAYOUTS, tiny_run

from xlstm_hydra.configs import (
    AdamWConfig,
    CheckpointConfig,
    ConfigError,
    LoggerConfig,
    StdlibDataConfig,
    SyntheticDataConfig,
)
from xlstm_hydra.runs import StartingPoint
from xlstm_hydra.step import build_program
from xlstm_hydra.train import RunPlan, announce, announce_start, train

OPTIMIZER = AdamWConfig(lr=1e-2)


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_model_learns_synthetic_data(tmp_path):
    # After 80 steps the loss is at its steepest, and rounding, which depends on the processor, decides between 2.4 and
    # 3.1. After 200 steps nine seeds have ended between 1.0 and 1.9.
    run = tiny_run(
        trainer={"max_steps": 200, "eval_batches": 1, "batch_size": 16},
        optimizer=OPTIMIZER,
        data=SyntheticDataConfig(num_examples=512, motif_length=2),
        parallel={"data_axis_size": 8},
        logger=LoggerConfig(progress=False, tensorboard=False, log_every_n_steps=50),
    )
    loss = train(run, tmp_path)
    assert loss is not None and loss < 0.75 * math.log(32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of seven steps on dp=8, with a line of metrics every three steps and validation every five."""
    folder = tmp_path_factory.mktemp("run")
    logger = LoggerConfig(log_every_n_steps=3)
    trainer = {"max_steps": 7, "eval_batches": 2, "eval_every_n_steps": 5}
    model = {"vocab_size": 256}
    groups = {"data": StdlibDataConfig(), "logger": logger, "optimizer": OPTIMIZER}
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr(logging.getLogger("xlstm_hydra"), "info", lambda text, *args, **_: lines.append(text % args))
        loss = train(tiny_run("llama", parallel=LAYOUTS["dp8"], model=model, trainer=trainer, **groups), folder)
    return folder, loss, lines


def test_metrics_are_written_at_the_configured_steps(finished):
    folder, _, _ = finished
    assert [int(row["step"]) for row in rows(folder) if row["loss"]] == [1, 3, 6, 7]
    assert [int(row["step"]) for row in rows(folder) if row["validation_loss"]] == [5, 7]


def test_bits_per_byte_are_nats_by_log_2(finished):
    folder, loss, _ = finished
    last = [row for row in rows(folder) if row["validation_loss"]][-1]
    assert float(last["validation_loss"]) == loss
    assert float(last["validation_bits_per_byte"]) == pytest.approx(loss / math.log(2))


def test_tensorboard_gets_the_same_metrics(finished):
    assert any((finished[0] / "tensorboard").iterdir())


def test_the_mesh_the_parameters_and_the_unigram_entropy_are_logged(finished):
    text = "\n".join(finished[2])
    assert text.count("mesh     8 cpu devices: dp=8 fsdp=1 pp=1 tp=1") == 1
    assert re.search(r"^model    \w+, [\d,]+ parameters$", text, re.MULTILINE)
    assert "unigram entropy" in text and "bits" in text
    assert "tokens/s" in text and "bits/byte" in text


def test_the_plan_is_logged_before_the_first_step_and_compared_after_the_last(finished):
    folder, _, lines = finished
    content = json.loads((folder / "plan.json").read_text())
    assert content["fits"] and content["measured"]["step_seconds"] > 0 and content["measured"]["peak_bytes"] is None
    first_step = next(number for number, line in enumerate(lines) if line.startswith("step 1/7"))
    assert any("fits" in line for line in lines[:first_step])
    [measured] = [line for line in lines[first_step:] if line.startswith("measured ")]
    assert re.match(r"measured [\d.,]+ ms per step \(predicted: at least [\d.,]+ ms\)", measured)
    assert f"{'':9}peak memory: not reported on CPU" in lines
    assert (folder / "plan.txt").read_text().splitlines()[-1].startswith("fits: ")


def test_the_logged_loss_is_the_mean_over_its_steps(tmp_path):
    folders = tmp_path / "every", tmp_path / "third"
    for folder, every in zip(folders, (1, 3), strict=True):
        logger = LoggerConfig(log_every_n_steps=every, tensorboard=False)
        folder.mkdir()
        train(tiny_run("llama", parallel=LAYOUTS["dp8"], logger=logger), folder)
    single = {int(row["step"]): float(row["loss"]) for row in rows(folders[0])}
    grouped = {int(row["step"]): float(row["loss"]) for row in rows(folders[1])}
    np.testing.assert_allclose(grouped[6], np.mean([single[step] for step in (4, 5, 6)]), rtol=1e-6)


def test_a_layout_that_does_not_fit_the_devices_is_refused_before_anything_is_built(tmp_path):
    with pytest.raises(ConfigError, match=r"parallel.fsdp_axis_size=3: .*number of devices, 8"):
        train(tiny_run(parallel={"fsdp_axis_size": 3}, trainer={"batch_size": 24}), tmp_path)


WARNINGS = {
    "nothing sharded": (
        {"data_axis_size": 1, "fsdp_axis_size": 8, "fsdp_modules": ["Embed"]},
        "FSDP shards no parameter",
    ),
    "gathered weights kept": (LAYOUTS["fsdp8"] | {"remat": []}, "every gathered parameter is kept"),
}


@pytest.mark.parametrize(("parallel", "words"), WARNINGS.values(), ids=WARNINGS)
def test_a_layout_that_is_probably_unintended_is_warned_about(parallel, words, caplog):
    announce(build_program(tiny_run(parallel=parallel)), RunPlan(None, None), "")
    assert words in caplog.text


def test_validation_and_checkpoints_can_be_turned_off(tmp_path):
    run = tiny_run("llama", LAYOUTS["dp8"], checkpoint=CheckpointConfig(save_every_n_steps=0, save_last=False))
    assert train(run, tmp_path) is None
    assert not (tmp_path / "checkpoints").exists()


def test_a_vocabulary_larger_than_the_bytes_is_warned_about_once(caplog):
    run = tiny_run("llama", data=StdlibDataConfig(), model={"vocab_size": 300}, parallel=LAYOUTS["dp8"])
    announce(build_program(run), RunPlan(None, None), "")
    words = "data.name=stdlib has only 256 token ids, but model.vocab_size is 300: the other rows of the embedding and"
    assert caplog.text.count(words) == 1 and "Set model.vocab_size=256?" in caplog.text


@pytest.mark.parametrize("vocab_size", [256, 300])
def test_a_vocabulary_that_the_data_fills_gives_no_warning(vocab_size, caplog):
    data = StdlibDataConfig() if vocab_size == 256 else SyntheticDataConfig(motif_length=4)
    program = build_program(tiny_run("llama", data=data, model={"vocab_size": vocab_size}))
    announce(program, RunPlan(None, None), [])
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


ORIGINS = {
    "from a run": ("/runs/a/checkpoints/4", {}, "/runs/a@4"),
    "from a copy": ("/copies/best", {}, "/copies/best"),
    "of its own": (None, {}, None),
    "with weights": ("/runs/a/checkpoints/4", {"weights": "/runs/a/checkpoints/4"}, None),
    "resumed": ("/runs/a/checkpoints/4", {"checkpoint": "/runs/a/checkpoints/4"}, None),
}


@pytest.mark.parametrize(("origin", "start", "shown"), ORIGINS.values(), ids=ORIGINS)
def test_a_run_with_the_config_of_a_checkpoint_logs_that_its_weights_are_random(origin, start, shown, tmp_path, caplog):
    caplog.set_level(logging.INFO, "xlstm_hydra")
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"_checkpoint_": origin}}))
    paths = {name: Path(path) for name, path in start.items()}
    announce_start(tiny_run(), tmp_path, StartingPoint(**{"checkpoint": None} | paths), None)
    expected = f"the weights are random. checkpoint.init_from={shown} starts from its weights; resume={shown} continues"
    assert (expected in caplog.text) == (shown is not None) == ("random" in caplog.text)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_recipe_for_copying_learns_to_copy(seed, tmp_path):
    run = composed("experiment=copying", f"trainer.seed={seed}", f"data.seed={seed}", "checkpoint=none", "logger=quiet")
    loss = train(run, tmp_path)
    assert loss is not None and loss < 0.6 * math.log(32)
