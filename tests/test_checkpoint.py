"""Checkpoints are saved, restored on any layout, and resumed bit by bit."""

import csv
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from tiny import LAYOUTS, tiny_run

from xlstm_hydra.checkpoint import restore
from xlstm_hydra.configs import (
    AdamWConfig,
    CheckpointConfig,
    ConfigError,
    ModelConfig,
    SGDConfig,
    StdlibDataConfig,
    TextDataConfig,
    TrainerConfig,
)
from xlstm_hydra.data import open_corpus, train_batches
from xlstm_hydra.runs import find_checkpoint, read_metadata_text, read_record
from xlstm_hydra.step import build_program
from xlstm_hydra.train import train

SAVING = {"save_every_n_steps": 2, "max_to_keep": 10}


def run_of(parallel=None, checkpoint=None, family="v1", model=None, **groups):
    trainer = {"max_steps": 6, "eval_batches": 1, "eval_every_n_steps": 2} | groups.pop("trainer", {})
    checkpoint = CheckpointConfig(**SAVING | (checkpoint or {}))
    optimizer = groups.pop("optimizer", AdamWConfig(lr=1e-2))
    return tiny_run(
        family,
        parallel,
        {"dropout_rate" if family == "llama" else "dropout": 0.1} | (model or {}),
        trainer=trainer,
        checkpoint=checkpoint,
        optimizer=optimizer,
        **groups,
    )


