"""Residual branches and the feed-forward layer, shared by the blocks of all model families, and the block shared by
mLSTM and mLSTM v1.

Axes: B batch, T time, D local and E global width of the residual stream, F local feed-forward width, H local heads.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_hydra.parallel import Axes, Pieces, gather_stream

from ._cell import CELLS, mlstm_continue, mlstm_start
from ._inputs import BlockInputs, kept
from ._layers import ACTIVATIONS, Dense, Norm, dropout, output_init, small_init, soft_cap


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """Reshape `[..., heads * width]` to `[..., heads, width]`."""
    return x.reshape(*x.shape[:-1], heads, -1)


def post_process_gates(
    i_BTH: jax.Array, f_BTH: jax.Array, inputs: BlockInputs, config: Any
) -> tuple[jax.Array, jax.Array]:
    """Apply the soft cap to the pre-activations `[B, T, H]` of both gates. With `reset_at_document_boundaries`, also
    set the pre-activation of the forget gate to `reset_fgate_value` at the first token of each document."""
    i_BTH, f_BTH = soft_cap(i_BTH, config.gate_soft_cap), soft_cap(f_BTH, config.gate_soft_cap)
    borders_BT = inputs.document_borders_BT
    if config.reset_at_document_boundaries and borders_BT is not None:
        f_BTH = jnp.where(borders_BT[..., None], jnp.asarray(config.reset_fgate_value, f_BTH.dtype), f_BTH)
    return i_BTH, f_BTH


def run_cell(
    module: nn.Module,
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHV: jax.Array,
    i_BTH: jax.Array,
    f_BTH: jax.Array,
    inputs: BlockInputs,
) -> jax.Array:
    """Run the mLSTM cell of a layer: in the form selected by `backend`, or with `mlstm_continue` if the layer keeps a
    state between calls.

    Returns:
        h, `[B, T, H, V]`.
    """
    config: Any = module.config  # pyright: ignore[reportAttributeAccessIssue]
    qkvif, options = (q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH), {"chunk_size": config.chunk_size, "eps": config.cell_eps}
    (B, _, H, K), V = q_BTHK.shape, v_BTHV.shape[-1]
    acc = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    state = kept(module, inputs, "cell", lambda: mlstm_start(B, H, K, V, acc))
    if state is None:
        return CELLS[config.backend](*qkvif, **options)
    state.value, h_BTHV = mlstm_continue(state.value, *qkvif, **options)
    return h_BTHV


class Residual(nn.Module):
    """Base class of residual layers, x + branch(norm(x)). Subclasses define the branch. Users select subclasses by
    class name in `parallel.remat` and `parallel.fsdp_modules`."""

    config: Any
    axes: Axes = Axes()

    def residual(
        self, x_BTD: jax.Array, branch: Any, inputs: BlockInputs, name: str, *, whole: bool = True
    ) -> jax.Array:
        """Apply norm, branch, dropout and the optional post norm to the residual stream, and add the result to the
        stream. Maps `[B, T, D]` to `[B, T, D]`.

        Args:
            x_BTD: the residual stream.
            branch: function that maps the normalized stream to `[B, T, D]`.
            inputs: the other inputs of the block.
            name: prefix of the parameter names of the norms.
            whole: True to pass the gathered stream, of width E, to the branch; False to pass the local shard.
        """
        config, axes = self.config, self.axes

        def norm(suffix: str) -> Norm:
            return Norm(config.norm_type, config.cell_norm_eps, config.dtype, axes, name=f"{name}_{suffix}")

        h_BTD = norm("norm")(x_BTD)
        h_BTD = branch(gather_stream(h_BTD, axes) if whole else h_BTD)
        h_BTD = dropout(h_BTD.astype(config.dtype), config.dropout_probability(), axes, inputs, name)
        return x_BTD + (norm("post_norm")(h_BTD) if config.add_post_norm else h_BTD)


class xLSTMResBlock(Residual):  # noqa: N801
    """x + mLSTM(norm(x)). The mLSTM layer has the class `layer`."""

    layer: Any = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array, inputs: BlockInputs) -> jax.Array:
        """Map `[B, T, D]` to `[B, T, D]`."""
        layer = self.layer(self.config, self.axes, name="xlstm")
        return self.residual(x_BTD, lambda x_BTE: layer(x_BTE, inputs), inputs, "xlstm")


class mLSTMBlock(nn.Module):  # noqa: N801
    """One block of the stack: a residual mLSTM layer of class `layer` and, unless `feed_forward` is None, a residual
    feed-forward layer of that class."""

    config: Any
    layer: Any
    feed_forward: Any
    axes: Axes = Axes()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, inputs: BlockInputs) -> jax.Array:
        """Map `[B, T, D]` to `[B, T, D]`."""
        mixing = xLSTMResBlock(self.config, self.axes, self.layer, name="xlstm_res_block")
        x_BTD = mixing(x_BTD, inputs)
        if self.feed_forward is not None:
            x_BTD = self.feed_forward(self.config, self.axes, name="ffn_res_block")(x_BTD, inputs)
        return x_BTD


class FeedForward(nn.Module):
    """Feed-forward layer of hidden width `features` (arXiv 2002.05202): (act(x Wg) * (x Wu)) Wd if `gated`, otherwise
    act(x Wu) Wd, where act is the function `ACTIVATIONS[activation]`."""

    config: Any
    features: int
    dtype: Any
    axes: Axes = Axes()
    activation: str = "swish"
    gated: bool = True
    bias: bool = False

    @nn.compact
    def __call__(self, x_BTE: jax.Array | Pieces) -> jax.Array:
        """Map `[B, T, E]` to `[B, T, D]`."""
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
    def __call__(self, x_BTD: jax.Array, inputs: BlockInputs) -> jax.Array:
        """Map `[B, T, D]` to `[B, T, D]`."""
        config = self.config
        dtype, gated = config.ff_dtype or config.dtype, config.ff_type == "ffn_gated"
        layer = FeedForward(
            config, config.ff_dim(), dtype, self.axes, config.act_fn, gated, bias=config.bias, name="ffn"
        )
        return self.residual(x_BTD, layer, inputs, "ffn")


def feed_forward_of(config: Any) -> type[FFNResBlock] | None:
    """Return the class of the residual feed-forward layer of an mLSTM block; None for blocks without this layer."""
    return None if config.ff_type is None else FFNResBlock
