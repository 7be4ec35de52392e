"""Models of Hugging Face's xLSTM: exported for transformers with the same logits, and imported again."""

import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError, flax
from safetensors.numpy import load_file, save_file
from saved import save
from tiny import tiny_run
from untrained import random_params, save_untrained

from xlstm_hydra import load_checkpoint
from xlstm_hydra.checkpoint import export_checkpoint, import_checkpoint, load_params, recorded_model
from xlstm_hydra.configs import ConfigError

CAPS = {"gate_soft_cap": 15.0, "logits_soft_cap": 30.0}
MODELS = {
    "as published": {},
    "biased and not scanned": {"bias": True, "scan_blocks": False, "dropout": 0.1, "igate_bias_init_range": -10.0},
    "other widths": {
        "proj_factor": 1.3,
        "round_proj_up_to_multiple_of": 1,
        "v_dim_factor": 2.0,
        "qk_dim_factor": 1.0,
        "cell_eps": 0.5,
    },
}
SAID = (
    *("vocab_size", "embedding_dim", "num_blocks", "num_heads", "context_length", "bias", "qk_dim_factor"),
    *("v_dim_factor", "gate_soft_cap", "logits_soft_cap", "norm_eps", "cell_norm_eps", "cell_eps", "chunk_size"),
    *("dtype", "gate_dtype", "ff_dtype", "lm_head_dtype", "dropout", "scan_blocks", "fgate_bias_init_range"),
    *("igate_bias_init_range", "init_distribution", "output_init_fn"),
)
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 16))


def run_of(**model):
    return tiny_run("v1", model=CAPS | {"lm_head_dtype": None} | model)


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def exported(request, tmp_path_factory):
    """A checkpoint of ours, and its export as a model of Hugging Face."""
    folder = tmp_path_factory.mktemp("run")
    run = run_of(**request.param)
    save_untrained(run, folder, params=random_params(run.model))
    with pytest.MonkeyPatch.context() as patch:
        if run.model.model_config.bias:  # split into files like a large model
            patch.setattr("xlstm_hydra.checkpoint._leaves._BYTES_PER_FILE", 10_000)
        export_checkpoint(str(folder), folder / "exported")
    files = len(list((folder / "exported").glob("*.safetensors")))
    assert files > 2 if run.model.model_config.bias else files == 1
    return folder, folder / "exported"


@pytest.mark.filterwarnings("ignore")
def test_transformers_computes_the_same_logits(exported):
    reason = "transformers and torch are not installed: pip install 'xlstm-hydra[hf]'"
    torch = pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    ours, theirs = exported
    model, told = transformers.xLSTMForCausalLM.from_pretrained(theirs, output_loading_info=True)
    assert not any(told.values())
    with torch.no_grad():
        got = model.eval()(torch.tensor(TOKENS)).logits.numpy()
    loaded = load_checkpoint(ours)
    expected = loaded.model.apply({"params": loaded.params}, TOKENS)
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_an_exported_model_is_read_back(exported):
    ours, theirs = map(load_checkpoint, exported)
    back = load_params(exported[1], ours.config)
    jax.tree.map(np.testing.assert_array_equal, ours.params, back)
    before, after = ours.config.model_config, theirs.config.model_config
    assert after.ff_dim() == before.ff_dim()
    for key in SAID:
        assert getattr(after, key) == getattr(before, key), key


def test_a_model_of_hugging_face_becomes_a_checkpoint_of_ours(exported, tmp_path):
    checkpoint = import_checkpoint(str(exported[1]), tmp_path)
    assert checkpoint == tmp_path / "checkpoints" / "0"
    theirs, ours = load_checkpoint(exported[1]), load_checkpoint(tmp_path)
    assert ours.config == theirs.config
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_type": "layernorm"},
        {"cell_norm_type_v1": "rmsnorm"},
        {"add_qk_norm": True},
        {"add_post_norm": True},
        {"add_post_blocks_norm": False},
        {"tie_weights": True},
        {"ff_type": "ffn"},
        {"ff_type": None},
        {"act_fn": "gelu"},
        {"gate_soft_cap": None},
        {"logits_soft_cap": None},
        {"norm_eps": 1e-5},
        {"reset_at_document_boundaries": True},
    ],
    ids=str,
)
def test_a_field_that_hugging_face_does_not_support_is_refused(changes, tmp_path):
    ((key, _),) = changes.items()
    save(tmp_path / "run", run_of(**changes))
    with pytest.raises(ConfigError, match=f"^model.{key}=.*Hugging Face"):
        export_checkpoint(str(tmp_path / "run"), tmp_path / "exported")