def losses(folder):
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): row["loss"] for row in csv.DictReader(file) if row["loss"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps on fsdp=8 that has saved every second step."""
    folder = tmp_path_factory.mktemp("finished")
    train(run_of(LAYOUTS["fsdp8"]), folder)
    return folder


def restored_onto(parallel, place, family="v1"):
    on = build_program(run_of(parallel, family=family))
    train_corpus, _ = open_corpus(on.run.data, 16, 32)
    return jax.device_get(
        restore(find_checkpoint(place), on.abstract_state, train_batches(train_corpus, on.run.data, 8))
    )


def test_a_run_that_is_resumed_repeats_the_losses_bit_by_bit(finished, tmp_path):
    train(run_of(LAYOUTS["fsdp8"], {"restore": f"{finished}@2"}), tmp_path)
    resumed, whole = losses(tmp_path), losses(finished)
    assert list(resumed) == [3, 4, 5, 6]
    assert resumed == {step: whole[step] for step in resumed}


@pytest.mark.parametrize("layout", ["tp2_fsdp4", pytest.param("dp8", marks=pytest.mark.slow)])
def test_a_run_resumed_on_another_layout_continues_with_the_same_losses(finished, tmp_path, layout):
    train(run_of(LAYOUTS[layout], {"restore": f"{finished}@2"}), tmp_path)
    got, expected = ([float(table[step]) for step in (3, 4, 5, 6)] for table in (losses(tmp_path), losses(finished)))
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_a_checkpoint_is_unchanged_after_a_round_trip_through_all_layouts(finished):
    states = [restored_onto(LAYOUTS[layout], f"{finished}@4") for layout in ("fsdp8", "tp2_fsdp4", "dp8")]
    for other in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, states[0], other)


def test_the_latest_step_is_restored_by_default(finished):
    assert find_checkpoint(str(finished)).name == "6"
    assert find_checkpoint(f"{finished}@4").name == "4"


def test_the_config_is_restored_from_the_metadata(finished):
    text = read_metadata_text(find_checkpoint(str(finished)))
    assert read_record(text).groups == run_of(LAYOUTS["fsdp8"]).groups()
    model = ModelConfig.from_metadata(text)
    assert model == run_of(LAYOUTS["fsdp8"]).model
    assert model.parallel.fsdp_axis_size == 8 and model.model_config.dropout == 0.1


def test_the_run_folder_records_the_origin_of_the_run(finished):
    record = json.loads((finished / "metadata.json").read_text())
    assert record["packages"]["jax"] == jax.__version__ and "git" in record
    assert record["parameters"]["token_embedding.embedding"] == {"shape": [32, 32], "dtype": "float32"}
    assert "blocks.ffn_res_block.ffn.proj_up.kernel" in (finished / "parameters.txt").read_text()


def test_the_latest_are_kept(tmp_path):
    train(run_of(LAYOUTS["dp8"], {"max_to_keep": 2, "async_save": False}, "llama"), tmp_path)
    assert sorted(step.name for step in (tmp_path / "checkpoints").iterdir() if step.name.isdigit()) == ["4", "6"]


def test_the_best_are_kept(tmp_path):
    # With a learning rate this large the validation loss gets worse.
    train(
        run_of(
            LAYOUTS["dp8"],
            {"max_to_keep": 1, "keep": "best"},
            "llama",
            optimizer=SGDConfig(lr=50.0),
            trainer={"check_for_nan": False},
        ),
        tmp_path,
    )
    with (tmp_path / "metrics.csv").open() as file:
        validation = {
            row["step"]: float(row["validation_loss"]) for row in csv.DictReader(file) if row["validation_loss"]
        }
    best = min(validation, key=lambda step: validation[step])
    assert best != "6"
    assert [step.name for step in (tmp_path / "checkpoints").iterdir() if step.name.isdigit()] == [best]


REFUSED = {
    "no run": ({}, "nowhere", r"checkpoint.restore='nowhere': no checkpoints in"),
    "no step": ({}, "{run}@5", r"no checkpoint of step 5. Saved steps: 2, 4 or 6"),
    "other model": ({"model": {"num_blocks": 1}}, "{run}@2", r"num_blocks=1: .* saved with 2, and the parameters"),
    "other optimizer": ({"optimizer": SGDConfig()}, "{run}@2", "optimizer.name='sgd': .* saved with 'adamw'"),
    "other batches": ({"trainer": {"batch_size": 16}}, "{run}", r"batch_size=16: the checkpoint was saved with 8"),
    "other seed": ({"trainer": {"seed": 7}}, "{run}", r"trainer.seed=7: the checkpoint was saved with 0"),
    "other data": ({"data": StdlibDataConfig(), "model": {"vocab_size": 256}}, "{run}", r"data.name='stdlib'"),
    "nothing left to do": ({"trainer": {"max_steps": 4}}, "{run}@4", "has already completed 4 steps"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "place", "words"), REFUSED.values(), ids=REFUSED)
def test_a_run_that_cannot_continue_from_the_checkpoint_is_refused(finished, tmp_path, changes, place, words):
    with pytest.raises(ConfigError, match=words):
        train(run_of(LAYOUTS["fsdp8"], {"restore": place.format(run=finished)}, **changes), tmp_path)


def test_a_state_of_another_shape_is_refused(finished):
    other = build_program(run_of(LAYOUTS["fsdp8"], optimizer=SGDConfig(momentum=0.9)))
    with pytest.raises(ConfigError, match="arrays in opt_state do not match"):
        restore(find_checkpoint(str(finished)), other.abstract_state, None)


@pytest.mark.parametrize(
    ("item", "words"),
    [("params", "parameters"), ("opt_state", "optimizer state"), ("progress", "training state"), ("data", "training")],
)
def test_a_run_cannot_continue_from_a_damaged_checkpoint(finished, tmp_path, item, words):
    checkpoint = find_checkpoint(str(shutil.copytree(finished, tmp_path / "run")))
    (checkpoint / "manifest.json").unlink()  # with one, the file is named: see test_bit_flips.py
    shutil.rmtree(checkpoint / item)
    on = build_program(run_of(LAYOUTS["fsdp8"]))
    words = f"^checkpoint.restore={checkpoint}: its {words}.* cannot be read: .*incomplete; choose another step.$"
    with pytest.raises(ConfigError, match=words):
        restore(checkpoint, on.abstract_state, None)


def test_a_folder_with_later_checkpoints_is_not_overwritten(finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"hydra.run.dir=.* already has checkpoints of later steps \(2, 4 or 6\)"):
        train(run_of(LAYOUTS["fsdp8"]), finished)
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path):
    explosive = run_of(
        LAYOUTS["dp8"],
        family="llama",
        optimizer=SGDConfig(lr=1e30, grad_clip_norm=None),
        model={"logits_soft_cap": None},
    )
    with pytest.raises(
        FloatingPointError, match="checkpoints have finite parameters.* resume=RUN@STEP hydra.run.dir=DIR continues"
    ):
        train(explosive, tmp_path)
    for step in (tmp_path / "checkpoints").glob("[0-9]*"):
        state = restored_onto(LAYOUTS["dp8"], f"{tmp_path}@{step.name}", "llama")
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def text_run(path, **checkpoint):
    data = TextDataConfig(path=str(path), validation_fraction=0.2)
    trainer = {"max_steps": 2, "eval_batches": 0}
    return run_of(LAYOUTS["dp8"], checkpoint, "llama", data=data, model={"vocab_size": 256}, trainer=trainer)


def test_a_changed_corpus_is_refused(tmp_path):
    book = tmp_path / "book.txt"
    book.write_bytes(b"to be or not to be " * 100)
    train(text_run(book), tmp_path / "run")
    book.write_bytes(b"to be or not to be " * 101)
    changed = dataclasses.replace(text_run(book, restore=f"{tmp_path}/run"), trainer=TrainerConfig(max_steps=4))
    with pytest.raises(ConfigError, match="the corpus differs from the corpus of the checkpoint"):
        train(changed, tmp_path / "again")


def test_a_step_with_a_non_finite_gradient_is_not_saved(tmp_path):
    optimizer = SGDConfig(lr=1e38, grad_clip_norm=None)
    broken = run_of(LAYOUTS["dp8"], family="llama", optimizer=optimizer, trainer={"max_steps": 1})
    with pytest.raises(FloatingPointError, match="param_norm is .* at step 1"):
        train(broken, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_run_folder_may_have_an_at_sign_in_its_name(finished, tmp_path):
    link = tmp_path / "me@home"
    link.symlink_to(finished)
    assert find_checkpoint(str(link)).name == "6"
    assert find_checkpoint(f"{link}@4").name == "4"


def test_metrics_of_repeated_steps_are_written_once(tmp_path):
    train(run_of(LAYOUTS["dp8"], family="llama", trainer={"max_steps": 4}), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    again = run_of(LAYOUTS["dp8"], {"restore": f"{tmp_path}@2"}, "llama")
    train(again, tmp_path, overrides=["trainer.max_steps=6"])
    with (tmp_path / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["loss"]] == [1, 2, 3, 4, 5, 6]
    record = json.loads((tmp_path / "metadata.json").read_text())
    assert record["overrides"] == ["trainer.max_steps=6"]
    assert [(part["last_step"], part["overrides"]) for part in record["history"]] == [(2, [])]
