"""Inputs of a block other than the residual stream, and the state that generation keeps between calls of the model.

The state is the Flax collection `cache`, which is not used in training. If `BlockInputs.capacity` is set, every layer
whose outputs depend on earlier tokens starts from the state of the previous call, and saves the state for the next
call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

CACHE = "cache"
"""Name of the Flax collection that contains the state."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockInputs:
    """Inputs of a block other than the residual stream.

    Axes: B rows (of a batch or a microbatch), T time.
    """

    rows_B: jax.Array
    """Index of each row in the global batch, from which the dropout masks are derived."""

    document_borders_BT: jax.Array | None = None
    """True for the first token of each document. None: one document per row."""

    dropout_key: jax.Array | None = None
    """Random key from which all dropout masks are derived. None: no dropout."""

    block: jax.Array | int = 0
    """Index of the block in the stack, from which the dropout masks are derived."""

    capacity: int | None = field(default=None, metadata={"static": True})
    """Maximum total number of tokens in all calls, if a call continues the tokens of earlier calls. This is the size of
    the attention cache; other layers have no limit. None: the call has all tokens, and no state is kept."""

    def at_block(self, block: jax.Array | int) -> BlockInputs:
        """Return a copy of these inputs for the block with index `block`."""
        return replace(self, block=block)

    def segments_BT(self) -> jax.Array | None:
        """Return the number of each token's document within its row, `int32[B, T]`. None: one document per row."""
        borders = self.document_borders_BT
        return None if borders is None else jnp.cumsum(borders.astype(jnp.int32), axis=1)


def kept(module: nn.Module, inputs: BlockInputs, name: str, start: Callable[[], Any]) -> Any:
    """Return the Flax variable with the cached state of a module, initialized with `start()`; None if no state is
    kept."""
    return None if inputs.capacity is None else module.variable(CACHE, name, start)
