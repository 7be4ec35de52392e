"""The stack of blocks: one after the other, scanned over depth, or cut into pipeline stages.

Axes: B rows, T time, D this device's share of the residual stream.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_hydra.parallel import LAYERS, Axes, run_pipeline

from ._inputs import Context
from ._state import CACHE


class BlockGroup(nn.Module):
    """The blocks of one period of a stack in which not all are alike; it is what such a stack scans over."""

    family: Any
    """The `LanguageModel` class, whose `block` makes them."""

    config: Any
    axes: Axes = Axes()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """(B, T, D) -> (B, T, D)."""
        for index in range(self.config.scan_period()):
            block = self.family.block(self.config, self.axes, f"block_{index}", index)
            x_BTD = block(x_BTD, context.at_block(context.block + index))
        return x_BTD


def run_stack(family: Any, config: Any, axes: Axes, x_BTD: jax.Array, context: Context) -> jax.Array:
    """All blocks of a model, inside its compact call. In a pipeline the result is that of `Axes.stage_rows`."""
    if not config.scan_blocks:
        for index in range(config.num_blocks):
            block = family.block(config, axes, f"blocks_{index}", index)
            x_BTD = block(x_BTD, context.at_block(index))
        return x_BTD
    period = config.scan_period()
    block = family.block(config, axes, "blocks", 0) if period == 1 else BlockGroup(family, config, axes, name="blocks")
    count = config.num_blocks // period // axes.stages
    indices = period * (axes.stage() * count + jnp.arange(count))

    def scanned(block: nn.Module, x_BTD: jax.Array, context: Context) -> jax.Array:
        body = nn.scan(
            lambda block, x, index: (block(x, context.at_block(index)), None),
            variable_axes={"params": 0, CACHE: 0},
            split_rngs={"params": True},
            length=count,
            metadata_params={nn.PARTITION_NAME: LAYERS},
        )
        return body(block, x_BTD, indices)[0]

    if axes.pipeline is None:
        return scanned(block, x_BTD, context)

    def over_ticks(step: Any, carry: Any, ticks: jax.Array) -> Any:
        def body(block: nn.Module, carry: Any, tick: jax.Array) -> Any:
            def stage(block: nn.Module, x: jax.Array, rows: Any) -> jax.Array:
                return scanned(block, x, replace(context, **rows))

            run = nn.remat(stage, prevent_cse=False) if axes.stage_remat else stage
            return step(lambda x, rows: run(block, x, rows), carry, tick)

        return nn.scan(body, variable_broadcast="params", split_rngs={"params": False})(block, carry, ticks)

    rows = {"rows_B": context.rows_B, "document_borders_BT": context.document_borders_BT}
    return run_pipeline(over_ticks, x_BTD, rows, axes)