def test_a_model_with_document_resets_is_exported_for_single_document_rows(tmp_path):
    run = run_of(reset_at_document_boundaries=True, reset_fgate_value=-20.0, backend="quadratic", chunk_size=64)
    save_untrained(run, tmp_path, params=random_params(run.model))
    out = export_checkpoint(str(tmp_path), tmp_path / "exported", one_document_per_row=True)
    after = load_checkpoint(out).config.model_config
    assert (after.reset_at_document_boundaries, after.reset_fgate_value, after.backend) == (True, -20.0, "quadratic")


def test_a_model_of_another_family_is_refused(tmp_path):
    run = tiny_run("v0")
    save_untrained(run, tmp_path, params=random_params(run.model))
    with pytest.raises(ConfigError, match="Hugging Face's xLSTM does not have this model class"):
        export_checkpoint(str(tmp_path), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A model of Hugging Face."""
    folder, run = tmp_path_factory.mktemp("run"), run_of(bias=True)
    save_untrained(run, folder, params=random_params(run.model))
    return export_checkpoint(str(folder), folder / "exported")


@pytest.fixture
def theirs(sound, tmp_path):
    """A copy of the model that a test may damage."""
    return shutil.copytree(sound, tmp_path / "theirs")


def said(**changes):
    def change(folder):
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | changes))

    return change


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def with_array(name, change):
    def rewrite(folder):
        arrays = load_file(folder / "model.safetensors")
        change(arrays, name)
        save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


NORM_BIAS = "backbone.blocks.1.norm_ffn.bias"
DAMAGED = {
    "another model": (said(model_type="llama"), "config.json: model_type: expected 'xlstm', got 'llama'"),
    "fused weights": (said(weight_mode="fused"), "weight_mode: expected 'single', got 'fused'"),
    "wrong type": (said(num_heads="four"), "config.json: num_heads: expected int"),
    "broken rule": (said(num_heads=3), "config.json: .*num_heads=3"),
    "unknown field of ours": (said(xlstm_hydra={"droput": 1}), "config.json: xlstm_hydra.droput: .*'dropout'"),
    "unknown field": (said(num_head=1), "^/.*config.json: num_head: no such field. Did you mean 'num_heads'"),
    "strange field": (said(zzz=1), "zzz: no such field. Remove it if it does not change the model"),
    "another class": (said(architectures=["LlamaForCausalLM"]), "architectures: expected .*xLSTM.*, got .*Llama"),
    "two depths": (said(num_blocks=3), "num_hidden_layers=2, num_blocks=3: both set the same field and must"),
    "not a number": (
        said(hidden_size="wide", embedding_dim=None),
        "hidden_size: expected a number greater than 0, got 'wide'",
    ),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json: cannot be read"),
    "truncated": (cut, "model.safetensors: cannot be read: .*incomplete.* The file may be incomplete; download it"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors. Download the wh"),
    "our name": (said(use_bias="yes"), "config.json: use_bias: expected bool, got 'yes'"),
    "our rule": (said(output_logit_soft_cap=0), "output_logit_soft_cap=0.0: must .* Set output_logit_soft_cap=null"),
    "true for a number": (said(ffn_proj_factor=True), "ffn_proj_factor: expected a number greater than 0, got true"),
    "null": (said(num_heads=None), "num_heads: expected a value, got null. If the field is absent, it defaults to 8"),
    "text for a boolean": (said(tie_word_embeddings="yes"), "tie_word_embeddings: expected true or false, got 'yes'"),
    "a bias": (with_array(NORM_BIAS, lambda arrays, name: arrays[name].fill(1)), f"{NORM_BIAS} has nonzero values"),
    "missing": (with_array("lm_head.weight", dict.pop), r"lm_head.weight: expected \(32, 32\), got no array"),
    "more blocks": (said(num_hidden_layers=1, num_blocks=1), "backbone.blocks.1.ffn.proj_down.bias: expected no arr"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_model_is_one_clear_error(theirs, damage, words):
    damage(theirs)
    with pytest.raises(ConfigError, match=words):
        load_checkpoint(theirs)


def test_another_model_type_is_one_problem_whatever_its_fields(theirs):
    (theirs / "config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": 1e4, "head_dim": 8}))
    words = "config.json: model_type: expected 'xlstm', got 'llama'. Other Hugging Face models are not supported.?$"
    with pytest.raises(ConfigError, match=words):
        load_checkpoint(theirs)


def config_of(folder) -> Any:
    return recorded_model(folder, "RUN").model_config


def test_a_null_soft_cap_is_none_and_a_missing_one_is_the_default(theirs):
    said(gate_soft_cap=None, output_logit_soft_cap=None)(theirs)
    config = config_of(theirs)
    assert (config.gate_soft_cap, config.logits_soft_cap) == (None, None)
    content = json.loads((theirs / "config.json").read_text())
    kept = {key: value for key, value in content.items() if "soft_cap" not in key}
    (theirs / "config.json").write_text(json.dumps(kept))
    config = config_of(theirs)
    assert (config.gate_soft_cap, config.logits_soft_cap) == (15.0, 30.0)


def test_unknown_fields_are_read_if_null_or_leniently(theirs, caplog):
    expected = recorded_model(theirs, "RUN")
    said(colour=None)(theirs)
    assert (
        recorded_model(theirs, "RUN") == expected
        and "config.json: colour=null: unknown field; null has no effect" in caplog.text
    )
    said(mood=1, num_head=2)(theirs)
    with pytest.raises(ConfigError, match=r"--lenient \(in Python, lenient=True\) ignores unknown fields.$"):
        recorded_model(theirs, "RUN")
    assert (
        recorded_model(theirs, "RUN", lenient=True) == expected
        and "ignored unknown fields: mood, num_head" in caplog.text
    )


def test_tied_word_embeddings_are_read_unless_the_file_has_a_head(theirs):
    said(tie_word_embeddings=True)(theirs)
    assert not config_of(theirs).tie_weights
    with_array("lm_head.weight", dict.pop)(theirs)
    model, params, _ = load_checkpoint(theirs)
    assert config_of(theirs).tie_weights and "out_dense" not in params["lm_head"]
    tied: Any = jax.jit(model.apply)({"params": params}, TOKENS)
    head = params["token_embedding"]["embedding"]
    with_array("lm_head.weight", lambda arrays, name: arrays.update({name: np.array(head)}))(theirs)
    model, params, _ = load_checkpoint(theirs)
    untied: Any = jax.jit(model.apply)({"params": params}, TOKENS)
    np.testing.assert_allclose(untied, tied, atol=1e-5)


def test_a_model_in_several_files_and_in_sixteen_bits_is_read(theirs):
    expected = load_checkpoint(theirs)
    arrays = load_file(theirs / "model.safetensors")
    files = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(arrays)}
    for file in set(files.values()):
        names = [name for name in files if files[name] == file]
        flax.save_file({name: jnp.asarray(arrays[name], jnp.bfloat16) for name in names}, theirs / file)
    (theirs / "model.safetensors").unlink()
    (theirs / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    got = load_checkpoint(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), got.params, expected.params)


def test_an_export_that_does_not_fit_on_the_disk_is_one_message(sound, tmp_path, monkeypatch):
    text = "Error while serializing: I/O error: No space left on device (os error 28)"

    def save_nothing(arrays, file, metadata):
        raise SafetensorError(text)

    monkeypatch.setattr("safetensors.numpy.save_file", save_nothing)
    with pytest.raises(ConfigError, match=r"^OUT=.*/full'?: cannot be written: .*No space left on device.*Choose an"):
        export_checkpoint(str(sound.parent), tmp_path / "full")
    assert [*tmp_path.iterdir()] == []


def test_an_import_that_does_not_fit_on_the_disk_is_one_message(sound, tmp_path, monkeypatch):
    def save_nothing(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Failed writing [os_error_code='28']")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", save_nothing)
    with pytest.raises(ConfigError, match=r"^OUT=.*/full'?: cannot be written: .*No space left on device.*Choose an"):
        import_checkpoint(str(sound), tmp_path / "full")
    assert [*tmp_path.iterdir()] == []
