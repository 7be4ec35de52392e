"""The two mLSTM families: the original block, and v1, the architecture of xLSTM 7B (arXiv 2503.13427)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ._problems import Problem, at_least, divisors, either, idle, one_of
from .language_model import NORMS, LanguageModelConfig, is_cap, splits
from .parallel import DTYPES

ACTIVATIONS = ("gelu", "relu", "relu^2", "sigmoid", "swish", "selu")
"""Activation functions of the feed-forward layer; gelu is the tanh approximation."""

BACKENDS = ("chunkwise", "quadratic", "recurrent")
"""Ways to compute the mLSTM cell, equal in exact arithmetic."""


@dataclass(kw_only=True)
class _CellConfig(LanguageModelConfig):
    """What both mLSTM families give to the cell."""

    num_heads: int
    """Heads per block. Must divide the widths that are split into heads."""

    bias: bool = False
    """Give the dense layers inside the blocks a bias. The gates always have one, the head never."""

    dropout: float = 0.0
    """Probability that an element of a residual branch's output is dropped in training. 0: no dropout."""

    qk_dim_factor: float = 1.0
    """Width of queries and keys, as a multiple of the width that the cell works on."""

    v_dim_factor: float = 1.0
    """Width of values, as a multiple of the width that the cell works on."""

    gate_soft_cap: float | None = None
    """Gate pre-activations become c * tanh(gate / c), which is the same for c and -c. null: no cap."""

    gate_dtype: str = "float32"
    """Type that the gate pre-activations are computed in."""

    igate_bias_init_range: Any = None
    """Initial bias of the input gates: a number for all heads, [low, high] spread evenly over the heads, or
    null for normal values with standard deviation 0.1."""

    fgate_bias_init_range: list[float] = field(default_factory=lambda: [3.0, 6.0])
    """Initial bias of the forget gates, [low, high], spread evenly over the heads."""

    add_qk_norm: bool = False
    """Normalise queries and keys per head."""

    reset_at_document_boundaries: bool = False
    """Set the forget gate to `reset_fgate_value` where a new document begins, so that the cell sees next to
    nothing of the last one."""

    reset_fgate_value: float = -25.0
    """Forget-gate pre-activation at the first token of a document, where `reset_at_document_boundaries` is true."""

    backend: str = "chunkwise"
    """How the cell is computed: chunkwise (linear in the context length), quadratic (all pairs at once) or recurrent
    (token by token)."""

    chunk_size: int = 64
    """Tokens that the chunkwise form computes at once. Must divide the context length; larger chunks need more
    memory."""

    def __post_init__(self) -> None:
        if isinstance(self.igate_bias_init_range, tuple):
            self.igate_bias_init_range = list(self.igate_bias_init_range)
        super().__post_init__()

    def inner_dim(self) -> int:
        """Width that the cell works on."""
        return self.embedding_dim

    def qk_dim(self) -> int:
        """Width of the queries, all heads together."""
        return int(self.inner_dim() * self.qk_dim_factor)

    def v_dim(self) -> int:
        """Width of the values, all heads together."""
        return int(self.inner_dim() * self.v_dim_factor)

    def block_classes(self) -> tuple[str, ...]:
        """Class names of the blocks."""
        return ("mLSTMBlock",)

    def dropout_probability(self) -> float:
        """`dropout`."""
        return self.dropout

    def layout_rules(self, tensor_parallel: int) -> Iterator[Problem]:
        """The heads are cut over the tensor-parallel devices too."""
        yield from super().layout_rules(tensor_parallel)
        yield from splits(self, "num_heads", tensor_parallel)

    def rules(self) -> Iterator[Problem]:
        """Ranges, names, and widths that divide into heads."""
        yield from super().rules()
        yield from self.dropout_rules("dropout")
        yield from at_least(self, 1, "num_heads")
        yield from at_least(self, 0, "qk_dim_factor", "v_dim_factor", above=True)
        yield from is_cap(self, "gate_soft_cap")
        yield from at_least(self, 1, "chunk_size")
        yield from one_of(self, "gate_dtype", DTYPES)
        yield from one_of(self, "backend", BACKENDS)
        yield from self._bias_rules()
        if not math.isfinite(self.reset_fgate_value):
            yield Problem({"reset_fgate_value": self.reset_fgate_value}, "must be a finite number")
        if self.backend in BACKENDS and self.backend != "chunkwise":
            yield from idle(self, "chunk_size", "backend", self.backend)
        if self._has_widths():
            yield from self._head_rules()
        chunks = self._has_mlstm() and self.backend == "chunkwise" and self.chunk_size > 0 and self.context_length > 0
        if chunks and self.context_length % self.chunk_size:
            given = {"context_length": self.context_length, "chunk_size": self.chunk_size}
            choices = either([d for d in divisors(self.context_length) if d <= 1024][-6:])
            yield Problem(given, "{chunk_size} must divide {context_length}", f"Set {{chunk_size}} to {choices}.")

    def idle_rules(self) -> Iterator[Problem]:
        """The forget gate at a border that is none."""
        if not self.reset_at_document_boundaries:
            yield from idle(self, "reset_fgate_value", "reset_at_document_boundaries", False)

    def _has_mlstm(self) -> bool:
        """Whether any block has an mLSTM cell."""
        return True

    def _has_widths(self) -> bool:
        numbers = (self.num_heads, self.inner_dim(), self.qk_dim_factor, self.v_dim_factor)
        return self._has_mlstm() and all(0 < number < math.inf for number in numbers)

    def _bias_rules(self) -> Iterator[Problem]:
        yield from is_range(self, "fgate_bias_init_range")
        value = self.igate_bias_init_range
        numbers = value if isinstance(value, list) and len(value) == 2 else [value]
        if value is not None and not all(_is_number(number) for number in numbers):
            rule = "is a number, [low, high], or null"
            yield Problem({"igate_bias_init_range": value}, rule, "For example -10.0.")

    def _head_rules(self) -> Iterator[Problem]:
        widths = {"qk_dim_factor": self.qk_dim(), "v_dim_factor": self.v_dim()}
        wrong = {factor: width for factor, width in widths.items() if width < 1 or width % self.num_heads}
        if not wrong:
            return
        given = {"embedding_dim": self.embedding_dim, **{factor: getattr(self, factor) for factor in wrong}}
        rule = " and ".join(f"the width {width} that {{{factor}}} gives" for factor, width in wrong.items())
        fits = either([d for d in divisors(math.gcd(*widths.values())) if d <= 256])
        fix = f"Set {{num_heads}} to {fits}" if min(widths.values()) > 0 else f"Set {{{next(iter(wrong))}}} higher"
        yield Problem({**given, "num_heads": self.num_heads}, f"{{num_heads}} must divide {rule}", f"{fix}.")


