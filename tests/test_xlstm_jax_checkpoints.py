"""Checkpoints of every kind of model of xlstm-jax give the logits of xlstm-jax on our layouts."""

import itertools
import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import numpy_xlstm
import orbax.checkpoint as ocp
import pytest
import xlstm_jax_tree
from flax import traverse_util
from jax.sharding import PartitionSpec
from reference import CHECKPOINTS, load_model
from tiny import FAMILIES, FSDP
from untrained import random_params
from xlstm_jax_record import record

from xlstm_hydra import load_checkpoint
from xlstm_hydra.configs import ParallelConfig, RunConfig, SyntheticDataConfig, TrainerConfig
from xlstm_hydra.models import apply_model
from xlstm_hydra.parallel import build_mesh
from xlstm_hydra.step import build_sharded_loss

SMALL = {"num_blocks": 2, "context_length": 16, "igate_bias_init_range": 0.0}
V0 = SMALL | {"gate_linear_headwise": True, "norm_type": "layernorm"}
TP4, TP2 = {"model_axis_size": 4}, {"model_axis_size": 2}
RING = {"tp_async_dense": True}
VARIANTS = {
    "v0 with a gated feed-forward": ("v0", V0 | {"ff_type": "ffn_gated"}, TP4 | RING, True),
    "v0 with a feed-forward": (
        "v0",
        V0
        | {"ff_type": "ffn", "act_fn": "relu^2", "ff_proj_factor": 1.4, "ff_round_proj_up_dim_up": False}
        | {"ff_round_proj_up_to_multiple_of": 4, "add_post_norm": True, "bias": True, "v_dim_factor": 0.5},
        TP4 | RING,
        False,
    ),
    "v0 with large epsilons": (
        "v0",
        V0 | {"norm_eps": 0.3, "cell_norm_eps": 0.2, "cell_eps": 0.7, "backend": "recurrent", "chunk_size": 64},
        TP2,
        True,
    ),
    "v1 without a feed-forward": ("v1", SMALL | {"ff_type": None, "bias": True, "add_qk_norm": True}, TP4, False),
    "v1 with large epsilons": ("v1", SMALL | {"norm_eps": 0.3, "cell_norm_eps": 0.2, "cell_eps": 0.7}, {}, True),
}
"""Our family, the fields of its config, the layout that it was trained with, and True for scanned blocks."""
HERE = {
    "one device": None,
    "fsdp 8": {"data_axis_size": 1, "fsdp_axis_size": 8, **FSDP},
    "tp 2": {"data_axis_size": 4, **TP2},
}
RNG = np.random.default_rng(7)
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Options that compile in a third of the time."""
FAST = [
    ("v0 with a gated feed-forward", "tp 2"),
    ("v0 with a feed-forward", "one device"),
    ("v0 with a feed-forward", "fsdp 8"),
    ("v0 with large epsilons", "one device"),
    ("v1 without a feed-forward", "fsdp 8"),
    ("v1 with large epsilons", "tp 2"),
]
"""Each variant and each layout at least once. The remaining pairs are slow tests."""
PAIRS = [
    pytest.param(*pair, marks=() if pair in FAST else pytest.mark.slow) for pair in itertools.product(VARIANTS, HERE)
]
BATCH = {"inputs": RNG.integers(0, 32, (8, 16)), "document_borders": RNG.random((8, 16)) < 0.2}


def written(name):
    """Metadata, tree and logits of a variant."""
    family, fields, layout, scan = VARIANTS[name]
    model = FAMILIES[family](**fields)
    params = {path: np.asarray(x) for path, x in traverse_util.flatten_dict(random_params(model), sep=".").items()}
    text = record(model.model_config, scan=scan, **layout)
    how = {"tp": layout.get("model_axis_size", 1), "ring": layout.get("tp_async_dense", False)}
    tree = xlstm_jax_tree.write(params, model.model_config, scan=scan, **how)
    alone = xlstm_jax_tree.write(params, model.model_config, scan=scan)
    expected = numpy_xlstm.logits(alone, text["model"]["model_config"], BATCH["inputs"], BATCH["document_borders"])
    return text, tree, expected


@pytest.fixture(scope="module")
def saved(request, tmp_path_factory):
    """Folder of a run of xlstm-jax, and the logits of its model."""
    folder = tmp_path_factory.mktemp("run")
    text, tree, expected = written(request.param)
    step = folder / "checkpoints" / "checkpoint_20"
    with ocp.StandardCheckpointer() as writer:
        writer.save(step / "params", traverse_util.unflatten_dict(tree, sep="."))
    (step / "metadata").mkdir()
    (step / "metadata" / "metadata").write_text(json.dumps(text))
    return folder, expected


def logits_on(layout, loaded, batch):
    """Logits computed on our layouts, (B, S, V)."""
    model = replace(loaded.config, parallel=layout)
    run = RunConfig(model=model, data=SyntheticDataConfig(motif_length=4), trainer=TrainerConfig(batch_size=8))
    on = build_sharded_loss(run, build_mesh(layout))
    specs = (on.param_specs, on.batch_spec), PartitionSpec(*on.batch_spec, None, layout.model_axis_name)
    return quick(on._shard_map(lambda params, batch: on._forward(params, batch, None), *specs))(loaded.params, batch)


def alone(loaded):
    """Logits of the loaded module on one device."""
    params = jax.device_put(loaded.params, jax.devices()[0])
    return quick(lambda params: apply_model(loaded.model, params, *BATCH.values()))(params)


@pytest.mark.parametrize(("saved", "here"), PAIRS, indirect=["saved"])
def test_every_kind_of_checkpoint_gives_the_logits_of_xlstm_jax(saved, here):
    folder, expected = saved
    layout = HERE[here] and ParallelConfig(**HERE[here])
    loaded = load_checkpoint(folder, layout)
    got = logits_on(layout, loaded, BATCH) if layout else alone(loaded)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="the reference checkpoints are not on this machine")
@pytest.mark.parametrize("case", ["a_mlstm_v0", "b_mlstm_v1"])
def test_the_model_in_numpy_gives_the_logits_of_xlstm_jax(case):
    config = record(load_model(case, backend="quadratic").model_config)["model"]["model_config"]
    found = np.load(CHECKPOINTS / case / "reference.npz")
    tree = np.load(CHECKPOINTS / case / "params.npz")
    got = numpy_xlstm.logits(tree, config, found["inputs"], found["document_borders"])
    np.testing.assert_allclose(got, found["logits"], atol=1e-5)


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="the reference checkpoints are not on this machine")
@pytest.mark.parametrize(
    ("case", "here"),
    [
        ("a_mlstm_v0", "fsdp 8"),
        ("b_mlstm_v1", "tp 2"),
        ("c_llama", "fsdp 8"),
        ("d_8dev_mlstm_v0_fsdp2_tp2", "tp 2"),
        pytest.param("a_mlstm_v0", "tp 2", marks=pytest.mark.slow),
        pytest.param("b_mlstm_v1", "fsdp 8", marks=pytest.mark.slow),
        pytest.param("c_llama", "tp 2", marks=pytest.mark.slow),
        pytest.param("d_8dev_mlstm_v0_fsdp2_tp2", "fsdp 8", marks=pytest.mark.slow),
    ],
)
def test_the_reference_checkpoints_give_the_logits_of_xlstm_jax_on_our_layouts(case, here):
    layout, found = ParallelConfig(**HERE[here]), np.load(CHECKPOINTS / case / "reference.npz")
    if case == "c_llama" and layout.fsdp_modules:
        layout = replace(layout, fsdp_modules=["TransformerBlock"], remat=["TransformerBlock"])
    loaded = load_checkpoint(CHECKPOINTS / case / "run", layout)
    got = logits_on(layout, loaded, {name: found[name] for name in BATCH})
    # Llama's rotary positions: in the reference every token of the padding is at 0, here they go on.
    counted = slice(None) if case != "c_llama" else found["inputs_segmentation"] != 0
    np.testing.assert_allclose(np.asarray(got)[counted], found["logits"][counted], atol=1e-5)
