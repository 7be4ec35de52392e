"""xLSTM[a:b] (arXiv 2405.04517): a stack of original mLSTM blocks and sLSTM blocks.

Axes: B batch, T time, D local width of the residual stream, G the four pre-activations, H local heads, V channels of a
head. The channels of the local heads are the local shard of the residual stream, so the sLSTM layer needs no
communication over the tensor mesh axis.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_hydra.configs import xLSTMConfig
from xlstm_hydra.parallel import Axes

from ._block import FFNResBlock, Residual, mLSTMBlock, split_heads
from ._inputs import BlockInputs, kept
from ._layers import HeadNorm, bias_range_init, named, small_init
from ._lm import LanguageModel
from ._mlstm import CausalConv1d, HeadwiseDense, mLSTMLayer
from ._slstm_cell import slstm, slstm_continue, slstm_start

_ZEROS = nn.initializers.zeros_init()


class sLSTMLayer(nn.Module):  # noqa: N801
    """The sLSTM layer: optional causal convolution, head-wise projections to pre-activations, cell, head norm. All
    of these have the width of the residual stream."""

    config: xLSTMConfig
    axes: Axes = Axes()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, inputs: BlockInputs) -> jax.Array:
        """Map `[B, T, D]` to `[B, T, D]`."""
        config, heads = self.config, self.axes.local(self.config.num_heads)
        conv_BTD = x_BTD
        if config.slstm_conv1d_kernel_size:
            conv = CausalConv1d(config.slstm_conv1d_kernel_size, config.dtype, name="conv1d")
            conv_BTD = jax.nn.swish(conv(x_BTD, inputs))
        x_BTGHV = jnp.stack(
            [
                self._project("zgate", x_BTD, config.dtype),
                self._project("igate", conv_BTD, config.gate_dtype),
                self._project("fgate", conv_BTD, config.gate_dtype),
                self._project("ogate", x_BTD, config.dtype),
            ],
            axis=2,
        )
        width = x_BTGHV.shape[-1]
        recurrent_HVGW = self.param(
            "recurrent_kernel", named(_ZEROS, "heads", None, None, None), (heads, width, 4, width), jnp.float32
        )
        h_BTHV = self._cell(x_BTGHV, recurrent_HVGW, inputs)
        h_BTHV = HeadNorm(config.cell_norm_type, config.cell_norm_eps, config.dtype, name="outnorm")(h_BTHV)
        return h_BTHV.reshape(x_BTD.shape)

    def _cell(self, x_BTGHV: jax.Array, recurrent_HVGW: jax.Array, inputs: BlockInputs) -> jax.Array:
        config, (B, _, _, H, V) = self.config, x_BTGHV.shape
        borders_BT = inputs.document_borders_BT if config.reset_at_document_boundaries else None
        options = {"forget_gate": config.slstm_forget_gate, "gate_soft_cap": config.gate_soft_cap}
        state = kept(self, inputs, "cell", lambda: slstm_start((B, H, V), x_BTGHV.dtype))
        if state is None:
            return slstm(x_BTGHV, recurrent_HVGW, borders_BT, **options)
        state.value, h_BTHV = slstm_continue(state.value, x_BTGHV, recurrent_HVGW, borders_BT, **options)
        return h_BTHV

    def _project(self, name: str, x_BTD: jax.Array, dtype: Any) -> jax.Array:
        """Return one of the four pre-activations, `[B, T, H, V]`. Each head uses only its own channels."""
        config, heads = self.config, self.axes.local(self.config.num_heads)
        init = small_init(config.embedding_dim, config.init_distribution)
        project = HeadwiseDense(config.num_heads, config.embedding_dim, dtype, init, self.axes, name=name)
        y_BTHV = split_heads(project(x_BTD), heads)
        y_BTHV = y_BTHV.astype(jnp.promote_types(y_BTHV.dtype, jnp.float32))
        spread = config.slstm_fgate_bias_init_range if name == "fgate" else 0.0
        bias_HV = self.param(f"{name}_bias", named(_per_head(spread), "heads", None), y_BTHV.shape[-2:], jnp.float32)
        return y_BTHV + bias_HV


def _per_head(spread: float | list[float]) -> Any:
    """Return an initializer that gives every head the same biases; see `bias_range_init` for `spread`."""
    init = bias_range_init(spread)
    return lambda key, shape, dtype=jnp.float32: jnp.broadcast_to(init(key, shape[1:], dtype), shape)


class sLSTMResBlock(Residual):  # noqa: N801
    """x + sLSTM(norm(x))."""

    @nn.compact
    def __call__(self, x_BTD: jax.Array, inputs: BlockInputs) -> jax.Array:
        """Map `[B, T, D]` to `[B, T, D]`."""
        layer = sLSTMLayer(self.config, self.axes, name="slstm")
        return self.residual(x_BTD, lambda x_BTD: layer(x_BTD, inputs), inputs, "slstm", whole=False)


class sLSTMBlock(nn.Module):  # noqa: N801
    """A block of the stack: the residual sLSTM layer, then the residual feed-forward layer."""

    config: xLSTMConfig
    axes: Axes = Axes()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, inputs: BlockInputs) -> jax.Array:
        """Map `[B, T, D]` to `[B, T, D]`."""
        x_BTD = sLSTMResBlock(self.config, self.axes, name="slstm_res_block")(x_BTD, inputs)
        return FFNResBlock(self.config, self.axes, name="ffn_res_block")(x_BTD, inputs)


class xLSTM(LanguageModel):  # noqa: N801
    """A language model with a stack of original mLSTM blocks and sLSTM blocks."""

    config: xLSTMConfig

    @staticmethod
    def block(config: Any, axes: Axes, name: str, index: int) -> nn.Module:
        """Return an sLSTM block if the config lists this index as an sLSTM block; otherwise an original mLSTM block."""
        if config.is_slstm(index):
            return sLSTMBlock(config, axes, name=name)
        return mLSTMBlock(config, mLSTMLayer, feed_forward=None, axes=axes, name=name)