@dataclass(kw_only=True)
class mLSTMConfig(_CellConfig):  # noqa: N801 (the field's name for it)
    """The original mLSTM block (arXiv 2405.04517): up-projection, causal convolution, head-wise projections, skip."""

    proj_factor: float = 2.0
    """Width of the up-projection, as a multiple of the embedding width."""

    round_proj_up_dim_up: bool = True
    """Round the up-projected width up to the multiple below; otherwise down."""

    round_proj_up_to_multiple_of: int = 64
    """The up-projected width is a multiple of this."""

    conv1d_kernel_size: int = 4
    """Tokens that the causal convolution sees: the current one and those before it."""

    qkv_proj_blocksize: int = 4
    """Channels per block of the block-diagonal maps to queries, keys and values."""

    vmap_qk: bool = False
    """Keep the maps to queries and keys in one parameter."""

    gate_input: str = "qkv"
    """What the gates read: qkv (queries, keys and values), x_mlstm (the up-projection), x_mlstm_conv (after the
    convolution) or x_mlstm_conv_act (after its activation)."""

    gate_linear_headwise: bool = False
    """Let the gates of a head read that head's channels only."""

    cell_norm_type: str = "layernorm"
    """Norm of queries and keys (if any) and of the cell's output, per head: layernorm or rmsnorm."""

    def inner_dim(self) -> int:
        """The up-projected width."""
        return rounded_dim(self, self.proj_factor)

    def qk_dim(self) -> int:
        """Width of the queries, all heads together."""
        return round(self.qk_dim_factor * self.inner_dim())

    def v_dim(self) -> int:
        """Width of the values, all heads together."""
        return round(self.v_dim_factor * self.inner_dim())

    def module_classes(self) -> tuple[str, ...]:
        """Class names of the modules inside this model."""
        outer = ("Embed", "LMHead", "mLSTMBlock", "xLSTMResBlock", "mLSTMLayer", "Dense", "Norm", "HeadNorm")
        return (*outer, "CausalConv1d", "HeadwiseDense", "Gate")

    def rules(self) -> Iterator[Problem]:
        """Ranges, names, and blocks of channels that divide the widths."""
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
                rule = f"the width {width} must be a multiple of the {groups} blocks of channels"
                yield Problem(given, rule, f"Choose {{{factor}}} so that it is, such as 0.5, 1 or 2.")

    def layout_rules(self, tensor_parallel: int) -> Iterator[Problem]:
        """Blocks of channels are cut over the tensor-parallel devices like the heads."""
        yield from super().layout_rules(tensor_parallel)
        groups, rest = divmod(self.inner_dim(), max(self.qkv_proj_blocksize, 1))
        if self._has_mlstm() and rest == 0 and self.num_heads % tensor_parallel == 0:
            yield from splits(self, "qkv_proj_blocksize", tensor_parallel, groups, "number of blocks of channels")


