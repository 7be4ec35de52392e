"""Options of the config group `model`: the original mLSTM (arXiv 2405.04517), and v1, the architecture of xLSTM 7B
(arXiv 2503.13427)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem, divisors, either

from ._cell_config import CellConfig
from ._config_dict import config_dataclass
from ._feed_forward_rules import optional_layer_rules, rounded_dim, rounding_rules
from ._fields import NUMERICS, PARAMETERS, affects
from ._rules import at_least, one_of
from .language_model import NORMS, splits


@config_dataclass
class OriginalLayerConfig(CellConfig):
    """Fields of the original mLSTM layer (arXiv 2405.04517): up-projection, causal convolution, block-diagonal
    projections to queries, keys and values, cell, and a skip connection."""

    proj_factor: float = field(default=2.0, metadata=affects(PARAMETERS))
    """Width of the up-projection, as a multiple of the embedding width."""

    round_proj_up_dim_up: bool = field(default=True, metadata=affects(PARAMETERS))
    """Round the up-projection width up to a multiple of `round_proj_up_to_multiple_of`. false: round down."""

    round_proj_up_to_multiple_of: int = field(default=64, metadata=affects(PARAMETERS))
    """The up-projection width is rounded to a multiple of this number of channels."""

    conv1d_kernel_size: int = field(default=4, metadata=affects(PARAMETERS))
    """Kernel size of the causal convolution, in tokens: the current token and those before it."""

    qkv_proj_blocksize: int = field(default=4, metadata=affects(PARAMETERS))
    """Number of channels per block in the block-diagonal projections to queries, keys and values."""

    vmap_qk: bool = field(default=False, metadata=affects(PARAMETERS))
    """Store the query and key projections as one stacked parameter."""

    gate_input: str = field(default="qkv", metadata=affects(PARAMETERS))
    """Input of the input and forget gates: qkv (queries, keys and values), x_mlstm (output of the up-projection),
    x_mlstm_conv (output of the convolution) or x_mlstm_conv_act (output of the convolution after its activation)."""

    gate_linear_headwise: bool = field(default=False, metadata=affects(PARAMETERS))
    """Compute the gates of each head only from the channels of that head."""

    cell_norm_type: str = field(default="layernorm", metadata=affects(NUMERICS))
    """Norm applied to each head of the cell output and, if `add_qk_norm` is set, of the queries and keys: layernorm or
    rmsnorm."""

    def inner_dim(self) -> int:
        """Width of the up-projection."""
        return rounded_dim(self, self.proj_factor)

    def qk_dim(self) -> int:
        """Total width of the queries over all heads, which is also that of the keys."""
        return round(self.qk_dim_factor * self.inner_dim())

    def v_dim(self) -> int:
        """Total width of the values over all heads."""
        return round(self.v_dim_factor * self.inner_dim())

    def module_classes(self) -> tuple[str, ...]:
        """Class names of the modules inside this model."""
        outer = ("Embed", "LMHead", "mLSTMBlock", "xLSTMResBlock", "mLSTMLayer", "Dense", "Norm", "HeadNorm")
        return (*outer, "CausalConv1d", "HeadwiseDense", "Gate")

    def rules(self) -> Iterator[Problem]:
        """Check value ranges and allowed values, and that blocks of channels and heads divide the widths."""
        yield from super().rules()
        yield from at_least(self, 0, "proj_factor", above=True)
        yield from at_least(self, 1, "round_proj_up_to_multiple_of", "conv1d_kernel_size", "qkv_proj_blocksize")
        yield from one_of(self, "gate_input", ("qkv", "x_mlstm", "x_mlstm_conv", "x_mlstm_conv_act"))
        yield from one_of(self, "cell_norm_type", NORMS)
        yield from rounding_rules(self, "proj_factor", "up-projected width")
        inner = self.inner_dim()
        if not self._has_widths() or self.qkv_proj_blocksize < 1:
            return
        follows = {"embedding_dim": self.embedding_dim, "proj_factor": self.proj_factor}
        if inner % self.qkv_proj_blocksize:
            given = {"qkv_proj_blocksize": self.qkv_proj_blocksize, **follows}
            fits = either([d for d in divisors(inner) if d <= 64])
            rule = f"{{qkv_proj_blocksize}} must divide the up-projected width {inner}"
            yield Problem(given, rule, f"Choose {fits}.")
            return
        if self.gate_linear_headwise and self.gate_input != "qkv" and inner % self.num_heads:
            given = {"gate_linear_headwise": True, "num_heads": self.num_heads, **follows}
            fits = either([d for d in divisors(inner) if d <= 64])
            yield Problem(given, f"{{num_heads}} must divide the up-projected width {inner}", f"Choose {fits}.")
        groups = inner // self.qkv_proj_blocksize
        for factor, width in (("qk_dim_factor", self.qk_dim()), ("v_dim_factor", self.v_dim())):
            if width % groups:
                given = {factor: getattr(self, factor), "qkv_proj_blocksize": self.qkv_proj_blocksize, **follows}
                rule = f"the width {width} must be a multiple of the number of channel blocks, {groups}"
                yield Problem(given, rule, f"Change {{{factor}}}, for example to 0.5, 1 or 2.")

    def layout_rules(self, tensor_parallel: int) -> Iterator[Problem]:
        """Also check that the number of blocks of channels is divisible by the number of tensor-parallel devices."""
        yield from super().layout_rules(tensor_parallel)
        groups, rest = divmod(self.inner_dim(), max(self.qkv_proj_blocksize, 1))
        if self._has_mlstm() and rest == 0 and self.num_heads % tensor_parallel == 0:
            yield from splits(self, "qkv_proj_blocksize", tensor_parallel, groups, "number of channel blocks")


@config_dataclass
class mLSTMConfig(OriginalLayerConfig, schema="mlstm"):  # noqa: N801 (the name in the literature)
    """Original mLSTM blocks: the layer of arXiv 2405.04517, optionally followed by a feed-forward layer."""

    flax_class = "xlstm_hydra.models.mLSTM"

    ff_type: str | None = field(default=None, metadata=affects(PARAMETERS))
    """Feed-forward layer after the mLSTM layer in each block, for input x: ffn_gated computes (act(x Wg) * (x Wu)) Wd,
    ffn computes act(x Wu) Wd, where act is `act_fn`. null: no feed-forward layer, as in the published models."""

    ff_proj_factor: float = field(default=4 / 3, metadata=affects(PARAMETERS))
    """Width of the feed-forward layer, as a multiple of the embedding width."""

    ff_round_proj_up_dim_up: bool = field(default=True, metadata=affects(PARAMETERS))
    """Round the feed-forward width up to a multiple of `ff_round_proj_up_to_multiple_of`. false: round down."""

    ff_round_proj_up_to_multiple_of: int = field(default=64, metadata=affects(PARAMETERS))
    """The feed-forward width is rounded to a multiple of this number of channels."""

    act_fn: str = field(default="gelu", metadata=affects(NUMERICS))
    """Activation function of the feed-forward layer: gelu, relu, relu^2, sigmoid, swish or selu."""

    ff_dtype: str | None = field(default=None, metadata=affects(NUMERICS))
    """Data type of the feed-forward layer. null: same as `dtype`."""

    def ff_dim(self) -> int:
        """Width of the feed-forward layer, or 0 without one."""
        return 0 if self.ff_type is None else rounded_dim(self, self.ff_proj_factor, "ff_")

    def module_classes(self) -> tuple[str, ...]:
        """Class names of the modules inside this model."""
        return (*super().module_classes(), *(() if self.ff_type is None else ("FFNResBlock", "FeedForward")))

    def rules(self) -> Iterator[Problem]:
        """Check value ranges and allowed values."""
        yield from super().rules()
        yield from optional_layer_rules(self, "ff_")

    def layout_rules(self, tensor_parallel: int) -> Iterator[Problem]:
        """Also check that the feed-forward width is divisible by the number of tensor-parallel devices."""
        yield from super().layout_rules(tensor_parallel)
        yield from splits(self, "ff_proj_factor", tensor_parallel, self.ff_dim(), "feed-forward width")


@config_dataclass
class mLSTMv1Config(CellConfig, schema="mlstm_v1"):  # noqa: N801
    """Architecture of xLSTM 7B: an mLSTM layer without up-projection, optionally followed by a feed-forward layer."""

    flax_class = "xlstm_hydra.models.mLSTMv1"

    qk_dim_factor: float = 0.5
    """Total width of the queries (and of the keys) over all heads, as a multiple of the embedding width."""

    proj_factor: float = field(default=2.667, metadata=affects(PARAMETERS))
    """Width of the feed-forward layer, as a multiple of the embedding width."""

    round_proj_up_dim_up: bool = field(default=True, metadata=affects(PARAMETERS))
    """Round the feed-forward width up to a multiple of `round_proj_up_to_multiple_of`. false: round down."""

    round_proj_up_to_multiple_of: int = field(default=64, metadata=affects(PARAMETERS))
    """The feed-forward width is rounded to a multiple of this number of channels."""

    ff_type: str | None = field(default="ffn_gated", metadata=affects(PARAMETERS))
    """Feed-forward layer after the mLSTM layer in each block, for input x: ffn_gated computes (act(x Wg) * (x Wu)) Wd,
    ffn computes act(x Wu) Wd, where act is `act_fn`. null: no feed-forward layer."""

    act_fn: str = field(default="swish", metadata=affects(NUMERICS))
    """Activation function of the feed-forward layer: gelu, relu, relu^2, sigmoid, swish or selu."""

    ff_dtype: str | None = field(default=None, metadata=affects(NUMERICS))
    """Data type of the feed-forward layer. null: same as `dtype`."""

    cell_norm_type_v1: str = field(default="layernorm", metadata=affects(NUMERICS))
    """Norm applied to each head of the cell output: layernorm or rmsnorm. If `add_qk_norm` is set, queries and keys are
    normalized with `norm_type`."""

    def ff_dim(self) -> int:
        """Width of the feed-forward layer, or 0 without one."""
        return 0 if self.ff_type is None else rounded_dim(self, self.proj_factor)

    def module_classes(self) -> tuple[str, ...]:
        """Class names of the modules inside this model."""
        names = ["Embed", "LMHead", "mLSTMBlock", "xLSTMResBlock", "mLSTMLayerV1", "Dense", "Norm", "HeadNorm"]
        return (*names, *(() if self.ff_type is None else ("FFNResBlock", "FeedForward")))

    def rules(self) -> Iterator[Problem]:
        """Check value ranges and allowed values."""
        yield from super().rules()
        yield from one_of(self, "cell_norm_type_v1", NORMS)
        yield from optional_layer_rules(self, "")

    def layout_rules(self, tensor_parallel: int) -> Iterator[Problem]:
        """Also check that the feed-forward width is divisible by the number of tensor-parallel devices."""
        yield from super().layout_rules(tensor_parallel)
        yield from splits(self, "proj_factor", tensor_parallel, self.ff_dim(), "feed-forward width")
