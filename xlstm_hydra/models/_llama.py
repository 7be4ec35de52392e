"""The Llama baseline (arXiv 2302.13971): attention with rotary embeddings (arXiv 2104.09864), then a gated feed-forward
layer.

Axes: B batch, T time (S when summed over), D local and E global width of the residual stream, H local heads, K head
width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_hydra.configs import LlamaConfig
from xlstm_hydra.parallel import Axes, Pieces

from ._block import FeedForward, Residual, split_heads
from ._inputs import CACHE, BlockInputs
from ._layers import Dense, HeadNorm, Initializer, output_init, small_init
from ._lm import LanguageModel


def positions_BT(inputs: BlockInputs, T: int) -> jax.Array:
    """Return the position of each token in its document, `int[B, T]`, or `int[1, T]` if each row is one document."""
    index_1T = jnp.arange(T)[None]
    borders_BT = inputs.document_borders_BT
    if borders_BT is None:
        return index_1T
    return index_1T - jax.lax.cummax(jnp.where(borders_BT, index_1T, 0), axis=1)


def rotate(x_BTHK: jax.Array, position_BT: jax.Array, theta: float) -> jax.Array:
    """Apply rotary embeddings (arXiv 2104.09864): rotate channels 2i and 2i + 1 by `position * theta^(-2i / K)`
    radians. The dot product of a query and a key then depends on their positions only through the difference.

    Angles are computed in float32 or wider, because bfloat16 cannot distinguish large positions.

    Args:
        x_BTHK: queries or keys, `[B, T, H, K]`.
        position_BT: position of each token, `[B, T]` or `[1, T]`.
        theta: base of the frequencies.

    Returns:
        The rotated queries or keys, `[B, T, H, K]`, in the dtype of `x_BTHK`.
    """
    K, acc = x_BTHK.shape[-1], jnp.promote_types(x_BTHK.dtype, jnp.float32)
    frequency = theta ** (-jnp.arange(0, K, 2, dtype=acc) / K)
    angle = position_BT[..., None, None].astype(acc) * frequency[None, None, None]
    cos, sin = jnp.cos(angle).astype(x_BTHK.dtype), jnp.sin(angle).astype(x_BTHK.dtype)
    even, odd = x_BTHK[..., ::2], x_BTHK[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x_BTHK.shape)


class Attention(nn.Module):
    """Multi-head softmax attention: projections to queries, keys and values, optional norms of queries and keys,
    attention with rotary embeddings, and output projection."""

    config: LlamaConfig
    axes: Axes = Axes()

    @nn.compact
    def __call__(self, x_BTE: jax.Array | Pieces, inputs: BlockInputs) -> jax.Array:
        """Map `[B, T, E]` to `[B, T, D]`."""
        config, axes = self.config, self.axes
        init = small_init(config.embedding_dim, config.init_distribution)
        q_BTHK, k_BTHK, v_BTHK = (
            split_heads(self._dense(name, init)(x_BTE), axes.local(config.num_heads()))
            for name in ("dense_q", "dense_k", "dense_v")
        )
        if config.qk_norm:
            q_BTHK, k_BTHK = (
                HeadNorm(config.norm_type, config.cell_norm_eps, config.dtype, per_head=False, name=name)(x)
                for name, x in (("q_norm", q_BTHK), ("k_norm", k_BTHK))
            )
        attend = self._attend if inputs.capacity is None else self._attend_to_past
        h_BTHK = attend(q_BTHK, k_BTHK, v_BTHK, inputs)
        out = output_init(config.output_init_fn, config.embedding_dim, config.num_blocks, config.init_distribution)
        return self._dense("dense_out", out, reduce=True)(h_BTHK.reshape(*h_BTHK.shape[:2], -1))

    def _attend(self, q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, inputs: BlockInputs) -> jax.Array:
        config, position = self.config, positions_BT(inputs, q_BTHK.shape[1])
        # Initial parameters do not depend on the attention kernel, which may not be available on these devices.
        backend: Any = "xla" if self.is_initializing() else config.attention_backend
        return jax.nn.dot_product_attention(
            rotate(q_BTHK, position, config.theta),
            rotate(k_BTHK, position, config.theta),
            v_BTHK,
            mask=self._mask(inputs),
            scale=self._scale(),
            is_causal=config.causal,
            implementation=backend,
        )

    def _attend_to_past(
        self, q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, inputs: BlockInputs
    ) -> jax.Array:
        """Attend to the tokens of this call and of earlier calls, whose rotated keys and values are cached. S is the
        capacity of the cache. Always uses the XLA backend, which supports every mask and length."""
        config, (B, T), S = self.config, q_BTHK.shape[:2], inputs.capacity
        assert S is not None
        count = self.variable(CACHE, "count", jnp.zeros, (), jnp.int32)
        first = count.value

        def keep(name: str, x_BT: jax.Array) -> jax.Array:
            kept = self.variable(CACHE, name, jnp.zeros, (B, S, *x_BT.shape[2:]), x_BT.dtype)
            kept.value = jax.lax.dynamic_update_slice_in_dim(kept.value, x_BT, first, axis=1)
            return kept.value

        def these(x_BS: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x_BS, first, T, axis=1)

        borders_BT = inputs.document_borders_BT
        borders_BS = keep("borders", jnp.zeros((B, T), jnp.bool) if borders_BT is None else borders_BT)
        position_BT = these(positions_BT(replace(inputs, document_borders_BT=borders_BS), S))
        keys_BSHK = keep("keys", rotate(k_BTHK, position_BT, config.theta))
        values_BSHK = keep("values", v_BTHK)
        count.value = first + T
        mask_BTS = (jnp.arange(S)[None] <= (first + jnp.arange(T))[:, None])[None]
        if config.mask_across_document_boundaries:
            segments_BS = jnp.cumsum(borders_BS, axis=1)
            mask_BTS &= these(segments_BS)[:, :, None] == segments_BS[:, None, :]
        return jax.nn.dot_product_attention(
            rotate(q_BTHK, position_BT, config.theta),
            keys_BSHK,
            values_BSHK,
            mask=mask_BTS[:, None],
            scale=self._scale(),
            implementation="xla",
        )

    def _scale(self) -> float:
        # As for the published weights, the scale depends on the global number of heads, not on the head width.
        return self.config.num_heads() ** -0.5

    def _dense(self, name: str, init: Initializer, *, reduce: bool = False) -> Dense:
        config = self.config
        bias = nn.initializers.zeros_init() if config.use_bias else None
        return Dense(config.embedding_dim, "heads", config.dtype, init, self.axes, reduce, bias, name=name)

    def _mask(self, inputs: BlockInputs) -> jax.Array | None:
        """Return a mask `[B, 1, T, S]` that is True if tokens t and s are in the same document; None if no mask is
        needed."""
        segments_BT = inputs.segments_BT()
        if segments_BT is None or not self.config.mask_across_document_boundaries:
            return None
        return (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]


class AttnBlock(Residual):
    """x + Attention(norm(x))."""

    @nn.compact
    def __call__(self, x_BTD: jax.Array, inputs: BlockInputs) -> jax.Array:
        """Map `[B, T, D]` to `[B, T, D]`."""
        attention = Attention(self.config, self.axes, name="attn")
        return self.residual(x_BTD, lambda x_BTE: attention(x_BTE, inputs), inputs, "attn")


class FFNBlock(Residual):
    """x + FeedForward(norm(x))."""

    @nn.compact
    def __call__(self, x_BTD: jax.Array, inputs: BlockInputs) -> jax.Array:
        """Map `[B, T, D]` to `[B, T, D]`."""
        config = self.config
        layer = FeedForward(config, config.ff_dim(), config.dtype, self.axes, bias=config.use_bias, name="ffn")
        return self.residual(x_BTD, layer, inputs, "ffn")


class TransformerBlock(nn.Module):
    """A block of the stack: the residual attention layer, then the residual feed-forward layer."""

    config: LlamaConfig
    axes: Axes = Axes()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, inputs: BlockInputs) -> jax.Array:
        """Map `[B, T, D]` to `[B, T, D]`."""
        x_BTD = AttnBlock(self.config, self.axes, name="attn")(x_BTD, inputs)
        return FFNBlock(self.config, self.axes, name="ffn")(x_BTD, inputs)


class Llama(LanguageModel):
    """The language model of the Llama baseline: a stack of transformer blocks."""

    config: LlamaConfig

    @staticmethod
    def block(config: Any, axes: Axes, name: str, index: int) -> nn.Module:
        """Return a transformer block."""
        return TransformerBlock(config, axes, name=name)