@dataclass(kw_only=True)
class mLSTMv1Config(_CellConfig):  # noqa: N801
    """The architecture of xLSTM 7B: an mLSTM layer on the embedding width, then a feed-forward layer."""

    qk_dim_factor: float = 0.5
    """Width of queries and keys, as a multiple of the embedding width."""

    proj_factor: float = 2.667
    """Width of the feed-forward layer, as a multiple of the embedding width."""

    round_proj_up_dim_up: bool = True
    """Round the feed-forward width up to the multiple below; otherwise down."""

    round_proj_up_to_multiple_of: int = 64
    """The feed-forward width is a multiple of this."""

    ff_type: str = "ffn_gated"
    """ffn_gated: act(x Wg) * (x Wu), then down. ffn: act(x Wu), then down."""

    act_fn: str = "swish"
    """Activation of the feed-forward layer: gelu, relu, relu^2, sigmoid, swish or selu."""

    ff_dtype: str | None = None
    """Type that the feed-forward layer is computed in. null: `dtype`."""

    cell_norm_type_v1: str = "layernorm"
    """Norm of the cell's output, per head: layernorm or rmsnorm. Queries and keys are normalised by `norm_type`."""

    def ff_dim(self) -> int:
        """Width of the feed-forward layer."""
        return rounded_dim(self, self.proj_factor)

    def module_classes(self) -> tuple[str, ...]:
        """Class names of the modules inside this model."""
        names = ["Embed", "LMHead", "mLSTMBlock", "xLSTMResBlock", "FFNResBlock", "mLSTMLayerV1", "FeedForward"]
        return (*names, "Dense", "Norm", "HeadNorm")

    def rules(self) -> Iterator[Problem]:
        """Ranges and names."""
        yield from super().rules()
        yield from at_least(self, 0, "proj_factor", above=True)
        yield from at_least(self, 1, "round_proj_up_to_multiple_of")
        yield from one_of(self, "ff_type", ("ffn_gated", "ffn"))
        yield from one_of(self, "act_fn", ACTIVATIONS)
        yield from one_of(self, "ff_dtype", DTYPES, optional=True)
        yield from one_of(self, "cell_norm_type_v1", NORMS)
        yield from rounding_rules(self, "proj_factor", "feed-forward width")

    def layout_rules(self, tensor_parallel: int) -> Iterator[Problem]:
        """The feed-forward width is cut over the tensor-parallel devices too."""
        yield from super().layout_rules(tensor_parallel)
        yield from splits(self, "proj_factor", tensor_parallel, self.ff_dim(), "feed-forward width")


def is_range(config: _CellConfig, key: str) -> Iterator[Problem]:
    """The rule that a field is a pair of finite numbers."""
    value = getattr(config, key)
    if len(value) != 2 or not all(map(math.isfinite, value)):
        yield Problem({key: value}, "is [low, high], for example [3.0,6.0]")


def rounded_dim(config: mLSTMConfig | mLSTMv1Config, factor: float) -> int:
    """`factor * embedding_dim`, rounded to the multiple that the config asks for. 0 where there is no such width."""
    multiple = max(config.round_proj_up_to_multiple_of, 1)
    units = factor * config.embedding_dim / multiple
    if not 0 < units < math.inf:
        return 0
    return (math.ceil(units) if config.round_proj_up_dim_up else math.floor(units)) * multiple


def rounding_rules(config: mLSTMConfig | mLSTMv1Config, key: str, name: str) -> Iterator[Problem]:
    """The rule that rounding leaves something of the width that the factor `key` gives."""
    multiple, factor = config.round_proj_up_to_multiple_of, getattr(config, key)
    exists = multiple > 0 and 0 < factor < math.inf and config.embedding_dim > 0
    if exists and rounded_dim(config, factor) < 1:
        given = {key: factor, "round_proj_up_to_multiple_of": multiple, "embedding_dim": config.embedding_dim}
        yield Problem(given, f"the {name} must be at least 1", "Set {round_proj_up_dim_up}=true.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
