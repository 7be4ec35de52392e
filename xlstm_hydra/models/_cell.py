"""The mLSTM cell (arXiv 2405.04517, section 2.3; arXiv 2503.14376 for the chunkwise form), in three forms that are
equal in exact arithmetic.

The inputs of token t are the query q_t, the key k_t, the value v_t, and the pre-activations i_t and f_t of the input
gate and the forget gate. With F_t = sum_(s <= t) log sigmoid(f_s) and D_tj = F_t - F_j + i_j for j <= t,

    w_tj = exp(D_tj - m_t) (q_t . k_j / sqrt(K))
    h_t = sum_j w_tj v_j / (max(|sum_j w_tj|, exp(-m_t)) + eps)

where m_t = max(F_t, max_j D_tj) keeps exp() finite. Without eps, the factor exp(-m_t) cancels, so m_t has no gradient.
The maximum includes F_t because the published recurrence starts with m_0 = 0; this affects the output only through eps.

Axes: B batch, T time (L within a chunk, S when summed over), H heads, K key width, V value width. Sums and states are
float32 (float64 for float64 inputs), even if q, k and v are bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xlstm_hydra.parallel import vary_like

EPS = 1e-6

State = tuple[jax.Array, jax.Array, jax.Array]
"""The recurrent state: memory C `[B, H, K, V]`, normalizer n `[B, H, K]`, and stabilizer m `[B, H]`."""


def mlstm_quadratic(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, i_BTH: jax.Array, f_BTH: jax.Array, *, eps: float = EPS
) -> jax.Array:
    """Compute the mLSTM for all pairs of tokens at once. Time and memory are quadratic in T.

    Args:
        q_BTHK: queries, `[B, T, H, K]`.
        k_BTHK: keys, `[B, T, H, K]`.
        v_BTHV: values, `[B, T, H, V]`.
        i_BTH: pre-activations of the input gate, `[B, T, H]`.
        f_BTH: pre-activations of the forget gate, `[B, T, H]`.
        eps: added to the denominator.

    Returns:
        h, `[B, T, H, V]`, in the dtype of v.
    """
    scale, acc = q_BTHK.shape[-1] ** -0.5, _accumulator(q_BTHK)
    i_BHT, f_BHT = (jnp.moveaxis(gate.astype(acc), 1, 2) for gate in (i_BTH, f_BTH))
    cumulative_BHT = jnp.cumsum(jax.nn.log_sigmoid(f_BHT), axis=-1)
    decay_BHTS = _masked_decay(cumulative_BHT, i_BHT)
    m_BHT = jax.lax.stop_gradient(jnp.maximum(decay_BHTS.max(-1), cumulative_BHT))
    score_BHTS = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK, preferred_element_type=acc) * scale
    weight_BHTS = score_BHTS * jnp.exp(decay_BHTS - m_BHT[..., None])
    numerator_BHTV = jnp.einsum("bhts,bshv->bhtv", weight_BHTS.astype(v_BTHV.dtype), v_BTHV, preferred_element_type=acc)
    h_BHTV = numerator_BHTV / _normalizer(weight_BHTS.sum(-1), m_BHT, eps)[..., None]
    return jnp.moveaxis(h_BHTV, 1, 2).astype(v_BTHV.dtype)


def mlstm_chunkwise(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHV: jax.Array,
    i_BTH: jax.Array,
    f_BTH: jax.Array,
    *,
    chunk_size: int,
    eps: float = EPS,
) -> jax.Array:
    """Compute the mLSTM in chunks: quadratic within a chunk, recurrent between chunks. Time and memory are linear in T.

    For the backward pass, only one state per chunk is saved, and the chunks are recomputed.

    Args:
        q_BTHK: queries, `[B, T, H, K]`.
        k_BTHK: keys, `[B, T, H, K]`.
        v_BTHV: values, `[B, T, H, V]`.
        i_BTH: pre-activations of the input gate, `[B, T, H]`.
        f_BTH: pre-activations of the forget gate, `[B, T, H]`.
        chunk_size: tokens per chunk, capped at T.
        eps: added to the denominator.

    Returns:
        h, `[B, T, H, V]`, in the dtype of v.

    Raises:
        ValueError: T is not a multiple of `chunk_size`.
    """
    T = q_BTHK.shape[1]
    chunk_size = min(chunk_size, T)
    if T % chunk_size:
        raise ValueError(f"the chunk size ({chunk_size}) must divide the number of tokens ({T})")
    inputs = (q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH)
    return _scan_chunks(_start_of(*inputs), inputs, chunk_size, eps)[1]


def mlstm_continue(
    state: State,
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHV: jax.Array,
    i_BTH: jax.Array,
    f_BTH: jax.Array,
    *,
    chunk_size: int,
    eps: float = EPS,
) -> tuple[State, jax.Array]:
    """Process any number of tokens, starting from a state: first complete chunks, then one shorter chunk with the
    remaining tokens. A single token is processed by `mlstm_step`. See `mlstm_chunkwise` for the other arguments.

    Returns:
        The final state, and h, `[B, T, H, V]`, in the dtype of v.
    """
    inputs = (q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH)
    T, acc = q_BTHK.shape[1], _accumulator(q_BTHK)
    if T == 1:
        state, h_BHV = mlstm_step(state, *(x[:, 0].astype(acc) for x in inputs), eps=eps)
        return state, h_BHV[:, None].astype(v_BTHV.dtype)
    whole, outputs = T - T % chunk_size, []
    for part, size in ((slice(0, whole), chunk_size), (slice(whole, T), T - whole)):
        if part.stop > part.start:
            state, h_BTHV = _scan_chunks(state, tuple(x[:, part] for x in inputs), size, eps)
            outputs.append(h_BTHV)
    return state, jnp.concatenate(outputs, axis=1)


def mlstm_start(B: int, H: int, K: int, V: int, dtype: Any) -> State:
    """Return the initial state, in which all values are zero."""
    return jnp.zeros((B, H, K, V), dtype), jnp.zeros((B, H, K), dtype), jnp.zeros((B, H), dtype)


def _start_of(q_BTHK: jax.Array, *others: jax.Array) -> State:
    """Return the initial state for inputs q, k, v, i, f, marked as varying over the same mesh axes as the inputs."""
    B, _, H, K = q_BTHK.shape
    state = mlstm_start(B, H, K, others[1].shape[-1], _accumulator(q_BTHK))
    return jax.tree.map(lambda x: vary_like(x, q_BTHK, *others), state)


def _scan_chunks(state: State, inputs: tuple[jax.Array, ...], chunk_size: int, eps: float) -> tuple[State, jax.Array]:
    """Process the inputs in chunks of equal size. Return the final state, and h, `[B, T, H, V]`."""
    q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH = inputs
    (B, T, H, _), V, acc = q_BTHK.shape, v_BTHV.shape[-1], _accumulator(q_BTHK)

    def chunks(x: jax.Array) -> jax.Array:  # (B, T, H, ...) -> (N, B, H, L, ...)
        return jnp.moveaxis(x.reshape(B, T // chunk_size, chunk_size, H, *x.shape[3:]), (1, 3), (0, 2))

    inputs = tuple(map(chunks, (q_BTHK, k_BTHK, v_BTHV, i_BTH.astype(acc), f_BTH.astype(acc))))
    step = jax.checkpoint(lambda state, chunk: _chunk(state, chunk, eps), prevent_cse=False)
    state, h_NBHLV = jax.lax.scan(step, state, inputs)
    return state, jnp.moveaxis(h_NBHLV, (0, 2), (1, 3)).reshape(B, T, H, V).astype(v_BTHV.dtype)


def _chunk(state: State, chunk: Any, eps: float) -> tuple[State, jax.Array]:
    """Process one chunk. Return the next state, and h, `[B, H, L, V]`."""
    C_BHKV, n_BHK, m_BH = state
    q_BHLK, k_BHLK, v_BHLV, i_BHL, f_BHL = chunk
    acc, dtype = C_BHKV.dtype, v_BHLV.dtype
    scale = q_BHLK.shape[-1] ** -0.5
    cumulative_BHL = jnp.cumsum(jax.nn.log_sigmoid(f_BHL), axis=-1)
    total_BH = cumulative_BHL[..., -1]

    decay_BHLS = _masked_decay(cumulative_BHL, i_BHL)
    from_state_BHL = cumulative_BHL + m_BH[..., None]
    row_max_BHL = jax.lax.stop_gradient(jnp.maximum(decay_BHLS.max(-1), from_state_BHL))
    score_BHLS = jnp.einsum("bhlk,bhsk->bhls", q_BHLK, k_BHLK, preferred_element_type=acc) * scale
    weight_BHLS = score_BHLS * jnp.exp(decay_BHLS - row_max_BHL[..., None])
    carried_BHL = jnp.exp(from_state_BHL - row_max_BHL) * scale

    numerator_BHLV = jnp.einsum("bhls,bhsv->bhlv", weight_BHLS.astype(dtype), v_BHLV, preferred_element_type=acc)
    numerator_BHLV += carried_BHL[..., None] * jnp.einsum("bhlk,bhkv->bhlv", q_BHLK.astype(acc), C_BHKV)
    sum_BHL = weight_BHLS.sum(-1) + carried_BHL * jnp.einsum("bhlk,bhk->bhl", q_BHLK.astype(acc), n_BHK)
    h_BHLV = numerator_BHLV / _normalizer(sum_BHL, row_max_BHL, eps)[..., None]

    to_end_BHL = total_BH[..., None] - cumulative_BHL + i_BHL
    new_m_BH = jax.lax.stop_gradient(jnp.maximum(total_BH + m_BH, to_end_BHL.max(-1)))
    kept_BH = jnp.exp(total_BH + m_BH - new_m_BH)
    added_BHLK = k_BHLK * jnp.exp(to_end_BHL - new_m_BH[..., None])[..., None].astype(acc)
    new_C_BHKV = kept_BH[..., None, None] * C_BHKV + jnp.einsum("bhlk,bhlv->bhkv", added_BHLK, v_BHLV.astype(acc))
    new_n_BHK = kept_BH[..., None] * n_BHK + added_BHLK.sum(-2)
    return (new_C_BHKV, new_n_BHK, new_m_BH), h_BHLV.astype(dtype)


def mlstm_recurrent(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, i_BTH: jax.Array, f_BTH: jax.Array, *, eps: float = EPS
) -> jax.Array:
    """Compute the mLSTM token by token, with a state of constant size. See `mlstm_quadratic` for the arguments.

    Returns:
        h, `[B, T, H, V]`, in the dtype of v.
    """
    acc = _accumulator(q_BTHK)
    inputs = tuple(x.astype(acc) for x in (q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH))
    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in inputs)
    _, h_TBHV = jax.lax.scan(lambda state, token: mlstm_step(state, *token, eps=eps), _start_of(*inputs), tokens)
    return jnp.moveaxis(h_TBHV, 0, 1).astype(v_BTHV.dtype)


def mlstm_step(
    state: State,
    q_BHK: jax.Array,
    k_BHK: jax.Array,
    v_BHV: jax.Array,
    i_BH: jax.Array,
    f_BH: jax.Array,
    *,
    eps: float = EPS,
) -> tuple[State, jax.Array]:
    """Process one token. All arguments must have the dtype of the state. Return the next state, and h, `[B, H, V]`."""
    C_BHKV, n_BHK, m_BH = state
    logf_BH = jax.nn.log_sigmoid(f_BH)
    new_m_BH = jax.lax.stop_gradient(jnp.maximum(logf_BH + m_BH, i_BH))
    kept_BH, added_BH = jnp.exp(logf_BH + m_BH - new_m_BH), jnp.exp(i_BH - new_m_BH)
    added_BHK = k_BHK * added_BH[..., None]
    C_BHKV = kept_BH[..., None, None] * C_BHKV + added_BHK[..., None] * v_BHV[..., None, :]
    n_BHK = kept_BH[..., None] * n_BHK + added_BHK
    q_BHK = q_BHK * q_BHK.shape[-1] ** -0.5
    sum_BH = jnp.einsum("bhk,bhk->bh", q_BHK, n_BHK)
    h_BHV = jnp.einsum("bhk,bhkv->bhv", q_BHK, C_BHKV) / _normalizer(sum_BH, new_m_BH, eps)[..., None]
    return (C_BHKV, n_BHK, new_m_BH), h_BHV


def _masked_decay(cumulative_BHT: jax.Array, i_BHT: jax.Array) -> jax.Array:
    """Return D (see the module docstring), `[B, H, T, S]`, which is minus infinity for s > t."""
    T = i_BHT.shape[-1]
    decay_BHTS = cumulative_BHT[..., :, None] - cumulative_BHT[..., None, :] + i_BHT[..., None, :]
    return jnp.where(jnp.tril(jnp.ones((T, T), bool)), decay_BHTS, -jnp.inf)


def _normalizer(weight_sum: jax.Array, m: jax.Array, eps: float) -> jax.Array:
    # exp(-m) overflows if the input gates are closed. With a denominator at this limit, the output is 0 anyway.
    floor = jnp.exp(jnp.minimum(-m, 0.9 * jnp.log(jnp.finfo(m.dtype).max)))
    return jnp.maximum(jnp.abs(weight_sum), floor) + eps


def _accumulator(x: jax.Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


CELLS: dict[str, Callable[..., jax.Array]] = {
    "chunkwise": mlstm_chunkwise,
    "quadratic": lambda *args, chunk_size, **kwargs: mlstm_quadratic(*args, **kwargs),
    "recurrent": lambda *args, chunk_size, **kwargs: mlstm_recurrent(*args, **kwargs),
}
"""Forms of the cell by the value of `model.backend`. All accept q, k, v, i, f and the keywords `chunk_size` and
`eps`."""
