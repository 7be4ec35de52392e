"""The sLSTM cell (arXiv 2405.04517, section 2.2): a scalar memory per channel, exponential gates, and memory mixing.

The pre-activations z_t, i_t, f_t and o_t are sums of a contribution of the input and, for memory mixing, the product of
each head's recurrent weights and the head's previous output h_(t-1). With the logarithm of the forget gate
g_t = log sigmoid(f_t), or g_t = f_t for an exponential forget gate,

    m_t = max(g_t + m_(t-1), i_t)
    c_t = exp(g_t + m_(t-1) - m_t) c_(t-1) + exp(i_t - m_t) tanh(z_t)
    n_t = exp(g_t + m_(t-1) - m_t) n_(t-1) + exp(i_t - m_t)
    h_t = sigmoid(o_t) c_t / n_t

m_t keeps exp() finite and cancels in c_t / n_t, so m_t has no gradient. Because m_0 is minus infinity and one of the
two exp() factors is always 1, n_t is at least 1.

Axes: B batch, T time, H heads, V and W channels of a head, G the four pre-activations in the order z, i, f, o.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from xlstm_hydra.parallel import vary_like

from ._layers import soft_cap

State = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

FORGET_GATES: dict[str, Callable[[jax.Array], jax.Array]] = {"sigmoid": jax.nn.log_sigmoid, "exp": lambda x: x}
"""Logarithm of the forget gate as a function of the pre-activation, by the value of `slstm_forget_gate`."""


def slstm(
    x_BTGHV: jax.Array,
    recurrent_HVGW: jax.Array,
    borders_BT: jax.Array | None = None,
    *,
    forget_gate: str = "sigmoid",
    gate_soft_cap: float | None = None,
) -> jax.Array:
    """Run the sLSTM recurrence over all time steps.

    Args:
        x_BTGHV: contribution of the input to the pre-activations, including biases, `float[B, T, 4, H, V]`.
        recurrent_HVGW: recurrent weights of each head, `float[H, V, 4, V]`.
        borders_BT: True for the first token of each document, where the state is reset. None: no resets.
        forget_gate: a key of `FORGET_GATES`.
        gate_soft_cap: soft cap of the pre-activations i and f. None: no cap.

    Returns:
        h, `[B, T, H, V]`, in float32, or in float64 for float64 inputs.
    """
    B, _, _, H, V = x_BTGHV.shape
    start = slstm_start((B, H, V), jnp.promote_types(x_BTGHV.dtype, jnp.float32))
    state = jax.tree.map(lambda leaf: vary_like(leaf, x_BTGHV, recurrent_HVGW), start)
    options = {"forget_gate": forget_gate, "gate_soft_cap": gate_soft_cap}
    return slstm_continue(state, x_BTGHV, recurrent_HVGW, borders_BT, **options)[1]


def slstm_continue(
    state: State,
    x_BTGHV: jax.Array,
    recurrent_HVGW: jax.Array,
    borders_BT: jax.Array | None = None,
    *,
    forget_gate: str = "sigmoid",
    gate_soft_cap: float | None = None,
) -> tuple[State, jax.Array]:
    """Run the recurrence of `slstm`, starting from a given state. See `slstm` for the other arguments.

    Returns:
        The final state, and h, `[B, T, H, V]`.
    """
    acc = jnp.promote_types(x_BTGHV.dtype, jnp.float32)
    start = slstm_start(state[0].shape, acc)

    def body(state: State, token: Any) -> tuple[State, jax.Array]:
        x_BGHV, border_B = token
        if border_B is not None:
            state = jax.tree.map(lambda new, old: jnp.where(border_B[:, None, None], new, old), start, state)
        return step(state, x_BGHV.astype(acc), recurrent_HVGW.astype(acc))

    # Only the states are saved for the backward pass. This halves the memory, for one more small product per step.
    one_step = partial(slstm_step, forget_gate=forget_gate, gate_soft_cap=gate_soft_cap)
    step = jax.checkpoint(one_step, prevent_cse=False)
    tokens = (jnp.moveaxis(x_BTGHV, 1, 0), None if borders_BT is None else borders_BT.T)
    state, h_TBHV = jax.lax.scan(body, state, tokens)
    return state, jnp.moveaxis(h_TBHV, 0, 1)


def slstm_start(shape: tuple[int, ...], dtype: Any) -> State:
    """Return the initial state (c, n, h, m): arrays of `shape` with zeros, or minus infinity for the stabilizer m."""
    zeros = jnp.zeros(shape, dtype)
    return zeros, zeros, zeros, jnp.full(shape, -jnp.inf, dtype)


def slstm_step(
    state: State,
    x_BGHV: jax.Array,
    recurrent_HVGW: jax.Array,
    *,
    forget_gate: str = "sigmoid",
    gate_soft_cap: float | None = None,
) -> tuple[State, jax.Array]:
    """Run one time step. Return the new state (c, n, h, m), and h, `[B, H, V]`."""
    c, n, h, m = state
    z, i, f, o = jnp.moveaxis(x_BGHV + jnp.einsum("bhv,hvgw->bghw", h, recurrent_HVGW), 1, 0)
    i, f = soft_cap(i, gate_soft_cap), soft_cap(f, gate_soft_cap)
    carried = FORGET_GATES[forget_gate](f) + m
    m = jax.lax.stop_gradient(jnp.maximum(carried, i))
    kept, added = jnp.exp(carried - m), jnp.exp(i - m)
    c, n = kept * c + added * jnp.tanh(z), kept * n + added
    h = jax.nn.sigmoid(o) * c / n
    return (c, n, h, m), h
