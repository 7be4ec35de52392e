"""Pipeline parallelism: the blocks are split into stages, one per device of the pipeline mesh axis.

GPipe (arXiv 1811.06965): a batch passes through the S stages in M microbatches. In tick t, stage s computes microbatch
t - s and sends it to the next stage; after M + S - 1 ticks, all microbatches have left the last stage. The backward
pass is the transpose of this loop, so it runs the same schedule backwards.

The embedding table and the head are not split into stages: every stage has both (FSDP can shard them). All stages look
up the embeddings, which is cheap, but only the first stage uses the result. The head is a large matrix product, so the
last stage sends every stage an equal share of the rows, and all stages compute the logits of their rows in parallel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._axes import Axes, vary_over

Stage = Callable[[jax.Array, Any], jax.Array]
Step = Callable[[Stage, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def bubble_fraction(stages: int, microbatches: int) -> float:
    """Return the fraction of ticks in which a stage is idle, `(S - 1) / (M + S - 1)` for S stages and M microbatches
    (arXiv 1811.06965, section 2)."""
    return (stages - 1) / (microbatches + stages - 1)


def run_pipeline(
    scan: Callable[[Step, jax.Array, jax.Array], tuple[jax.Array, jax.Array]], x: jax.Array, inputs: Any, axes: Axes
) -> jax.Array:
    """Pass the rows of `x` through all pipeline stages.

    Args:
        scan: function `scan(step, carry, ticks)` that calls `step(stage, carry, tick)` for each tick, like
            `jax.lax.scan`. The function `stage(x, inputs)` must apply this device's blocks to one microbatch.
        x: rows `[B, ...]`; B must be a multiple of the number of microbatches and of the number of stages.
        inputs: tree of other arrays `[B, ...]`, which are split into microbatches like `x`.
        axes: the mesh axes, including a pipeline axis.

    Returns:
        Outputs of the last stage for this stage's share of the rows (see `Axes.stage_rows`), `[B / stages, ...]`.
    """
    assert axes.pipeline is not None
    name, count, stages = axes.pipeline, axes.microbatches, axes.stages

    def cut(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(count, leaf.shape[0] // count, *leaf.shape[1:])

    x_parts, input_parts = cut(x), jax.tree.map(cut, inputs)

    def step(stage: Stage, received: jax.Array, tick: jax.Array) -> tuple[jax.Array, jax.Array]:
        # A stage without a microbatch (in the first and last ticks) repeats one, and the result is not used. Zeros as
        # inputs might give values that are not finite.
        part = jnp.clip(tick - axes.stage(), 0, count - 1)
        start = jax.lax.dynamic_index_in_dim(x_parts, part, keepdims=False)
        here = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, part, keepdims=False), input_parts)
        y = stage(jnp.where(axes.stage() == 0, start, received), here)
        return jax.lax.ppermute(y, name, [(source, source + 1) for source in range(stages - 1)]), y

    first = vary_over(x_parts[0], (name,))
    _, outputs = scan(step, first, jnp.arange(count + stages - 1))
    finished = outputs[stages - 1 :].reshape(x.shape)
    is_last = axes.stage() == stages - 1
    return jax.lax.psum_scatter(jnp.where(is_last, finished, 0), name, scatter_dimension=0, tiled=True)
