"""Pipeline parallelism: the stack of blocks cut into stages, one per device of the pipeline mesh axis.

GPipe (arXiv 1811.06965): a batch goes through the stages in M microbatches. In tick t, stage s computes microbatch
t - s and passes it on; after M + S - 1 ticks all have left the last of S stages. The backward pass is the transpose of
this loop, so it runs the same schedule backwards.

Embedding and head are not cut: every stage holds them (FSDP can shard them) and computes what costs little or divides
evenly. The embedding is a lookup, which all stages make and the first one uses. The head is a large product, so the
last stage hands every stage an equal share of the rows, and no stage waits for another's head.
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
    """The share of ticks in which a stage has nothing to do, (S - 1) / (M + S - 1)."""
    return (stages - 1) / (microbatches + stages - 1)


def run_pipeline(
    scan: Callable[[Step, jax.Array, jax.Array], tuple[jax.Array, jax.Array]], x: jax.Array, inputs: Any, axes: Axes
) -> jax.Array:
    """Send the rows of `x` through all stages.

    Args:
        scan: called as `scan(step, carry, ticks)`, it runs `step(stage, carry, tick)` over the ticks like
            `jax.lax.scan`, where `stage(x, inputs)` computes this device's blocks on one microbatch.
        x: rows (B, ...), where B is a multiple of the number of microbatches and of stages.
        inputs: a tree of arrays (B, ...) that go with the rows.
        axes: the mesh axes, with a pipeline axis.

    Returns:
        What the last stage gives for the rows that `Axes.stage_rows` gives this stage, (B / stages, ...).
    """
    assert axes.pipeline is not None
    name, count, stages = axes.pipeline, axes.microbatches, axes.stages

    def cut(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(count, leaf.shape[0] // count, *leaf.shape[1:])

    x_parts, input_parts = cut(x), jax.tree.map(cut, inputs)

    def step(stage: Stage, received: jax.Array, tick: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Before its first and after its last microbatch a stage computes one anew, and nobody uses the result: its
        # values are as good as real ones, where those of zeros might not be finite.
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
