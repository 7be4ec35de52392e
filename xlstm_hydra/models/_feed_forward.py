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
from ._inputs import Context
from ._layers import ACTIVATIONS, Dense, output_init, small_init


class FeedForward(nn.Module):
    """act(x Wg) * (x Wu) Wd, or (where not `gated`) act(x Wu) Wd, with a hidden width of `features`."""

    config: Any
    features: int
    dtype: Any
    axes: Axes = Axes()
    activation: str = "swish"
    gated: bool = True
    bias: bool = False

    @nn.compact
    def __call__(self, x_BTE: jax.Array | Pieces) -> jax.Array:
        """(B, T, E) -> (B, T, D)."""
        config, axes = self.config, self.axes
        bias = nn.initializers.zeros_init() if self.bias else None
        init = small_init(config.embedding_dim, config.init_distribution)

        def up(name: str) -> jax.Array:
            return Dense(self.features, "mlp", self.dtype, init, axes, bias_init=bias, name=name)(x_BTE)

        act = ACTIVATIONS[self.activation]
        h_BTF = act(up("proj_up_gate")) * up("proj_up") if self.gated else act(up("proj_up"))
        out = output_init(config.output_init_fn, config.embedding_dim, config.num_blocks, config.init_distribution)
        down = Dense(config.embedding_dim, "mlp", self.dtype, out, axes, reduce=True, bias_init=bias, name="proj_down")
        return down(h_BTF)


class FFNResBlock(Residual):
    """x + FeedForward(norm(x))."""

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """(B, T, D) -> (B, T, D)."""
        config = self.config
        dtype, gated = config.ff_dtype or config.dtype, config.ff_type == "ffn_gated"
        layer = FeedForward(
            config, config.ff_dim(), dtype, self.axes, config.act_fn, gated, bias=config.bias, name="ffn"
        )
        return self.residual(x_BTD, layer, context, "ffn")


def feed_forward_of(config: Any) -> type[FFNResBlock] | None:
    """Return the class of the residual feed-forward layer of an mLSTM block. None: the block has none."""
    return None if config.ff_type is None else FFNResBlock
