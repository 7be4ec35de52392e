"""The original mLSTM block (arXiv 2405.04517): up-projection, causal convolution, head-wise projections, learnable
skip.

Axes: B batch, T time, D local and E global width of the residual stream, I local inner channels in G groups, H local
heads, K key width, V value width.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_hydra.configs import mLSTMConfig
from xlstm_hydra.configs.mlstm import OriginalLayerConfig
from xlstm_hydra.parallel import Axes, Pieces, row_matmul

from ._block import feed_forward_of, mLSTMBlock, post_process_gates, run_cell, split_heads
from ._inputs import BlockInputs, kept
from ._layers import Dense, HeadNorm, Initializer, bias_range_init, init_with, named, output_init, small_init
from ._lm import LanguageModel

_ZEROS = nn.initializers.zeros_init()


class CausalConv1d(nn.Module):
    """Depthwise causal convolution over time."""

    kernel_size: int
    dtype: Any

    @nn.compact
    def __call__(self, x_BTI: jax.Array, inputs: BlockInputs) -> jax.Array:
        """Map `[B, T, I]` to `[B, T, I]`."""
        (B, _, channels), size = x_BTI.shape, self.kernel_size
        init = init_with(1 / math.sqrt(3 * size), "uniform")
        kernel = self.param("kernel", named(init, None, None, "channels"), (size, 1, channels), jnp.float32)
        bias = self.param("bias", named(init, "channels"), (channels,), jnp.float32)
        x_BTI, missing = x_BTI.astype(self.dtype), size - 1
        past = kept(self, inputs, "past", lambda: jnp.zeros((B, size - 1, channels), self.dtype))
        if past is not None:
            x_BTI, missing = jnp.concatenate([past.value, x_BTI], axis=1), 0
            past.value = x_BTI[:, x_BTI.shape[1] - (size - 1) :]
        y_BTI = jax.lax.conv_general_dilated(
            x_BTI,
            kernel.astype(self.dtype),
            window_strides=(1,),
            padding=[(missing, 0)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=channels,
        )
        return y_BTI + bias.astype(self.dtype)


class HeadwiseDense(nn.Module):
    """Block-diagonal linear map: each group of channels is mapped separately. If `stack` is set, `stack` different maps
    are applied to the input, and their kernels are stored in one array."""

    groups: int
    features: int
    dtype: Any
    kernel_init: Initializer
    axes: Axes = Axes()
    bias: bool = False
    stack: int | None = None

    @nn.compact
    def __call__(self, x_BTI: jax.Array) -> jax.Array:
        """Map `[B, T, I]` to `[B, T, out]`, or to `[stack, B, T, out]`."""
        groups = self.axes.local(self.groups)
        x_BTGD = split_heads(x_BTI.astype(self.dtype), groups)
        width, out = x_BTGD.shape[-1], self.axes.local(self.features) // groups
        extra, axis = ((self.stack,), (None,)) if self.stack else ((), ())
        shape = (*extra, groups, out, width)
        kernel = self.param("kernel", named(self.kernel_init, *axis, "channels", None, None), shape, jnp.float32)
        y = jnp.einsum("btgd,...god->...btgo", x_BTGD, kernel.astype(self.dtype))
        y = y.reshape(*y.shape[:-2], -1)
        if self.bias:
            bias = self.param("bias", named(_ZEROS, *axis, "channels"), (*extra, groups * out), jnp.float32)
            y = y + (bias[:, None, None] if self.stack else bias).astype(self.dtype)
        return y


class Gate(nn.Module):
    """Pre-activations of one gate per head, computed from inputs whose channels are split over the tensor mesh axis.

    If `headwise`, the gate of a head depends only on the channels of the head. Otherwise, it depends on all channels,
    and each input has its own kernel, whose rows are split in the same way as the channels of the input.
    """

    num_heads: int
    bias_init: Initializer
    dtype: Any
    headwise: bool
    axes: Axes = Axes()

    @nn.compact
    def __call__(self, **inputs_BTI: jax.Array) -> jax.Array:
        """Map inputs `[B, T, I]` to pre-activations `[B, T, H]`. The names of the inputs are used in the names of their
        kernels."""
        heads = self.axes.local(self.num_heads)
        inputs = {name: x.astype(self.dtype) for name, x in inputs_BTI.items()}
        if self.headwise:
            x_BTHD = jnp.concatenate([split_heads(x, heads) for x in inputs.values()], axis=-1)
            shape = (heads, 1, x_BTHD.shape[-1])
            kernel = self.param("kernel", named(_ZEROS, "heads", None, None), shape, jnp.float32)
            y_BTH = jnp.einsum("bthd,hod->bth", x_BTHD, kernel.astype(self.dtype))
        else:
            x_BTI = jnp.concatenate(list(inputs.values()), axis=-1)
            kernel = jnp.concatenate([self._kernel(name, x.shape[-1]) for name, x in inputs.items()])
            y_BTH = row_matmul(x_BTI, kernel.astype(self.dtype), self.axes)
        bias_H = self.param("bias", named(self.bias_init, "heads"), (heads,), jnp.float32)
        return y_BTH + bias_H.astype(self.dtype)

    def _kernel(self, name: str, width: int) -> jax.Array:
        return self.param(f"{name}_kernel", named(_ZEROS, "channels", None), (width, self.num_heads), jnp.float32)


class mLSTMLayer(nn.Module):  # noqa: N801
    """The original mLSTM layer: up-projection, causal convolution, block-diagonal projections to queries, keys and
    values, cell, learnable skip, output gate, down-projection."""

    config: OriginalLayerConfig
    axes: Axes = Axes()

    @nn.compact
    def __call__(self, x_BTE: jax.Array | Pieces, inputs: BlockInputs) -> jax.Array:
        """Map `[B, T, E]` to `[B, T, D]`."""
        config, axes = self.config, self.axes
        init = small_init(config.embedding_dim, config.init_distribution)
        bias = _ZEROS if config.bias else None

        def up(name: str, width: int) -> jax.Array:
            return Dense(width, "channels", config.dtype, init, axes, bias_init=bias, name=name)(x_BTE)

        xm_BTI, z_BTI = up("proj_up_mlstm", config.inner_dim()), up("proj_up_z", config.v_dim())
        conv_BTI = CausalConv1d(config.conv1d_kernel_size, config.dtype, name="conv1d")(xm_BTI, inputs)
        act_BTI = jax.nn.swish(conv_BTI)
        q, k, v = self._qkv(act_BTI, xm_BTI, init)
        gate_inputs = {
            "qkv": {"q": q, "k": k, "v": v},
            "x_mlstm": {"x": xm_BTI},
            "x_mlstm_conv": {"x": conv_BTI},
            "x_mlstm_conv_act": {"x": act_BTI},
        }[config.gate_input]
        h_BTI = self._cell(q, k, v, gate_inputs, inputs)
        if config.v_dim() != config.inner_dim():
            act_BTI = self._headwise("x_mlstm_conv_scaling", config.v_dim(), init)(act_BTI)
        skip_I = self.param(
            "learnable_skip", named(nn.initializers.ones_init(), "channels"), h_BTI.shape[-1:], jnp.float32
        )
        h_BTI = (h_BTI + skip_I * act_BTI) * jax.nn.swish(z_BTI)
        out = output_init(config.output_init_fn, config.embedding_dim, config.num_blocks, config.init_distribution)
        down = Dense(
            config.embedding_dim, "channels", config.dtype, out, axes, reduce=True, bias_init=bias, name="proj_down"
        )
        return down(h_BTI)

    def _headwise(self, name: str, features: int, init: Initializer, stack: int | None = None) -> HeadwiseDense:
        config = self.config
        groups = config.inner_dim() // config.qkv_proj_blocksize
        return HeadwiseDense(groups, features, config.dtype, init, self.axes, config.bias, stack, name=name)

    def _qkv(self, act_BTI: jax.Array, xm_BTI: jax.Array, init: Initializer) -> tuple[jax.Array, jax.Array, jax.Array]:
        config = self.config
        if config.vmap_qk:
            q, k = self._headwise("qk_proj", config.qk_dim(), init, stack=2)(act_BTI)
        else:
            q, k = (self._headwise(name, config.qk_dim(), init)(act_BTI) for name in ("q_proj", "k_proj"))
        return q, k, self._headwise("v_proj", config.v_dim(), init)(xm_BTI)

    def _cell(self, q, k, v, gate_inputs: dict[str, jax.Array], inputs: BlockInputs) -> jax.Array:
        config, heads = self.config, self.axes.local(self.config.num_heads)

        def gate(name: str, bias_range: Any) -> jax.Array:
            bias_init = bias_range_init(bias_range)
            headwise = config.gate_linear_headwise
            return Gate(config.num_heads, bias_init, config.gate_dtype, headwise, self.axes, name=name)(**gate_inputs)

        i_BTH, f_BTH = gate("igate", config.igate_bias_init_range), gate("fgate", config.fgate_bias_init_range)
        i_BTH, f_BTH = post_process_gates(i_BTH, f_BTH, inputs, config)
        q_BTHK, k_BTHK, v_BTHV = (split_heads(x, heads) for x in (q, k, v))
        if config.add_qk_norm:
            q_BTHK, k_BTHK = (
                HeadNorm(config.cell_norm_type, config.cell_norm_eps, config.dtype, per_head=False, name=name)(x)
                for name, x in (("q_norm", q_BTHK), ("k_norm", k_BTHK))
            )
        h_BTHV = run_cell(self, q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, inputs)
        h_BTHV = HeadNorm(config.cell_norm_type, config.cell_norm_eps, config.dtype, name="outnorm")(h_BTHV)
        return h_BTHV.reshape(*h_BTHV.shape[:2], -1)


class mLSTM(LanguageModel):  # noqa: N801
    """A language model with a stack of original mLSTM blocks."""

    config: mLSTMConfig

    @staticmethod
    def block(config: Any, axes: Axes, name: str, index: int) -> nn.Module:
        """Return an mLSTM block: an mLSTM layer and, if the config has one, a feed-forward layer."""
        return mLSTMBlock(config, mLSTMLayer, feed_forward_of(config), axes=axes, name=name)
