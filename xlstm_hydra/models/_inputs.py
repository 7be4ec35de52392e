"""Inputs of a block beside the residual stream, and the state that it keeps to continue tokens.

The state is the Flax collection `cache`. Training keeps nothing. Where `BlockInputs.capacity` is set, every layer whose
output depends on earlier tokens begins from what an earlier call has left there, and leaves there what the next one
needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

CACHE = "cache"
"""Name of the collection."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockInputs:
    """Inputs of a block beside the residual stream.

    Axes: B rows (of a batch, or of a microbatch), T time.
    """

    rows_B: jax.Array
    """Number of each row in the global batch, which its dropout depends on."""

    document_borders_BT: jax.Array | None = None
    """True where a document begins. None: one document per row."""

    dropout_key: jax.Array | None = None
    """Random key of all dropout. None: nothing is dropped."""

    block: jax.Array | int = 0
    """Number of the block in the stack, which its dropout depends on."""

    capacity: int | None = field(default=None, metadata={"static": True})
    """Layers continue the tokens of earlier calls, and keep what the next call needs; attention has room for so many
    tokens in all, the others have no limit. None: these are all the tokens, and nothing is kept."""

    def at_block(self, block: jax.Array | int) -> BlockInputs:
        """The same for another block."""
        return replace(self, block=block)

    def segments_BT(self) -> jax.Array | None:
        """Number of each token's document in its row. None: one document per row."""
        borders = self.document_borders_BT
        return None if borders is None else jnp.cumsum(borders.astype(jnp.int32), axis=1)


def kept(module: nn.Module, inputs: BlockInputs, name: str, start: Callable[[], Any]) -> Any:
    """Return what a module keeps under a name, as a variable that begins as `start()`; None if nothing is kept."""
    return None if inputs.capacity is None else module.variable(CACHE, name, start)
