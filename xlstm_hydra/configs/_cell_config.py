"""Config fields of the mLSTM cell, shared by several model families."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field
from typing import Any

from xlstm_hydra.problems import Problem, divisors, either

from ._config_dict import config_dataclass
from ._fields import LAYOUT, NUMERICS, PARAMETERS, affects
from ._rules import at_least, one_of, unused
from .language_model import LanguageModelConfig, is_cap, splits
from .parallel import DTYPES

BACKENDS = ("chunkwise", "quadratic", "recurrent")
"""Implementations of the mLSTM cell. In exact arithmetic, their results are equal."""


@config_dataclass
class CellConfig(LanguageModelConfig):
    """Fields common to all model families with an mLSTM cell."""

    num_heads: int = field(metadata=affects(PARAMETERS))
    """Number of heads per block. Must divide the total widths of the queries and of the values."""

    bias: bool = field(default=False, metadata=affects(PARAMETERS))
    """Add a bias to the dense layers inside the blocks. The gates always have a bias, the output head never does."""

    dropout: float = field(default=0.0, metadata=affects(NUMERICS))
    """Dropout probability for the output of each residual branch, in training only. 0: no dropout."""

    qk_dim_factor: float = field(default=1.0, metadata=affects(PARAMETERS))
    """Total width of the queries (and of the keys) over all heads, as a multiple of the width of the cell's input."""

    v_dim_factor: float = field(default=1.0, metadata=affects(PARAMETERS))
    """Total width of the values over all heads, as a multiple of the width of the cell's input."""

    gate_soft_cap: float | None = field(default=None, metadata=affects(NUMERICS))
    """Soft cap c of the gate pre-activations x, which become c * tanh(x / c). The sign of c has no effect. null: no
    cap."""

    gate_dtype: str = field(default="float32", metadata=affects(NUMERICS))
    """Data type of the gate pre-activations: float32, bfloat16 or float16."""

    igate_bias_init_range: Any = field(default=None, metadata=affects(NUMERICS))
    """Initial biases of the input gates: a number for all heads, or [low, high] for values evenly spaced over the
    heads. null: normally distributed with mean 0 and standard deviation 0.1."""

    fgate_bias_init_range: list[float] = field(default_factory=lambda: [3.0, 6.0], metadata=affects(NUMERICS))
    """Initial biases of the forget gates, [low, high]: evenly spaced from low to high over the heads."""

    add_qk_norm: bool = field(default=False, metadata=affects(PARAMETERS))
    """Normalize the queries and keys of each head."""

    reset_at_document_boundaries: bool = field(default=False, metadata=affects(NUMERICS))
    """Set the forget-gate pre-activation to `reset_fgate_value` at the first token of every document, so that the cell
    forgets the previous document almost entirely."""

    reset_fgate_value: float = field(default=-25.0, metadata=affects(NUMERICS))
    """Forget-gate pre-activation at the first token of every document, if `reset_at_document_boundaries` is set."""

    cell_eps: float = field(default=1e-6, metadata=affects(NUMERICS))
    """Epsilon added to the denominator of the cell's output: max(|n q|, exp(-m)) + cell_eps, with the normalizer n, the
    query q and the stabiliser m. 0: nothing is added."""

    backend: str = field(default="chunkwise", metadata=affects(LAYOUT))
    """Implementation of the mLSTM cell: chunkwise (time linear in the context length), quadratic (all pairs of tokens
    at once) or recurrent (one token after another)."""

    chunk_size: int = field(default=64, metadata=affects(LAYOUT))
    """Number of tokens per chunk of the chunkwise backend. Must divide `context_length`. Larger chunks need more
    memory."""

    def __post_init__(self) -> None:
        if isinstance(self.igate_bias_init_range, tuple):
            self.igate_bias_init_range = list(self.igate_bias_init_range)
        super().__post_init__()

    def inner_dim(self) -> int:
        """Width of the cell's input."""
        return self.embedding_dim

    def qk_dim(self) -> int:
        """Total width of the queries over all heads, which is also that of the keys."""
        return int(self.inner_dim() * self.qk_dim_factor)

    def v_dim(self) -> int:
        """Total width of the values over all heads."""
        return int(self.inner_dim() * self.v_dim_factor)

    def block_classes(self) -> tuple[str, ...]:
        """Class names of the blocks."""
        return ("mLSTMBlock",)

    def dropout_probability(self) -> float:
        """Return `dropout`."""
        return self.dropout

    def layout_rules(self, tensor_parallel: int) -> Iterator[Problem]:
        """Also check that the number of heads is divisible by the number of tensor-parallel devices."""
        yield from super().layout_rules(tensor_parallel)
        yield from splits(self, "num_heads", tensor_parallel)

    def rules(self) -> Iterator[Problem]:
        """Check value ranges and allowed values, and that the number of heads divides the widths."""
        yield from super().rules()
        yield from self.dropout_rules("dropout")
        yield from at_least(self, 1, "num_heads")
        yield from at_least(self, 0, "qk_dim_factor", "v_dim_factor", above=True)
        yield from at_least(self, 0, "cell_eps")
        yield from is_cap(self, "gate_soft_cap")
        yield from at_least(self, 1, "chunk_size")
        yield from one_of(self, "gate_dtype", DTYPES)
        yield from one_of(self, "backend", BACKENDS)
        yield from self._bias_rules()
        if not math.isfinite(self.reset_fgate_value):
            yield Problem({"reset_fgate_value": self.reset_fgate_value}, "must be a finite number")
        if self.backend in BACKENDS and self.backend != "chunkwise":
            yield from unused(self, "chunk_size", "backend", self.backend)
        if self._has_widths():
            yield from self._head_rules()
        chunks = self._has_mlstm() and self.backend == "chunkwise" and self.chunk_size > 0 and self.context_length > 0
        if chunks and self.context_length % self.chunk_size:
            given = {"context_length": self.context_length, "chunk_size": self.chunk_size}
            choices = either([d for d in divisors(self.context_length) if d <= 1024][-6:])
            yield Problem(given, "{chunk_size} must divide {context_length}", f"Set {{chunk_size}} to {choices}.")

    def unused_rules(self) -> Iterator[Problem]:
        """Check that `reset_fgate_value` is set only if it has an effect."""
        if not self.reset_at_document_boundaries:
            yield from unused(self, "reset_fgate_value", "reset_at_document_boundaries", False)

    def _has_mlstm(self) -> bool:
        """True if any block has an mLSTM cell."""
        return True

    def _has_widths(self) -> bool:
        numbers = (self.num_heads, self.inner_dim(), self.qk_dim_factor, self.v_dim_factor)
        return self._has_mlstm() and all(0 < number < math.inf for number in numbers)

    def _bias_rules(self) -> Iterator[Problem]:
        yield from is_range(self, "fgate_bias_init_range")
        value = self.igate_bias_init_range
        numbers = value if isinstance(value, list) and len(value) == 2 else [value]
        if value is not None and not all(_is_number(number) for number in numbers):
            rule = "must be a number, [low, high], or null"
            yield Problem({"igate_bias_init_range": value}, rule, "For example -10.0.")

    def _head_rules(self) -> Iterator[Problem]:
        widths = {"qk_dim_factor": self.qk_dim(), "v_dim_factor": self.v_dim()}
        wrong = {factor: width for factor, width in widths.items() if width < 1 or width % self.num_heads}
        if not wrong:
            return
        given = {"embedding_dim": self.embedding_dim, **{factor: getattr(self, factor) for factor in wrong}}
        rule = " and ".join(f"the width {width} (set by {{{factor}}})" for factor, width in wrong.items())
        fits = either([d for d in divisors(math.gcd(*widths.values())) if d <= 256])
        fix = f"Set {{num_heads}} to {fits}" if min(widths.values()) > 0 else f"Raise {{{next(iter(wrong))}}}"
        yield Problem({**given, "num_heads": self.num_heads}, f"{{num_heads}} must divide {rule}", f"{fix}.")


def is_range(config: CellConfig, key: str) -> Iterator[Problem]:
    """Check that a field is a pair of finite numbers."""
    value = getattr(config, key)
    if len(value) != 2 or not all(map(math.isfinite, value)):
        yield Problem({key: value}, "must be [low, high], for example [3.0,6.0]")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
