"""The frame of every language model: embedding, a stack of blocks, head.

Axes: B batch, T time, D this device's share of the residual stream, E its whole width, V its share of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_hydra.parallel import Axes, column_matmul, gather_stream

from ._inputs import Context
from ._layers import Dense, Norm, dropout, named, small_init, soft_cap
from ._stack import run_stack


class Embed(nn.Module):
    """The embedding table, split over the stream."""

    config: Any
    axes: Axes = Axes()

    def setup(self) -> None:
        """The table."""
        config = self.config
        init = named(small_init(config.embedding_dim, config.init_distribution_embed), None, "stream")
        shape = (config.vocab_size, self.axes.local(config.embedding_dim))
        self.embedding = self.param("embedding", init, shape, jnp.float32)

    def __call__(self, tokens_BT: jax.Array, context: Context) -> jax.Array:
        """Token ids (B, T) -> (B, T, D)."""
        x_BTD = jnp.take(self.embedding, tokens_BT, axis=0).astype(self.config.dtype)
        rate = self.config.dropout_probability() if self.config.add_embedding_dropout else 0.0
        return dropout(x_BTD, rate, self.axes, context, "token_embedding")

    def head_kernel(self) -> jax.Array:
        """The table as a projection to this device's share of the vocabulary, (E, V)."""
        return self.axes.all_to_all(self.embedding, split=0, concat=1).T


class LMHead(nn.Module):
    """Norm, projection to the vocabulary, soft cap."""

    config: Any
    axes: Axes = Axes()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, tied_kernel_EV: jax.Array | None = None) -> jax.Array:
        """(B, T, D) -> logits (B, T, V) in float32."""
        config, axes = self.config, self.axes
        if config.add_post_blocks_norm:
            x_BTD = Norm(config.norm_type, config.norm_eps, config.dtype, axes, name="out_norm")(x_BTD)
        x_BTE = gather_stream(x_BTD, axes)
        dtype = config.lm_head_dtype or config.dtype
        if tied_kernel_EV is None:
            init = small_init(config.embedding_dim, config.init_distribution_out)
            logits_BTV = Dense(config.vocab_size, "vocab", dtype, init, axes, name="out_dense")(x_BTE)
        else:
            logits_BTV = column_matmul(x_BTE, tied_kernel_EV.astype(dtype), axes)
        return soft_cap(logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32)), config.logits_soft_cap)


class LanguageModel(nn.Module):
    """Tokens to logits. A family is a subclass that says what a block is."""

    config: Any
    axes: Axes = Axes()

    @staticmethod
    def block(config: Any, axes: Axes, name: str, index: int) -> nn.Module:
        """Block number `index` of the stack, or of its period: (B, T, D), `Context` -> (B, T, D)."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        document_borders_BT: jax.Array | None = None,
        *,
        train: bool = False,
        capacity: int | None = None,
    ) -> jax.Array:
        """Token ids (B, T) -> logits (B, T, V) in float32, where V is this device's share of the vocabulary.

        In a pipeline, the logits are those of this stage's share of the rows; see `Axes.stage_rows`.

        Args:
            tokens_BT: integers below `vocab_size`.
            document_borders_BT: true where a document begins. None: one document.
            train: apply dropout, for which the RNG stream `dropout` is needed.
            capacity: continue the tokens of earlier calls, of which all together are no more than this; see
                `continue_model`. None: these are all the tokens.
        """
        config, axes, rows = self.config, self.axes, tokens_BT.shape[0]
        key = self.make_rng("dropout") if train and config.dropout_probability() > 0 else None
        context = Context(axes.batch_index() * rows + jnp.arange(rows), document_borders_BT, key, capacity=capacity)
        embed = Embed(config, axes, name="token_embedding")
        x_BTD = run_stack(type(self), config, axes, embed(tokens_BT, context), context)
        return LMHead(config, axes, name="lm_head")(x_BTD, embed.head_kernel() if config.tie_weights else None)
