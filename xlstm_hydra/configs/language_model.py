"""Config fields common to our language models, which consist of an embedding, a stack of residual blocks and a head."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.codec import plain_dtypes
from xlstm_hydra.problems import Problem, divisors, either

from ._config_dict import config_dataclass
from ._fields import NUMERICS, PARAMETERS, affects
from ._rules import at_least, below, one_of, unused
from .model import SubModelConfig
from .parallel import DTYPES

NORMS = ("layernorm", "rmsnorm")
"""Normalisation layers. Both have a scale but no bias."""

INIT_DISTRIBUTIONS = ("normal", "truncated_normal", "uniform")
"""Distributions of initial parameters. Each layer sets its standard deviation."""

OUTPUT_INITS = ("wang", "wang2", "small", "zeros")
"""Values of `output_init_fn`."""


@config_dataclass
class LanguageModelConfig(SubModelConfig):
    """Fields common to our language models, which consist of an embedding, a stack of residual blocks and an output
    head."""

    vocab_size: int = field(default=50304, metadata=affects(PARAMETERS))
    """Size of the vocabulary: token ids are 0 to `vocab_size` - 1."""

    embedding_dim: int = field(metadata=affects(PARAMETERS))
    """Embedding width D: the width of the residual stream."""

    num_blocks: int = field(metadata=affects(PARAMETERS))
    """Number of blocks L in the stack."""

    context_length: int = field(default=2048, metadata=affects(NUMERICS))
    """Number of tokens per training example."""

    dtype: str = field(default="bfloat16", metadata=affects(NUMERICS))
    """Data type of activations: float32, bfloat16 or float16. Parameters are always stored in float32."""

    lm_head_dtype: str | None = field(default="float32", metadata=affects(NUMERICS))
    """Data type of the output head, the projection to the vocabulary. null: same as `dtype`. The loss is always
    computed in float32."""

    logits_soft_cap: float | None = field(default=None, metadata=affects(NUMERICS))
    """Soft cap c of the logits x, which become c * tanh(x / c). The sign of c has no effect. null: no cap."""

    tie_weights: bool = field(default=False, metadata=affects(PARAMETERS))
    """Use the embedding table as the weights of the output head."""

    weight_decay_on_embedding: bool = field(default=False, metadata=affects(NUMERICS))
    """Apply the optimizer's weight decay to the embedding table too."""

    add_embedding_dropout: bool = field(default=False, metadata=affects(NUMERICS))
    """Apply dropout to the token embeddings too."""

    add_post_blocks_norm: bool = field(default=True, metadata=affects(PARAMETERS))
    """Normalise the residual stream before the output head."""

    add_post_norm: bool = field(default=False, metadata=affects(PARAMETERS))
    """Normalise the output of every residual branch before it is added to the residual stream."""

    norm_type: str = field(default="rmsnorm", metadata=affects(NUMERICS))
    """Norm before every residual branch and before the output head: layernorm or rmsnorm."""

    norm_eps: float = field(default=1e-6, metadata=affects(NUMERICS))
    """Epsilon added to the variance in the norm before the output head."""

    cell_norm_eps: float = field(default=1e-6, metadata=affects(NUMERICS))
    """Epsilon added to the variance in every norm inside the blocks."""

    scan_blocks: bool = field(default=True, metadata=affects(PARAMETERS))
    """Compile one block and scan it over the stack, with the parameters of all blocks stacked along a leading array
    axis. false: compile every block, and store the parameters of each block separately."""

    init_distribution: str = field(default="normal", metadata=affects(NUMERICS))
    """Distribution of the initial parameters of the blocks: normal, truncated_normal (truncated at two standard
    deviations, not rescaled) or uniform."""

    init_distribution_embed: str = field(default="normal", metadata=affects(NUMERICS))
    """Distribution of the initial embedding table, with the same choices as `init_distribution`."""

    init_distribution_out: str = field(default="normal", metadata=affects(NUMERICS))
    """Distribution of the initial weights of the output head, with the same choices as `init_distribution`."""

    output_init_fn: str = field(default="wang", metadata=affects(NUMERICS))
    """Standard deviation of the initial projections back to the residual stream, for embedding width D and L blocks:
    2/(L sqrt(D)) for wang, 1/(L sqrt(D)) for wang2, sqrt(2/(5 D)) for small, and 0 for zeros."""

    def __post_init__(self) -> None:
        plain_dtypes(self)
        super().__post_init__()

    def dropout_probability(self) -> float:
        """Return the dropout probability of the residual branches. Each family stores it in a field with a different
        name."""
        raise NotImplementedError

    def rules(self) -> Iterator[Problem]:
        """Check value ranges and allowed values."""
        yield from at_least(self, 1, "vocab_size", "embedding_dim", "num_blocks", "context_length")
        yield from at_least(self, 0, "norm_eps", "cell_norm_eps", above=True)
        yield from is_cap(self, "logits_soft_cap")
        yield from one_of(self, "dtype", DTYPES)
        yield from one_of(self, "lm_head_dtype", DTYPES, optional=True)
        yield from one_of(self, "norm_type", NORMS)
        for key in ("init_distribution", "init_distribution_embed", "init_distribution_out"):
            yield from one_of(self, key, INIT_DISTRIBUTIONS)
        yield from one_of(self, "output_init_fn", OUTPUT_INITS)
        if self.tie_weights:
            yield from unused(self, "init_distribution_out", "tie_weights", True)
        if not self.add_post_blocks_norm:
            yield from unused(self, "norm_eps", "add_post_blocks_norm", False)

    def dropout_rules(self, key: str) -> Iterator[Problem]:
        """Check that the dropout probability in the field `key` is in [0, 1)."""
        yield from at_least(self, 0, key)
        yield from below(self, 1, key)

    def layout_rules(self, tensor_parallel: int) -> Iterator[Problem]:
        """Check that the vocabulary size and the embedding width are divisible by the number of tensor-parallel
        devices."""
        for key in ("vocab_size", "embedding_dim"):
            yield from splits(self, key, tensor_parallel)

    def scan_period(self) -> int:
        """Return the number of blocks after which the pattern of block types repeats. It is also the number of blocks
        per scan step."""
        return 1

    def pipeline_rules(self, stages: int) -> Iterator[Problem]:
        """Check that the scanned stack divides into pipeline stages of equal size."""
        if stages > 1 and not self.scan_blocks:
            given = {"scan_blocks": False, "/parallel.pipeline_axis_size": stages}
            yield Problem(
                given, "pipeline parallelism requires all blocks in one scanned stack", "Set {scan_blocks}=true."
            )
        period = self.scan_period()
        units = self.num_blocks // max(period, 1)
        if self.num_blocks > 0 and self.num_blocks % period == 0 and units % stages:
            what = "{num_blocks}" if period == 1 else f"the number of groups of {period} blocks, {units}"
            given = {"num_blocks": self.num_blocks, "/parallel.pipeline_axis_size": stages}
            longer = self.longer_stack(-(-units // stages) * stages * period)
            fix = f"Set {{/parallel.pipeline_axis_size}} to {either(divisors(units))}, or {longer}."
            yield Problem(given, f"{{/parallel.pipeline_axis_size}} must divide {what}", fix)

    def longer_stack(self, num_blocks: int) -> str:
        """Return the settings for a stack of `num_blocks` blocks (a multiple of the period), as text for the fix of a
        problem."""
        return f"{{num_blocks}} to {num_blocks}"


def is_cap(config: SubModelConfig, key: str) -> Iterator[Problem]:
    """Check that a soft cap is null or a finite number other than 0."""
    value = getattr(config, key)
    if value is not None and not (value != 0 and math.isfinite(value)):
        yield Problem({key: value}, "must be a finite number other than 0", f"Set {{{key}}}=null for no cap.")


def splits(
    config: SubModelConfig, key: str, tensor_parallel: int, width: int | None = None, what: str = ""
) -> Iterator[Problem]:
    """Check that the number of tensor-parallel devices divides a field or, if `width` is given, a width that is
    computed from the field. `what` is the name of the width in the message."""
    value = getattr(config, key)
    number = value if width is None else width
    if number < 1 or number % tensor_parallel == 0:
        return
    fix = f"Set {{/parallel.model_axis_size}} to {either([d for d in divisors(number) if d <= 64])}"
    if width is None:
        fix += f", or {{{key}}} to a multiple of {tensor_parallel}"
    whole = f"{{{key}}}" if width is None else f"the {what}, {width}"
    given = {key: value, "/parallel.model_axis_size": tensor_parallel}
    yield Problem(given, f"{{/parallel.model_axis_size}} must divide {whole}", f"{fix}.")
