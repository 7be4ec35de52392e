"""Weights from elsewhere: every variant of xlstm-jax's trees becomes our parameters, and nothing else does."""

import numpy as np
import pytest
import xlstm_jax_tree
from tiny import FAMILIES
from xlstm_jax_tree import convert

from xlstm_hydra.configs import ConfigError
from xlstm_hydra.models import list_parameters

HEADWISE = {"gate_linear_headwise": True}
OPTIONS = {"bias": True, "add_qk_norm": True, "add_post_norm": True}
ONE: list[dict] = [{}]
SOME = [{}, {"tp": 2}, {"tp": 4}]
MODELS = {
    "v0": ("v0", {}, [{}, {"ring": True}]),
    "v0 options": (
        "v0",
        OPTIONS | HEADWISE | {"vmap_qk": True, "v_dim_factor": 0.5},
        [*SOME, {"ring": True}, {"ring": True, "tp": 2}],
    ),
    "v0 headwise": ("v0", HEADWISE | {"gate_input": "x_mlstm_conv", "bias": True}, [{"ring": True, "tp": 2}]),
    "v0 gate input": ("v0", {"gate_input": "x_mlstm_conv_act", "qk_dim_factor": 0.5}, ONE),
    "v1": ("v1", {}, SOME),
    "v1 options": ("v1", OPTIONS | {"ff_type": "ffn"}, SOME),
    "llama": ("llama", {}, ONE),
    "llama options": ("llama", {"use_bias": True, "qk_norm": True}, ONE),
}
"""Family, changes to its config, and the layouts that xlstm-jax could train it on."""
VARIANTS = [(name, layout) for name, (*_, layouts) in MODELS.items() for layout in layouts]


def model_of(name, **changes):
    family, options, _ = MODELS[name]
    return FAMILIES[family](**options | changes)


def values(model):
    """Parameters by path whose elements are all different."""
    rng = np.random.default_rng(0)
    return {p.path: rng.normal(size=p.shape).astype(np.float32) for p in list_parameters(model)}


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(("name", "layout"), VARIANTS, ids=str)
def test_every_variant_of_a_tree_becomes_our_parameters(name, layout, scan):
    model = model_of(name)
    params = values(model)
    got = convert(xlstm_jax_tree.write(params, model.model_config, scan=scan, **layout), model)
    assert got.keys() == params.keys()
    for path, array in params.items():
        np.testing.assert_allclose(got[path], array, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("scan", [True, False])
def test_blocks_may_be_scanned_there_and_not_here(scan):
    model = model_of("v1")
    params = values(model)
    tree = xlstm_jax_tree.write(params, model.model_config, scan=scan)
    got = convert(tree, model_of("v1", scan_blocks=False))
    for path, array in got.items():
        stem, _, rest = path.partition(".")
        expected = params[f"blocks.{rest}"][int(stem[7:])] if stem.startswith("blocks") else params[path]
        np.testing.assert_array_equal(array, expected, err_msg=path)


def test_a_ring_multiplies_the_same_as_our_dense_layers():
    """The devices of the ring one by one, as MODEL_SPEC tells what they do, against the whole product."""
    model = model_of("v0 headwise")
    tree = xlstm_jax_tree.write(values(model), model.model_config, scan=False, tp=2, ring=True)
    rng = np.random.default_rng(1)
    tree = {path: rng.normal(size=array.shape).astype(np.float32) for path, array in tree.items()}
    ours, layer = convert(tree, model), "blocks.xlstm_res_block.xlstm"
    at = "xlstm_block_stack.blocks.1.xlstm_res_block.xlstm."

    def leaf(path):
        return tree[f"{at}{path}.value"]

    x, h = rng.normal(size=(3, 32)), rng.normal(size=(3, 64))
    made = []
    for d in range(2):
        kept, received = x[:, 16 * d :][:, :16], x[:, 16 * (1 - d) :][:, :16]
        y = kept @ leaf("proj_up.shard_0.sharded.kernel")[d] + received @ leaf("proj_up.shard_1.sharded.kernel")[d]
        made.append(np.split(y + leaf("proj_up.shard_0.sharded.bias")[d], 2, axis=1))
    for name, parts in zip(("z", "mlstm"), zip(*made, strict=True), strict=True):
        kernel, bias = (ours[f"{layer}.proj_up_{name}.{kind}"][1] for kind in ("kernel", "bias"))
        np.testing.assert_allclose(np.concatenate(parts, 1), x @ kernel + bias, rtol=1e-5)
    out = []
    for d in range(2):
        mine, theirs = h[:, 32 * d :][:, :32], h[:, 32 * (1 - d) :][:, :32]
        sent = theirs @ leaf("proj_down.shard_0.sharded.kernel")[1 - d] + leaf("proj_down.shard_0.sharded.bias")[1 - d]
        out.append(mine @ leaf("proj_down.shard_1.sharded.kernel")[d] + sent)
    expected = h @ ours[f"{layer}.proj_down.kernel"][1] + ours[f"{layer}.proj_down.bias"][1]
    np.testing.assert_allclose(np.concatenate(out, 1), expected, rtol=1e-5)


def without(path):
    return lambda tree: tree.pop(path)


def changed(path, array):
    return lambda tree: tree.update({path: array})


NORM = "xlstm_block_stack.blocks.block.xlstm_res_block.xlstm_norm.sharded.scale"
BROKEN = {
    "missing": (without(f"{NORM}.value"), rf"{NORM}: expected \(2, 1, 32\), found nothing"),
    "extra": (changed("lm_head.bias", np.ones(32)), r"lm_head.bias: expected nothing, found \(32,\)"),
    "reshaped": (changed("lm_head.out_norm.scale", np.ones(3)), r"out_norm.scale: expected \(32,\), found \(3,\)"),
}


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN)
def test_a_leaf_that_does_not_fit_is_named(change, words):
    model = model_of("v1")
    tree = xlstm_jax_tree.write(values(model), model.model_config)
    change(tree)
    with pytest.raises(ConfigError, match=f"^its parameters are not those of this model: .*{words}"):
        convert(tree, model)


def test_norms_of_queries_that_differ_between_devices_are_refused():
    model = model_of("v0 options")
    tree = xlstm_jax_tree.write(values(model), model.model_config, tp=2)
    path = "xlstm_block_stack.blocks.block.xlstm_res_block.xlstm.inner_layer.sharded.mlstm_cell.q_norm.scale"
    tree[f"{path}.value"][:, 1] += 1
    with pytest.raises(ConfigError, match=f"^{path} is not the same on the 2"):
        convert(tree, model)


def test_a_ring_of_more_devices_than_are_known_is_refused():
    model = model_of("v0 headwise")
    tree = xlstm_jax_tree.write(values(model), model.model_config, tp=4, ring=True)
    with pytest.raises(ConfigError, match="over 4 devices; which kernel is which, is known for xlstm-jax on 2 devices"):
        convert(tree, model)


def test_a_model_that_xlstm_jax_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="xlstm-jax only has models with a mLSTMConfig, mLSTMv1Config or LlamaConfig"):
        convert({}, FAMILIES["xlstm"]())
