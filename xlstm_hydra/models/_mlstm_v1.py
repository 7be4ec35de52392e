"""mLSTM v1, the architecture of xLSTM 7B (arXiv 2503.13427): an mLSTM layer without up-projection, then a feed-forward
layer.

Axes: B batch, T time, D local and E global width of the residual stream, H local heads, K key width, V value width.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from xlstm_hydra.configs import mLSTMv1Config
from xlstm_hydra.parallel import Axes, Pieces

from ._block import feed_forward_of, mLSTMBlock, post_process_gates, run_cell, split_heads
from ._inputs import BlockInputs
from ._layers import Dense, HeadNorm, bias_range_init, output_init, small_init
from ._lm import LanguageModel

_ZEROS = nn.initializers.zeros_init()


class mLSTMLayerV1(nn.Module):  # noqa: N801
    """The mLSTM layer of mLSTM v1: projections to queries, keys, values and gates; cell; head norm; output gate; output
    projection."""

    config: mLSTMv1Config
    axes: Axes = Axes()

    @nn.compact
    def __call__(self, x_BTE: jax.Array | Pieces, inputs: BlockInputs) -> jax.Array:
        """Map `[B, T, E]` to `[B, T, D]`."""
        config, axes = self.config, self.axes
        H = axes.local(config.num_heads)
        bias = _ZEROS if config.bias else None
        init = small_init(config.embedding_dim, config.init_distribution)

        def project(name: str, width: int, init=init) -> jax.Array:
            return Dense(width, "heads", config.dtype, init, axes, bias_init=bias, name=name)(x_BTE)

        def gate(name: str, bias_range: Any) -> jax.Array:
            bias_init = bias_range_init(bias_range)
            return Dense(config.num_heads, "heads", config.gate_dtype, _ZEROS, axes, bias_init=bias_init, name=name)(
                x_BTE
            )

        q_BTHK = split_heads(project("dense_q", config.qk_dim()), H)
        k_BTHK = split_heads(project("dense_k", config.qk_dim()), H)
        v_BTHV = split_heads(project("dense_v", config.v_dim()), H)
        o_BTHV = split_heads(project("dense_o", config.v_dim(), _ZEROS), H)
        i_BTH, f_BTH = gate("igate", config.igate_bias_init_range), gate("fgate", config.fgate_bias_init_range)
        i_BTH, f_BTH = post_process_gates(i_BTH, f_BTH, inputs, config)
        if config.add_qk_norm:
            q_BTHK, k_BTHK = (
                HeadNorm(config.norm_type, config.cell_norm_eps, config.dtype, per_head=False, name=name)(x)
                for name, x in (("q_norm", q_BTHK), ("k_norm", k_BTHK))
            )
        h_BTHV = run_cell(self, q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, inputs)
        h_BTHV = HeadNorm(config.cell_norm_type_v1, config.cell_norm_eps, config.dtype, name="outnorm")(h_BTHV)
        h_BTHV = jax.nn.sigmoid(o_BTHV) * h_BTHV
        out = output_init(config.output_init_fn, config.embedding_dim, config.num_blocks, config.init_distribution)
        down = Dense(
            config.embedding_dim, "heads", config.dtype, out, axes, reduce=True, bias_init=bias, name="proj_down"
        )
        return down(h_BTHV.reshape(*h_BTHV.shape[:2], -1))


class mLSTMv1(LanguageModel):  # noqa: N801
    """A language model with a stack of mLSTM v1 blocks, such as xLSTM 7B."""

    config: mLSTMv1Config

    @staticmethod
    def block(config: Any, axes: Axes, name: str, index: int) -> nn.Module:
        """Return an mLSTM block: an mLSTM layer and, if the config has one, a feed-forward layer."""
        return mLSTMBlock(config, mLSTMLayerV1, feed_forward_of(config), axes=axes, name=name)
