"""Checkpoints of any program can be loaded, used to initialize a run, and imported."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import CHECKPOINTS
from tiny import LAYOUTS, tiny_run
from untrained import random_params, save_untrained

from xlstm_hydra import load_checkpoint
from xlstm_hydra.checkpoint import export_checkpoint, import_checkpoint, load_params
from xlstm_hydra.configs import CheckpointConfig, ConfigError, ParallelConfig, SGDConfig
from xlstm_hydra.metadata import read_record
from xlstm_hydra.models import apply_model, build_model
from xlstm_hydra.runs import find_checkpoint, read_metadata_text
from xlstm_hydra.train import train

MODEL = {"gate_soft_cap": 15.0, "logits_soft_cap": 30.0, "lm_head_dtype": None, "proj_factor": 4.0}
needs_reference = pytest.mark.skipif(
    not CHECKPOINTS.is_dir(), reason="the reference checkpoints are not on this machine"
)


def run_of(layout="dp8", model=None, **checkpoint):
    """One step with a learning rate of zero."""
    return tiny_run(
        "v1",
        LAYOUTS[layout],
        MODEL | (model or {}),
        trainer={"max_steps": 1},
        optimizer=SGDConfig(lr=0.0),
        checkpoint=CheckpointConfig(async_save=False, **checkpoint),
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same parameters as a run of ours, as a model of Hugging Face, and as a run imported from that model."""
    folder = tmp_path_factory.mktemp("places")
    run = run_of()
    save_untrained(run, folder / "ours", params=random_params(run.model))
    export_checkpoint(str(folder / "ours"), folder / "hf")
    import_checkpoint(str(folder / "hf"), folder / "imported")
    return folder


def assert_same_params(place, other):
    """Check that all formats give the same parameters of our model."""
    model = run_of().model
    got, expected = (load_params(find_checkpoint(str(each)), model) for each in (place, other))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_load_checkpoint_returns_a_model_with_its_parameters(places):
    model, params, config = load_checkpoint(places / "ours")
    tokens = np.arange(32).reshape(2, 16)
    expected = apply_model(build_model(run_of().model), params, tokens)
    np.testing.assert_array_equal(model.apply({"params": params}, tokens), expected)
    assert config == run_of().model and config.model_class is type(model)
    assert all(len(leaf.sharding.device_set) == 8 and leaf.is_fully_replicated for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("backend", ["pallas_triton", "cudnn"])
def test_a_model_with_an_unavailable_kernel_can_be_used(tmp_path, backend):
    run = tiny_run("llama", model={"attention_backend": backend, "dtype": "bfloat16", "num_blocks": 1})
    save_untrained(run, tmp_path, params=random_params(run.model))
    model, params, config = load_checkpoint(tmp_path)
    assert config.model_config == run.model.model_config
    assert jnp.isfinite(model.apply({"params": params}, np.arange(16)[None])).all()


def test_parameters_can_be_loaded_onto_a_layout(places):
    whole = load_checkpoint(places / "ours").params
    params = load_checkpoint(f"{places / 'ours'}@2", ParallelConfig(**LAYOUTS["tp2_fsdp4"])).params
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(params))


def test_a_path_without_a_checkpoint_is_reported_as_given(tmp_path):
    with pytest.raises(ConfigError, match=f"^checkpoint='{tmp_path}': no checkpoints in "):
        load_checkpoint(tmp_path)


def lose(folder):
    shutil.rmtree(folder)


def cut(folder):
    file = folder / "_METADATA"
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [lose, cut])
def test_damaged_parameters_are_one_error_with_the_checkpoint(places, tmp_path, damage):
    checkpoint = find_checkpoint(str(shutil.copytree(places / "ours", tmp_path / "run")))
    (checkpoint / "manifest.json").unlink()  # with one, the file is named: see test_bit_flips.py
    damage(checkpoint / "params")
    words = f"^task.checkpoint={checkpoint}: its parameters cannot be read: .*incomplete; choose another step.$"
    with pytest.raises(ConfigError, match=words) as told:
        load_params(checkpoint, run_of().model, key="task.checkpoint")
    assert "\n" not in str(told.value)
    assert told.value.__cause__ is not None


