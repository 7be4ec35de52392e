"""The feed-forward layer that follows the mixing layer in several families.

Axes: B batch, T time, D share of the residual stream, E its whole width, F this device's share of the feed-forward
width.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from xlstm_hydra.parallel import Axes, Pieces

from ._block import Residual
from ._context import Context
from ._layers import ACTIVATIONS, Dense, output_init, small_init

_ZEROS = nn.initializers.zeros_init()


class FeedForward(nn.Module):
    """act(x Wg) * (x Wu) Wd, or act(x Wu) Wd."""

    config: Any
    axes: Axes = Axes()

    @nn.compact
    def __call__(self, x_BTE: jax.Array | Pieces) -> jax.Array:
        """(B, T, E) -> (B, T, D)."""
        config, axes = self.config, self.axes
        dtype = config.ff_dtype or config.dtype
        bias = _ZEROS if config.bias else None
        init = small_init(config.embedding_dim, config.init_distribution)

        def up(name: str) -> jax.Array:
            return Dense(config.ff_dim(), "mlp", dtype, init, axes, bias_init=bias, name=name)(x_BTE)

        act = ACTIVATIONS[config.act_fn]
        h_BTF = act(up("proj_up_gate")) * up("proj_up") if config.ff_type == "ffn_gated" else act(up("proj_up"))
        out = output_init(config.output_init_fn, config.embedding_dim, config.num_blocks, config.init_distribution)
        return Dense(config.embedding_dim, "mlp", dtype, out, axes, reduce=True, bias_init=bias, name="proj_down")(
            h_BTF
        )


class FFNResBlock(Residual):
    """x + FeedForward(norm(x))."""

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """(B, T, D) -> (B, T, D)."""
        return self.residual(x_BTD, FeedForward(self.config, self.axes, name="ffn"), context, "ffn")
