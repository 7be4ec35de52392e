"""xLSTM[a:b]: positions of the sLSTM blocks, and the scanned stack."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from hydra import compose, initialize
from test_slstm_cell import naive, sigmoid
from tiny import FAMILIES

from xlstm_hydra.configs import resolve_classes
from xlstm_hydra.hydra import load
from xlstm_hydra.models import (
    BlockInputs,
    apply_model,
    build_model,
    init_model,
    list_parameters,
    sLSTMBlock,
    sLSTMLayer,
)


def published():
    with initialize(version_base="1.3", config_path=None):
        return load(compose("config", overrides=["model=xlstm_7_1"])).model


def test_xlstm_7_1_has_the_number_of_parameters_of_its_formulas():
    D, heads, vocab, kernel = 768, 4, 50304, 4
    inner, ff = 2 * D, 1024
    mlstm = D + 2 * D * inner + inner * D + 3 * inner * 4 + kernel * inner + inner  # norm, up, down, q k v, convolution
    mlstm += 2 * (3 * inner * heads + heads) + inner + inner  # gates, head norm, skip
    slstm = D + kernel * D + D + 4 * D * (D // heads) + 4 * D * (D // heads) + 4 * D + D  # ..., input, recurrent, bias
    slstm += D + 3 * D * ff  # norm and feed-forward layer
    expected = 2 * vocab * D + D + 21 * mlstm + 3 * slstm
    parameters = list_parameters(resolve_classes(published()))
    assert sum(math.prod(parameter.shape) for parameter in parameters) == expected == 163_633_320


def test_xlstm_7_1_has_one_slstm_block_in_every_eight():
    config = published().model_config
    assert config.scan_period() == 8 and len(config.slstm_at) == config.num_blocks // 8


def paths(**changes):
    return {parameter.path for parameter in list_parameters(FAMILIES["xlstm"](**changes))}


def test_listed_blocks_are_slstm_blocks_and_the_others_mlstm_blocks():
    names = paths(slstm_at=[2, 0], num_blocks=4, scan_blocks=False)
    assert {path.split(".")[0] for path in names if ".slstm." in path} == {"blocks_0", "blocks_2"}
    assert {path.split(".")[0] for path in names if ".xlstm." in path} == {"blocks_1", "blocks_3"}


@pytest.mark.parametrize(
    ("slstm_at", "kinds"),
    [([], [""]), ([1, 3], ["block_0", "block_1"]), ([0, 3], [f"block_{i}" for i in range(4)]), ([0, 1, 2, 3], [""])],
    ids=["none", "every second", "no pattern", "all"],
)
def test_only_one_period_of_the_stack_is_compiled(slstm_at, kinds):
    extra = {"chunk_size": 64} if len(slstm_at) == 4 else {}
    inside = {
        path.split(".")[1] for path in paths(slstm_at=slstm_at, num_blocks=4, **extra) if path.startswith("blocks")
    }
    if kinds == [""]:
        assert not any(name.startswith("block_") for name in inside)
    else:
        assert inside == set(kinds)


def test_the_size_of_the_program_does_not_depend_on_the_number_of_periods():
    def size(num_blocks):
        model = FAMILIES["xlstm"](num_blocks=num_blocks)
        params = jax.eval_shape(lambda: init_model(build_model(model), jax.random.key(0)))
        forward = lambda params: apply_model(build_model(model), params, jnp.zeros((1, 16), jnp.int32))  # noqa: E731
        return len(str(jax.make_jaxpr(forward)(params)))

    assert size(12) < 1.02 * size(4)


def normalize(x, scale, eps=1e-6):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * scale


def reference_block(params, x, heads=4):
    """The paper's sLSTM block in NumPy: norm, convolution, cell, head norm, sum; norm, gated feed-forward, sum."""
    mixing, layer = params["slstm_res_block"], params["slstm_res_block"]["slstm"]
    h = normalize(x, mixing["slstm_norm"]["scale"])
    kernel = layer["conv1d"]["kernel"][:, 0]
    padded = np.pad(h, ((0, 0), (len(kernel) - 1, 0), (0, 0)))
    conv = sum(weight * padded[:, shift : shift + h.shape[1]] for shift, weight in enumerate(kernel))
    conv = (conv + layer["conv1d"]["bias"]) * sigmoid(conv + layer["conv1d"]["bias"])

    def project(gate, y):
        by_head = zip(np.split(y, heads, axis=-1), layer[gate]["kernel"], layer[f"{gate}_bias"], strict=True)
        return np.stack([part @ matrix.T + bias for part, matrix, bias in by_head], axis=2)

    gates = [project("zgate", h), project("igate", conv), project("fgate", conv), project("ogate", h)]
    y = normalize(naive(np.stack(gates, axis=2), layer["recurrent_kernel"]), layer["outnorm"]["scale"])
    x = x + y.reshape(x.shape)
    feed_forward = params["ffn_res_block"]
    h, ffn = normalize(x, feed_forward["ffn_norm"]["scale"]), feed_forward["ffn"]
    up = h @ ffn["proj_up_gate"]["kernel"]
    gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    return x + (gelu * (h @ ffn["proj_up"]["kernel"])) @ ffn["proj_down"]["kernel"]


def test_the_block_computes_the_equations_of_the_paper():
    with jax.enable_x64(True):
        config = FAMILIES["xlstm"](norm_type="layernorm").model_config
        for key in ("dtype", "gate_dtype"):
            setattr(config, key, "float64")  # more than a user may ask for
        block, inputs, rng = sLSTMBlock(config), BlockInputs(jnp.arange(2)), np.random.default_rng(0)
        x = rng.normal(size=(2, 10, 32))
        shapes = meta.unbox(jax.eval_shape(lambda: block.init(jax.random.key(0), x, inputs))["params"])
        params = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape), shapes)
        got = jax.jit(lambda params: block.apply({"params": params}, x, inputs))(params)
        np.testing.assert_allclose(got, reference_block(params, x), rtol=1e-9, atol=1e-11)


X_BTD = jax.random.normal(jax.random.key(1), (1, 16, 32))


def layer_and_params(**changes):
    """An sLSTM layer as a function of its parameters, and their initial values."""
    layer = sLSTMLayer(FAMILIES["xlstm"](**changes).model_config)
    inputs = BlockInputs(jnp.arange(1))
    params = meta.unbox(jax.jit(lambda: layer.init(jax.random.key(0), X_BTD, inputs))()["params"])
    return jax.jit(lambda params: layer.apply({"params": params}, X_BTD, inputs)), params


@pytest.mark.parametrize(("gates", "reads"), [(("zgate", "ogate"), False), (("igate", "fgate"), True)])
def test_the_convolution_only_feeds_the_input_and_forget_gates(gates, reads):
    layer, params = layer_and_params()
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    for gate in {"zgate", "igate", "fgate", "ogate"} - set(gates):
        params[gate]["kernel"] *= 0
    params["zgate_bias"] = jnp.linspace(-1, 1, 32).reshape(4, 8)
    other = params | {"conv1d": jax.tree.map(jnp.cos, params["conv1d"])}
    assert bool(jnp.all(layer(params) == layer(other))) != reads


def test_initial_forget_gates_are_spread_over_the_channels_of_every_head():
    _, params = layer_and_params(slstm_fgate_bias_init_range=[-1.0, 2.0])
    expected = np.broadcast_to(np.linspace(-1, 2, 8), (4, 8))
    np.testing.assert_allclose(params["fgate_bias"], expected, rtol=1e-6)
    assert not params["recurrent_kernel"].any() and not params["igate_bias"].any()
