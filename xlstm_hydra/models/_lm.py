"""The common parts of all language models: the embedding, the stack of blocks, and the head. The blocks are called one
by one, scanned over depth, or split into pipeline stages.

Axes: B batch, T time, D local and E global width of the residual stream, V local shard of the vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_hydra.parallel import LAYERS, Axes, column_matmul, gather_stream, run_pipeline

from ._inputs import CACHE, BlockInputs
from ._layers import Dense, Norm, dropout, named, small_init, soft_cap


class Embed(nn.Module):
    """The embedding table, sharded along the width of the residual stream."""

    config: Any
    axes: Axes = Axes()

    def setup(self) -> None:
        """Create the table."""
        config = self.config
        init = named(small_init(config.embedding_dim, config.init_distribution_embed), None, "stream")
        shape = (config.vocab_size, self.axes.local(config.embedding_dim))
        self.embedding = self.param("embedding", init, shape, jnp.float32)

    def __call__(self, tokens_BT: jax.Array, inputs: BlockInputs) -> jax.Array:
        """Map token ids `[B, T]` to `[B, T, D]`."""
        x_BTD = jnp.take(self.embedding, tokens_BT, axis=0).astype(self.config.dtype)
        rate = self.config.dropout_probability() if self.config.add_embedding_dropout else 0.0
        return dropout(x_BTD, rate, self.axes, inputs, "token_embedding")

    def head_kernel(self) -> jax.Array:
        """Return the embedding table as kernel of the output projection for the local vocabulary shard, `[E, V]`."""
        return self.axes.all_to_all(self.embedding, split=0, concat=1).T


class LMHead(nn.Module):
    """The head of a language model: optional norm, projection to the vocabulary, optional soft cap of the logits."""

    config: Any
    axes: Axes = Axes()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, tied_kernel_EV: jax.Array | None = None) -> jax.Array:
        """Map `[B, T, D]` to float32 logits `[B, T, V]`. If `tied_kernel_EV` is given, the projection uses this kernel
        and has no parameters."""
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


class BlockGroup(nn.Module):
    """One period of a stack that repeats a pattern of different blocks. The stack is scanned over the periods."""

    family: Any
    """The subclass of `LanguageModel` whose method `block` builds the blocks."""

    config: Any
    axes: Axes = Axes()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, inputs: BlockInputs) -> jax.Array:
        """Map `[B, T, D]` to `[B, T, D]`."""
        for index in range(self.config.scan_period()):
            block = self.family.block(self.config, self.axes, f"block_{index}", index)
            x_BTD = block(x_BTD, inputs.at_block(inputs.block + index))
        return x_BTD


def run_stack(family: Any, config: Any, axes: Axes, x_BTD: jax.Array, inputs: BlockInputs) -> jax.Array:
    """Run all blocks of a model. Must be called in the compact `__call__` of the model. Maps `[B, T, D]` to
    `[B, T, D]`; with a pipeline, the result has only this stage's share of the rows (see `Axes.stage_rows`)."""
    if not config.scan_blocks:
        for index in range(config.num_blocks):
            block = family.block(config, axes, f"blocks_{index}", index)
            x_BTD = block(x_BTD, inputs.at_block(index))
        return x_BTD
    period = config.scan_period()
    block = family.block(config, axes, "blocks", 0) if period == 1 else BlockGroup(family, config, axes, name="blocks")
    count = config.num_blocks // period // axes.stages
    indices = period * (axes.stage() * count + jnp.arange(count))

    def scanned(block: nn.Module, x_BTD: jax.Array, inputs: BlockInputs) -> jax.Array:
        body = nn.scan(
            lambda block, x, index: (block(x, inputs.at_block(index)), None),
            variable_axes={"params": 0, CACHE: 0},
            split_rngs={"params": True},
            length=count,
            metadata_params={nn.PARTITION_NAME: LAYERS},
        )
        return body(block, x_BTD, indices)[0]

    if axes.pipeline is None:
        return scanned(block, x_BTD, inputs)

    def over_ticks(step: Any, carry: Any, ticks: jax.Array) -> Any:
        def body(block: nn.Module, carry: Any, tick: jax.Array) -> Any:
            def stage(block: nn.Module, x: jax.Array, rows: Any) -> jax.Array:
                return scanned(block, x, replace(inputs, **rows))

            run = nn.remat(stage, prevent_cse=False) if axes.stage_remat else stage
            return step(lambda x, rows: run(block, x, rows), carry, tick)

        return nn.scan(body, variable_broadcast="params", split_rngs={"params": False})(block, carry, ticks)

    rows = {"rows_B": inputs.rows_B, "document_borders_BT": inputs.document_borders_BT}
    return run_pipeline(over_ticks, x_BTD, rows, axes)


class LanguageModel(nn.Module):
    """Base class of language models, which map tokens to logits. Subclasses define `block`."""

    config: Any
    axes: Axes = Axes()

    @staticmethod
    def block(config: Any, axes: Axes, name: str, index: int) -> nn.Module:
        """Return block number `index` of the stack or, if the stack is scanned, of one period of the stack. The block
        maps `[B, T, D]` and `BlockInputs` to `[B, T, D]`."""
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
        """Compute the logits of all tokens.

        Args:
            tokens_BT: token ids below `vocab_size`, `int[B, T]`.
            document_borders_BT: True for the first token of each document, `bool[B, T]`. None: one document per row.
            train: True to apply dropout, which requires the RNG stream `dropout`.
            capacity: maximum total number of tokens in all calls, if a call continues the tokens of earlier calls; see
                `continue_model`. None: the call has all tokens.

        Returns:
            Logits, `float32[B, T, V]`. With a pipeline, only this stage's share of the rows (see `Axes.stage_rows`).
        """
        config, axes, rows = self.config, self.axes, tokens_BT.shape[0]
        key = self.make_rng("dropout") if train and config.dropout_probability() > 0 else None
        inputs = BlockInputs(axes.batch_index() * rows + jnp.arange(rows), document_borders_BT, key, capacity=capacity)
        embed = Embed(config, axes, name="token_embedding")
        x_BTD = run_stack(type(self), config, axes, embed(tokens_BT, inputs), inputs)
        return LMHead(config, axes, name="lm_head")(x_BTD, embed.head_kernel() if config.tie_weights else None)
