"""Parameter trees of xlstm-jax: every variant is converted to our parameters, and other trees are refused."""

import numpy as np
import pytest
import xlstm_jax_tree
from tiny import FAMILIES
from untrained import shapes_of
from xlstm_jax_tree import convert

from xlstm_hydra.configs import ConfigError

HEADWISE = {"gate_linear_headwise": True}
OPTIONS = {"bias": True, "add_qk_norm": True, "add_post_norm": True}
ONE: list[dict] = [{}]
SOME = [{}, {"tp": 2}, {"tp": 4}]
RINGS = [{"ring": True}, {"ring": True, "tp": 2}, {"ring": True, "tp": 4}]
FFN = {"ff_type": "ffn", "ff_round_proj_up_to_multiple_of": 8, "ff_proj_factor": 1.5}
MODELS = {
    "v0": ("v0", {}, [{}, {"ring": True}]),
    "v0 options": (
        "v0",
        OPTIONS | HEADWISE | {"vmap_qk": True, "v_dim_factor": 0.5},
        [*SOME, *RINGS],
    ),
    "v0 headwise": ("v0", HEADWISE | {"gate_input": "x_mlstm_conv", "bias": True}, RINGS[1:]),
    "v0 feed-forward": ("v0", {"bias": True, "add_post_norm": True} | HEADWISE | FFN, [*SOME, *RINGS]),
    "v0 gated feed-forward": ("v0", HEADWISE | {"ff_type": "ffn_gated"}, [*SOME, *RINGS]),
    "v0 gate input": ("v0", {"gate_input": "x_mlstm_conv_act", "qk_dim_factor": 0.5}, ONE),
    "v1": ("v1", {}, SOME),
    "v1 options": ("v1", OPTIONS | {"ff_type": "ffn"}, SOME),
    "v1 no feed-forward": ("v1", {"ff_type": None}, SOME),
    "llama": ("llama", {}, ONE),
    "llama options": ("llama", {"use_bias": True, "qk_norm": True}, ONE),
}
"""Family, changes to its config, and the layouts that xlstm-jax could train it with."""
VARIANTS = [(name, layout) for name, (*_, layouts) in MODELS.items() for layout in layouts]


def model_of(name, **changes):
    family, options, _ = MODELS[name]
    return FAMILIES[family](**options | changes)


def values(model):
    """Parameters by path, with distinct elements."""
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes_of(model).items()}


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
def test_blocks_may_be_scanned_on_one_side_only(scan):
    model = model_of("v1")
    params = values(model)
    tree = xlstm_jax_tree.write(params, model.model_config, scan=scan)
    got = convert(tree, model_of("v1", scan_blocks=False))
    for path, array in got.items():
        stem, _, rest = path.partition(".")
        expected = params[f"blocks.{rest}"][int(stem[7:])] if stem.startswith("blocks") else params[path]
        np.testing.assert_array_equal(array, expected, err_msg=path)


