"""What a block knows of the examples beside the residual stream."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """What a block knows of the examples beside the residual stream.

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

    def at_block(self, block: jax.Array | int) -> Context:
        """The same for another block."""
        return replace(self, block=block)

    def segments_BT(self) -> jax.Array | None:
        """Number of each token's document in its row. None: one document per row."""
        borders = self.document_borders_BT
        return None if borders is None else jnp.cumsum(borders.astype(jnp.int32), axis=1)