@pytest.mark.parametrize(
    "changes", [{"init_from": "{}/ours"}, {"init_from": "{}/hf"}, {"restore": "{}/imported"}], ids=str
)
def test_a_run_starts_with_the_parameters_of_any_checkpoint(places, tmp_path, changes):
    train(run_of(**{key: place.format(places) for key, place in changes.items()}), tmp_path)
    assert find_checkpoint(str(tmp_path)).name == "1"
    assert_same_params(tmp_path, places / "ours")


def test_parameters_of_another_model_are_refused_before_anything_is_compiled(places, tmp_path):
    words = "^checkpoint.init_from=.*its parameters do not match the model: blocks.*expected .* got .* and 13"
    with pytest.raises(ConfigError, match=words):
        train(run_of(model={"embedding_dim": 64}, init_from=str(places / "ours")), tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"init_from": " @3"}, "init_from=' @3': must name a run folder"),
        (
            {"init_from": "a", "restore": "b"},
            "init_from='a', restore='b': cannot both be set, because a run that is",
        ),
    ],
    ids=str,
)
def test_a_checkpoint_that_cannot_initialize_a_run_is_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        CheckpointConfig(**values)


def write_to(form, places, out):
    return import_checkpoint(str(places / "hf"), out) if form == "import" else export_checkpoint(f"{places}/ours", out)


@pytest.mark.parametrize("form", ["import", "export"])
def test_a_folder_that_is_not_empty_is_not_written_to(places, form):
    before = sorted((places / "imported").rglob("*"))
    with pytest.raises(ConfigError, match="^OUT='.*imported': already exists"):
        write_to(form, places, places / "imported")
    assert sorted((places / "imported").rglob("*")) == before


@pytest.mark.parametrize("form", ["import", "export"])
def test_a_folder_that_cannot_be_written_is_one_error(places, tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("run.unfinished").mkdir()  # of another process
    for place in (Path("file/run"), Path("/proc/run"), Path("run")):
        with pytest.raises(ConfigError, match=f"^OUT='/.*{place.name}': cannot be written: .*Choose another folder"):
            write_to(form, places, place)


@pytest.mark.parametrize("form", ["import", "export"])
def test_an_incomplete_folder_does_not_get_its_name(places, tmp_path, monkeypatch, form):
    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("xlstm_hydra.checkpoint._transfer.write_safetensors", full)
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    with pytest.raises(ConfigError, match="^OUT=.*: cannot be written: no space left"):
        write_to(form, places, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


@needs_reference
@pytest.mark.parametrize("case", ["a_mlstm_v0", "b_mlstm_v1", "c_llama", "d_8dev_mlstm_v0_fsdp2_tp2"])
def test_a_checkpoint_of_xlstm_jax_becomes_one_of_ours(case, tmp_path):
    theirs = CHECKPOINTS / case / "run"
    checkpoint = import_checkpoint(str(theirs), tmp_path, "xlstm_jax")
    assert checkpoint == find_checkpoint(f"{tmp_path}@20")
    before, after = load_checkpoint(theirs), load_checkpoint(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert after.config.model_config == before.config.model_config
    record = read_record(read_metadata_text(checkpoint))
    assert record.writer == "xlstm_hydra" and record.content["imported"]["writer"] == "xlstm_jax"


@needs_reference
def test_a_checkpoint_that_cannot_be_imported_is_refused(places, tmp_path):
    theirs = str(CHECKPOINTS / "b_mlstm_v1" / "run")
    with pytest.raises(ConfigError, match="^RUN=.*: is already an xlstm-hydra checkpoint"):
        import_checkpoint(str(places / "ours"), tmp_path)
    with pytest.raises(ConfigError, match="^RUN=.*: expected a checkpoint in the format hf, got xlstm_jax"):
        import_checkpoint(theirs, tmp_path, "hf")
    import_checkpoint(theirs, tmp_path)
    with pytest.raises(ConfigError, match="^OUT=.*: already exists and is not an empty folder. Choose another folder"):
        import_checkpoint(theirs, tmp_path)
    assert not [*tmp_path.parent.glob("*unfinished")]
