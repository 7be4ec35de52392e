"""Continuing from a cache gives the same logits as one pass over all tokens."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import FAMILIES
from untrained import random_params

from xlstm_hydra.models import (
    apply_model,
    build_model,
    continue_model,
    mlstm_continue,
    mlstm_quadratic,
    mlstm_start,
    slstm,
    slstm_continue,
    slstm_start,
)

T = 24  # more than an example of training has
OPTIONS = {
    "v1": {"add_qk_norm": True, "gate_soft_cap": 5.0, "v_dim_factor": 2.0, "reset_at_document_boundaries": True}
    | {"ff_type": None},
    "v0": {
        "add_qk_norm": True,
        "gate_soft_cap": 5.0,
        "v_dim_factor": 0.5,
        "vmap_qk": True,
        "gate_input": "x_mlstm_conv",
        "ff_type": "ffn",
        "cell_eps": 0.5,
        "reset_at_document_boundaries": True,
    },
    "xlstm": {"gate_soft_cap": 5.0, "slstm_forget_gate": "exp", "reset_at_document_boundaries": True},
    "llama": {"qk_norm": True, "mask_across_document_boundaries": True},
}
UNROLLED = {"scan_blocks": False, "num_blocks": 2}
CASES = [
    *(pytest.param(family, OPTIONS[family], id=f"{family} with options") for family in FAMILIES),
    pytest.param("xlstm", UNROLLED, id="xlstm, unrolled"),
    *(
        pytest.param(family, UNROLLED, id=f"{family}, unrolled", marks=pytest.mark.slow)
        for family in ("v1", "v0", "llama")
    ),
]
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Options that compile in a third of the time."""


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def in_float64(family, **changes):
    """A module, with parameters changed from their symmetric initial values."""
    model = FAMILIES[family](**changes)
    for key in {"dtype", "lm_head_dtype", "gate_dtype"} & set(model.model_config.__dataclass_fields__):
        setattr(model.model_config, key, "float64")
    return build_model(model), random_params(model, 0.2, jnp.float64)


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_continuing_equals_one_pass_over_all_tokens(family, changes):
    module, params = in_float64(family, **changes)
    rng = np.random.default_rng(1)
    tokens, borders = rng.integers(0, 32, (2, T)), rng.random((2, T)) < 0.15
    whole = quick(lambda *batch: apply_model(module, params, *batch))(tokens, borders)
    step = quick(lambda cache, *batch: continue_model(module, params, cache, *batch, capacity=T))
    cache, parts = {}, []
    for begin, end in ((0, 11), *((place, place + 1) for place in range(11, T))):
        logits, cache = step(cache, tokens[:, begin:end], borders[:, begin:end])
        parts.append(logits)
    # The softmax of jax.nn.dot_product_attention is always float32.
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-7 if family == "llama" else 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_cache_of_attention_grows_with_the_tokens(family):
    module, params = in_float64(family)

    def size(capacity):
        tokens = jnp.zeros((1, 1), jnp.int32)
        kept = jax.eval_shape(lambda: continue_model(module, params, {}, tokens, capacity=capacity)[1])
        return sum(leaf.size for leaf in jax.tree.leaves(kept))

    assert (size(4096) > 100 * size(16)) if family == "llama" else (size(4096) == size(16))


def in_pieces(advance, state, x, cuts):
    """Concatenated outputs of a cell that continues from one piece to the next."""
    outputs = []
    for piece in zip(*(jnp.split(jnp.asarray(array), cuts, axis=1) for array in x), strict=True):
        state, h = advance(state, *piece)
        outputs.append(h)
    return jnp.concatenate(outputs, axis=1)


@pytest.mark.parametrize("cuts", [[1, 2, 3], [16], [7, 8]], ids=str)
def test_the_mlstm_cell_continues_from_its_state(cuts):
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(2, 24, 3, *rest)) for rest in ((4,), (4,), (5,), (), ())]
    x[3:] = [8 * gate for gate in x[3:]]
    state, advance = mlstm_start(2, 3, 4, 5, jnp.float64), partial(mlstm_continue, chunk_size=8)
    got, whole = quick(lambda x: (in_pieces(advance, state, x, cuts), mlstm_quadratic(*x)))(x)
    np.testing.assert_allclose(got, whole, rtol=1e-10, atol=1e-13)


def test_the_slstm_cell_continues_from_its_state():
    rng = np.random.default_rng(0)
    x, borders = rng.normal(size=(2, 9, 4, 3, 5)), rng.random((2, 9)) < 0.3
    recurrent = jnp.asarray(rng.normal(size=(3, 5, 4, 5)))

    def advance(state, x, borders):
        return slstm_continue(state, x, recurrent, borders)

    state = slstm_start((2, 3, 5), jnp.float64)
    got, whole = quick(lambda *x: (in_pieces(advance, state, x, [4, 5]), slstm(x[0], recurrent, x[1])))(x, borders)
    np.testing.assert_allclose(got, whole, rtol=1e-12)
