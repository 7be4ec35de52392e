"""Options of the config group `model`: xLSTM[a:b] (arXiv 2405.04517), a stack of mLSTM and sLSTM blocks in the ratio
a:b."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem, divisors, either

from ._cell_config import is_range
from ._config_dict import config_dataclass
from ._feed_forward_rules import layer_rules, rounded_dim, rounding_rules
from ._fields import NUMERICS, PARAMETERS, affects
from ._rules import at_least, one_of, unused
from .language_model import splits
from .mlstm import OriginalLayerConfig

_MLSTM_FIELDS = (
    *("proj_factor", "conv1d_kernel_size", "qkv_proj_blocksize", "vmap_qk", "gate_input", "gate_linear_headwise"),
    *("qk_dim_factor", "v_dim_factor", "igate_bias_init_range", "fgate_bias_init_range", "add_qk_norm"),
    *("reset_fgate_value", "cell_eps", "backend", "chunk_size"),
)
_SLSTM_FIELDS = (
    *("slstm_conv1d_kernel_size", "slstm_forget_gate", "slstm_fgate_bias_init_range", "slstm_proj_factor"),
    *("ff_type", "act_fn", "ff_dtype"),
)


@config_dataclass
class xLSTMConfig(OriginalLayerConfig, schema="xlstm"):  # noqa: N801 (the name in the literature)
    """xLSTM[a:b]: a stack of original mLSTM blocks, with sLSTM blocks at the positions in `slstm_at`.

    An sLSTM block (section 2.2 of the paper) has a scalar memory per channel and gates that depend on the previous
    output of the same head. A feed-forward layer follows. The fields that begin with `slstm_` and the feed-forward
    fields `ff_type`, `act_fn` and `ff_dtype` apply only to sLSTM blocks. `gate_soft_cap`, `gate_dtype` (input and
    forget gates), `cell_norm_type` and the rounding of widths apply to both types of blocks. All other fields of the
    layer apply only to mLSTM blocks."""

    flax_class = "xlstm_hydra.models.xLSTM"

    slstm_at: list[int] = field(default_factory=list, metadata=affects(PARAMETERS))
    """Indices of the sLSTM blocks in the stack, from 0, in any order; all other blocks are mLSTM blocks. If
    `scan_blocks` is set, one period of the pattern is compiled and scanned; if the pattern does not repeat, every block
    is compiled."""

    slstm_conv1d_kernel_size: int = field(default=4, metadata=affects(PARAMETERS))
    """Kernel size, in tokens, of the causal convolution before the input and forget gates of the sLSTM. 0: no
    convolution."""

    slstm_forget_gate: str = field(default="sigmoid", metadata=affects(NUMERICS))
    """Activation function of the sLSTM forget gate: sigmoid or exp. The input gate always uses exp."""

    slstm_fgate_bias_init_range: list[float] = field(default_factory=lambda: [3.0, 6.0], metadata=affects(NUMERICS))
    """Initial biases of the sLSTM forget gates, [low, high]: evenly spaced from low to high over the channels of each
    head."""

    slstm_proj_factor: float = field(default=4 / 3, metadata=affects(PARAMETERS))
    """Width of the feed-forward layer after the sLSTM, as a multiple of the embedding width. Rounded in the same way as
    the up-projection of the mLSTM blocks."""

    ff_type: str = field(default="ffn_gated", metadata=affects(PARAMETERS))
    """Feed-forward layer of the sLSTM blocks, for input x: ffn_gated computes (act(x Wg) * (x Wu)) Wd, ffn computes
    act(x Wu) Wd, where act is `act_fn`."""

    act_fn: str = field(default="gelu", metadata=affects(NUMERICS))
    """Activation function of the feed-forward layer: gelu, relu, relu^2, sigmoid, swish or selu."""

    ff_dtype: str | None = field(default=None, metadata=affects(NUMERICS))
    """Data type of the feed-forward layer. null: same as `dtype`."""

    reset_at_document_boundaries: bool = False
    """Reset the memory at the start of every document: the mLSTM forget gate is set to `reset_fgate_value`, and the
    sLSTM restarts from its initial state."""

    def __post_init__(self) -> None:
        self.slstm_at = sorted(self.slstm_at)
        super().__post_init__()

    def ff_dim(self) -> int:
        """Width of the feed-forward layer in the sLSTM blocks."""
        return rounded_dim(self, self.slstm_proj_factor)

    def is_slstm(self, block: int) -> bool:
        """True if the block with this index, in the stack or in one period of the pattern, is an sLSTM block."""
        return block in self.slstm_at

    def scan_period(self) -> int:
        """Return the number of blocks after which the pattern of sLSTM and mLSTM blocks repeats."""
        places = self._slstm_places()
        for period in divisors(self.num_blocks):
            first = {block for block in places if block < period}
            if len(first) * (self.num_blocks // period) != len(places):
                continue
            if places == {block + start for start in range(0, self.num_blocks, period) for block in first}:
                return period
        return 1

    def block_classes(self) -> tuple[str, ...]:
        """Class names of the block types in the stack."""
        return (*(["mLSTMBlock"] if self._has_mlstm() else []), *(["sLSTMBlock"] if self.slstm_at else []))

    def module_classes(self) -> tuple[str, ...]:
        """Class names of the modules inside this model."""
        names: dict[str, None] = dict.fromkeys(("Embed", "LMHead"))
        if self._has_mlstm():
            names |= dict.fromkeys(super().module_classes())
        if self.slstm_at:
            names |= dict.fromkeys(("sLSTMBlock", "sLSTMResBlock", "FFNResBlock", "sLSTMLayer", "FeedForward"))
            names |= dict.fromkeys(("Dense", "Norm", "HeadNorm", "HeadwiseDense"))
        if self.slstm_at and self.slstm_conv1d_kernel_size:
            names["CausalConv1d"] = None
        if self.scan_blocks and self.scan_period() > 1:
            names["BlockGroup"] = None
        return tuple(names)

    def rules(self) -> Iterator[Problem]:
        """Check value ranges, allowed values and block indices, and that no field of an absent block type is set."""
        yield from super().rules()
        yield from self._place_rules()
        yield from at_least(self, 0, "slstm_conv1d_kernel_size")
        yield from at_least(self, 0, "slstm_proj_factor", above=True)
        yield from one_of(self, "slstm_forget_gate", ("sigmoid", "exp"))
        yield from layer_rules(self)
        yield from is_range(self, "slstm_fgate_bias_init_range")
        if not self.slstm_at:
            for key in _SLSTM_FIELDS:
                yield from unused(self, key, "slstm_at", self.slstm_at)
            return
        yield from rounding_rules(self, "slstm_proj_factor", "feed-forward width")
        if self.num_heads > 0 and self.embedding_dim % self.num_heads:
            given = {"embedding_dim": self.embedding_dim, "num_heads": self.num_heads}
            fits = either([d for d in divisors(self.embedding_dim) if d <= 64])
            yield Problem(
                given, "{num_heads} must divide {embedding_dim} for the sLSTM", f"Set {{num_heads}} to {fits}."
            )
        if not self._has_mlstm():
            for key in _MLSTM_FIELDS:
                yield from unused(self, key, "slstm_at", self.slstm_at)

    def _place_rules(self) -> Iterator[Problem]:
        if self.num_blocks < 1:
            return
        if outside := [block for block in self.slstm_at if not 0 <= block < self.num_blocks]:
            given = {"slstm_at": self.slstm_at, "num_blocks": self.num_blocks}
            yield Problem(
                given, f"there is no block {either(outside)}", f"Blocks are numbered from 0 to {self.num_blocks - 1}."
            )
        if twice := sorted({block for block in self.slstm_at if self.slstm_at.count(block) > 1}):
            yield Problem({"slstm_at": self.slstm_at}, f"lists block {either(twice)} more than once")

    def layout_rules(self, tensor_parallel: int) -> Iterator[Problem]:
        """Also check that the feed-forward width is divisible by the number of tensor-parallel devices."""
        yield from super().layout_rules(tensor_parallel)
        if self.slstm_at:
            yield from splits(self, "slstm_proj_factor", tensor_parallel, self.ff_dim(), "feed-forward width")

    def longer_stack(self, num_blocks: int) -> str:
        """Return the settings for a longer stack with the same pattern, as text for the fix of a problem."""
        period = self.scan_period()
        first = [block for block in self.slstm_at if block < period]
        if num_blocks > 1000:
            return f"{{num_blocks}} to {num_blocks} and repeat {{slstm_at}} every {period} blocks"
        places = [start + block for start in range(0, num_blocks, period) for block in first]
        return f"{{num_blocks}} to {num_blocks} and {{slstm_at}} to [{','.join(map(str, places))}]"

    def _has_mlstm(self) -> bool:
        return len(self._slstm_places()) < max(self.num_blocks, 1)

    def _slstm_places(self) -> set[int]:
        return {block for block in self.slstm_at if 0 <= block < self.num_blocks}
