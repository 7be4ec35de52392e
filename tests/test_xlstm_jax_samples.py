"""Sample metadata of many commits of xlstm-jax, compared with the objects it was written from."""

import json

import pytest
from reference import CHECKPOINTS

from xlstm_hydra.configs import ModelConfig
from xlstm_hydra.metadata import read_record

METADATA = CHECKPOINTS.parent / "metadata"
CASES = sorted(folder.name for folder in METADATA.iterdir()) if METADATA.is_dir() else []

TOP = (
    *("vocab_size", "embedding_dim", "num_blocks", "context_length", "dtype", "lm_head_dtype", "logits_soft_cap"),
    *("bias", "dropout", "scan_blocks", "add_embedding_dropout", "norm_type", "norm_eps", "tie_weights"),
    *("add_post_blocks_norm", "weight_decay_on_embedding", "init_distribution_embed", "init_distribution_out"),
)
LAYER = ("num_heads", "qk_dim_factor", "v_dim_factor", "init_distribution", "output_init_fn")
WIDTH = ("proj_factor", "round_proj_up_dim_up", "round_proj_up_to_multiple_of")
LAYER_V0 = (*WIDTH, "conv1d_kernel_size", "qkv_proj_blocksize", "vmap_qk", "gate_input")
CELL = (
    *("gate_dtype", "gate_soft_cap", "igate_bias_init_range", "fgate_bias_init_range", "add_qk_norm"),
    *("reset_at_document_boundaries", "reset_fgate_value"),
)


def expected_model(truth):
    """What the live objects had, by our names; fields that they did not have are left out."""
    block = truth.get("mlstm_block")
    if block is None:
        return {name: value for name, value in truth.items() if name not in ("__class__", "parallel")}
    layer, cell, feed_forward = block["mlstm"], block["mlstm"]["mlstm_cell"], block.get("feedforward")
    is_v1 = layer.get("layer_type") == "mlstm_v1"
    names = [(truth, name, name) for name in TOP] + [(layer, name, name) for name in LAYER]
    names += [(cell, name, name) for name in CELL] + [(cell, "norm_eps", "cell_norm_eps")]
    names += [(block, "add_post_norm", "add_post_norm")]
    if is_v1:
        names += [(feed_forward, name, name) for name in (*WIDTH, "ff_type", "act_fn")]
        names += [(feed_forward, "dtype", "ff_dtype"), (cell, "norm_type_v1", "cell_norm_type_v1")]
    else:
        names += [(layer, name, name) for name in LAYER_V0] + [(cell, "norm_type", "cell_norm_type")]
        names += [(cell, "gate_linear_headwise", "gate_linear_headwise")]
    return {ours: section[name] for section, name, ours in names if name in section}


@pytest.mark.parametrize("case", CASES)
def test_every_sample_gives_the_values_of_the_live_objects(case):
    truth = json.loads((METADATA / case / "truth.json").read_text())
    model = ModelConfig.from_metadata((METADATA / case / "metadata.json").read_text())
    parallel = {name: value for name, value in truth["parallel"].items() if name != "__class__"}
    assert {name: getattr(model.parallel, name) for name in parallel} == parallel
    expected = expected_model(truth["model_config"])
    assert {name: getattr(model.model_config, name) for name in expected} == expected
    assert len(expected) > 10


@pytest.mark.parametrize("case", CASES)
def test_every_group_of_a_sample_is_read_or_its_absence_explained(case):
    record = read_record((METADATA / case / "metadata.json").read_bytes())
    wanted = {"model", "parallel", "optimizer", "scheduler", "trainer", "checkpoint", "logger"}
    for name in wanted - set(record.groups):
        assert any(f"without the group {name}" in note for note in record.notes)
    assert record.writer == "xlstm_jax" and not record.unknown