@pytest.mark.parametrize("devices", [2, 4])
def test_a_ring_computes_the_same_product_as_our_dense_layers(devices):
    """Compare the steps of the ring, as described in MODEL_SPEC, with the whole product."""
    model = model_of("v0 feed-forward")
    tree = xlstm_jax_tree.write(values(model), model.model_config, scan=False, tp=devices, ring=True)
    rng = np.random.default_rng(1)
    tree = {path: rng.normal(size=array.shape) for path, array in tree.items()}
    ours = convert(tree, model)
    at = "xlstm_block_stack.blocks.1."

    def leaf(path):
        return tree[f"{at}{path}.value"]

    def expected(module, x):
        return x @ ours[f"blocks.{module}.kernel"][1] + ours[f"blocks.{module}.bias"][1]

    def up(module, x):
        """Output of each device, which has one shard of the input and receives the others."""
        shares = np.split(x, devices, 1)
        steps = range(devices)
        return [
            sum(shares[(d - j) % devices] @ leaf(f"{module}.shard_{j}.sharded.kernel")[d] for j in steps)
            + leaf(f"{module}.shard_0.sharded.bias")[d]
            for d in range(devices)
        ]

    def down(module, x):
        """Partial sums that move around the ring, one half in each direction, until they are complete."""
        inputs = np.split(x, devices, 1)

        def product(j, d):
            return np.split(inputs[d] @ leaf(f"{module}.shard_{j}.sharded.kernel")[d], 2, 1)

        bias = [np.split(leaf(f"{module}.shard_0.sharded.bias")[d], 2) for d in range(devices)]
        upwards = [product(0, d)[0] + bias[d][0] for d in range(devices)]
        downwards = [product(0, d)[1] + bias[d][1] for d in range(devices)]
        for j in range(1, devices):
            upwards = [upwards[d - 1] + product(j, d)[0] for d in range(devices)]
            downwards = [downwards[(d + 1) % devices] + product(j, d)[1] for d in range(devices)]
        return np.concatenate([half for pair in zip(upwards, downwards, strict=True) for half in pair], 1)

    layer, ffn = "xlstm_res_block.xlstm", "ffn_res_block.ffn"
    x, h, f = rng.normal(size=(3, 32)), rng.normal(size=(3, 64)), rng.normal(size=(3, 48))
    halves = zip(*(np.split(part, 2, 1) for part in up(f"{layer}.proj_up", x)), strict=True)
    for name, parts in zip(("z", "mlstm"), halves, strict=True):
        np.testing.assert_allclose(np.concatenate(parts, 1), expected(f"{layer}.proj_up_{name}", x), rtol=1e-4)
    np.testing.assert_allclose(np.concatenate(up(f"{ffn}.proj_up", x), 1), expected(f"{ffn}.proj_up", x), rtol=1e-4)
    np.testing.assert_allclose(down(f"{layer}.proj_down", h), expected(f"{layer}.proj_down", h), rtol=1e-4)
    np.testing.assert_allclose(down(f"{ffn}.proj_down", f), expected(f"{ffn}.proj_down", f), rtol=1e-4)


def without(path):
    return lambda tree: tree.pop(path)


def changed(path, array):
    return lambda tree: tree.update({path: array})


NORM = "xlstm_block_stack.blocks.block.xlstm_res_block.xlstm_norm.sharded.scale"
BROKEN = {
    "missing": (without(f"{NORM}.value"), rf"{NORM}: expected \(2, 1, 32\), got no array"),
    "extra": (changed("lm_head.bias", np.ones(32)), r"lm_head.bias: expected no array, got \(32,\)"),
    "reshaped": (changed("lm_head.out_norm.scale", np.ones(3)), r"out_norm.scale: expected \(32,\), got \(3,\)"),
}


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN)
def test_a_leaf_of_the_wrong_shape_is_named(change, words):
    model = model_of("v1")
    tree = xlstm_jax_tree.write(values(model), model.model_config)
    change(tree)
    with pytest.raises(ConfigError, match=f"^its parameters do not match the model: .*{words}"):
        convert(tree, model)


def test_norms_of_queries_that_differ_between_devices_are_refused():
    model = model_of("v0 options")
    tree = xlstm_jax_tree.write(values(model), model.model_config, tp=2)
    path = "xlstm_block_stack.blocks.block.xlstm_res_block.xlstm.inner_layer.sharded.mlstm_cell.q_norm.scale"
    tree[f"{path}.value"][:, 1] += 1
    with pytest.raises(ConfigError, match=f"^{path} has different values on the 2"):
        convert(tree, model)


def test_a_model_that_xlstm_jax_does_not_have_is_refused():
    with pytest.raises(
        ConfigError,
        match="xlstm-jax does not have this model class; expected mLSTMConfig, mLSTMv1Config or LlamaConfig",
    ):
        convert({"token_embedding.sharded.embedding": np.zeros((1, 1))}, FAMILIES["xlstm"]())
