"""The Llama baseline: a transformer with rotary positions and a gated feed-forward layer (arXiv 2302.13971)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem, divisors, either

from ._config_dict import config_dataclass
from ._fields import LAYOUT, NUMERICS, PARAMETERS, affects
from ._rules import at_least, one_of
from .language_model import LanguageModelConfig, splits

ATTENTION_BACKENDS = ("xla", "cudnn")
"""Implementations that `jax.nn.dot_product_attention` offers."""

PUBLISHED_BACKENDS = (*ATTENTION_BACKENDS, "pallas_triton")
"""Names of implementations in published metadata, of which we have the first two."""

_FLASH_TYPES = ("bfloat16", "float16")
_FLASH_HEAD_DIMS = tuple(range(8, 257, 8))


@config_dataclass
class LlamaConfig(LanguageModelConfig, schema="llama"):
    """The Llama baseline: causal attention with rotary positions, then a gated feed-forward layer."""

    flax_class = "xlstm_hydra.models.Llama"

    head_dim: int = field(default=128, metadata=affects(PARAMETERS))
    """Width of a head; the embedding width gives their number. Even, because positions turn pairs of channels."""

    qk_norm: bool = field(default=False, metadata=affects(PARAMETERS))
    """Normalise queries and keys per head, before positions turn them."""

    causal: bool = field(default=True, metadata=affects(NUMERICS))
    """Let a token see itself and earlier tokens only. Otherwise it sees the whole example, targets included, which is
    for encoders only."""

    theta: float = field(default=500000.0, metadata=affects(NUMERICS))
    """Base of the rotary positions: the slowest pair of channels turns once in about 2 pi theta tokens."""

    mask_across_document_boundaries: bool = field(default=False, metadata=affects(NUMERICS))
    """Let a token see its own document only. Positions start anew with every document in any case."""

    attention_backend: str | None = field(default="xla", metadata=affects(LAYOUT))
    """How attention is computed: xla (on any device), cudnn (flash attention, on NVIDIA GPUs with `dtype` bfloat16 or
    float16), or null for what JAX chooses. A checkpoint may name pallas_triton too, which no device here computes.
    `task=generate` always takes xla."""

    ffn_multiple_of: int = field(default=64, metadata=affects(PARAMETERS))
    """The feed-forward width, 8/3 of the embedding width, is rounded up to a multiple of this."""

    ffn_dim_multiplier: float = field(default=1.0, metadata=affects(PARAMETERS))
    """Factor on the feed-forward width, before it is rounded."""

    use_bias: bool = field(default=False, metadata=affects(PARAMETERS))
    """Give the dense layers inside the blocks a bias. The head never has one."""

    dropout_rate: float = field(default=0.0, metadata=affects(NUMERICS))
    """Probability that an element of a residual branch's output is dropped in training. 0: no dropout."""

    lm_head_dtype: str | None = None
    """Type that the projection to the vocabulary is computed in. null: `dtype`, as published. The loss is always
    float32."""

    output_init_fn: str = "wang2"
    """Standard deviation of the initial projections back to the residual stream: wang, wang2, small or zeros."""

    def num_heads(self) -> int:
        """Heads per block."""
        return self.embedding_dim // max(self.head_dim, 1)

    def ff_dim(self) -> int:
        """Width of the feed-forward layer. 0 where there is no such width."""
        width = 8 * self.embedding_dim // 3 * self.ffn_dim_multiplier
        multiple = max(self.ffn_multiple_of, 1)
        return -(-int(width) // multiple) * multiple if 0 < width < math.inf else 0

    def dropout_probability(self) -> float:
        """`dropout_rate`."""
        return self.dropout_rate

    def block_classes(self) -> tuple[str, ...]:
        """Class names of the blocks."""
        return ("TransformerBlock",)

    def module_classes(self) -> tuple[str, ...]:
        """Class names of the modules inside this model."""
        names = ("Embed", "LMHead", "TransformerBlock", "AttnBlock", "FFNBlock", "Attention", "FeedForward")
        return (*names, "Dense", "Norm", *(["HeadNorm"] if self.qk_norm else []))

    def rules(self) -> Iterator[Problem]:
        """Ranges, names, and heads that fit in the embedding."""
        yield from super().rules()
        yield from self.dropout_rules("dropout_rate")
        yield from at_least(self, 1, "head_dim", "ffn_multiple_of")
        yield from at_least(self, 0, "theta", "ffn_dim_multiplier", above=True)
        if self.attention_backend not in PUBLISHED_BACKENDS:
            yield from one_of(self, "attention_backend", ATTENTION_BACKENDS, optional=True)
        if self.head_dim > 0 and self.embedding_dim > 0:
            yield from self._head_rules()
        if self.embedding_dim > 0 and 0 < self.ffn_dim_multiplier < math.inf and self.ff_dim() < 1:
            given = {"ffn_dim_multiplier": self.ffn_dim_multiplier}
            yield Problem(given, "the feed-forward width must be at least 1", "Set {ffn_dim_multiplier} higher.")
        if self.attention_backend == "cudnn":
            yield from self._flash_rules()

    def _head_rules(self) -> Iterator[Problem]:
        fits = [d for d in divisors(self.embedding_dim) if d % 2 == 0 and d <= 256]
        choose = f"Choose {either(fits)}." if fits else "Set {embedding_dim} to an even number."
        if self.head_dim % 2:
            yield Problem({"head_dim": self.head_dim}, "positions turn pairs of channels: must be even", choose)
        elif self.embedding_dim % self.head_dim:
            given = {"embedding_dim": self.embedding_dim, "head_dim": self.head_dim}
            yield Problem(
                given, "{head_dim} must divide {embedding_dim}", choose.replace("Choose", "Set {head_dim} to")
            )

    def _flash_rules(self) -> Iterator[Problem]:
        backend = {"attention_backend": "cudnn"}
        if self.dtype not in _FLASH_TYPES:
            fix = f"Set {{dtype}} to {either(_FLASH_TYPES)}, or {{attention_backend}}=xla."
            yield Problem({**backend, "dtype": self.dtype}, "cuDNN computes attention in 16 bits only", fix)
        if self.head_dim not in _FLASH_HEAD_DIMS:
            text = "cuDNN computes heads whose width is a multiple of 8 up to 256 (128 before Hopper)"
            fix = "Set {head_dim} to such a number, or {attention_backend}=xla."
            yield Problem({**backend, "head_dim": self.head_dim}, text, fix)
        if self.mask_across_document_boundaries and self.context_length % 2:
            given = {**backend, "mask_across_document_boundaries": True, "context_length": self.context_length}
            text = "cuDNN masks documents in examples of an even length only"
            yield Problem(given, text, f"Set {{context_length}} to {self.context_length + 1}.")

    def platform_rules(self, platform: str) -> Iterator[Problem]:
        """cuDNN computes on NVIDIA GPUs; what only other programs have computes nowhere."""
        if self.attention_backend in PUBLISHED_BACKENDS and self.attention_backend not in ATTENTION_BACKENDS:
            given, fix = (
                {"attention_backend": self.attention_backend},
                "Set {attention_backend}=xla, the same function.",
            )
            yield Problem(given, "there is no such kernel here", fix)
        if self.attention_backend == "cudnn" and platform != "gpu":
            given = {"attention_backend": "cudnn"}
            yield Problem(given, f"cuDNN needs NVIDIA GPUs; the devices are {platform}", "Set {attention_backend}=xla.")

    def generation_rules(self, prompt_length: int, max_new_tokens: int) -> Iterator[Problem]:
        """No token may see later ones, and positions beyond the context were never trained."""
        if not self.causal:
            rule = "the model predicts tokens from later ones too, and cannot continue a text"
            yield Problem({"/model.causal": False}, rule, "Choose a model that was trained with {/model.causal}=true.")
        if prompt_length + max_new_tokens - 1 > self.context_length > 0:
            given = {"max_new_tokens": max_new_tokens, "/model.context_length": self.context_length}
            rule = f"with the {prompt_length} tokens of the prompt they are more than the model was trained to see"
            fix = "Set {/model.context_length} higher to go on all the same."
            if (fits := self.context_length - prompt_length + 1) > 0:
                fix = f"Set {{max_new_tokens}} to at most {fits}, or {fix[4:]}"
            yield Problem(given, rule, fix)

    def layout_rules(self, tensor_parallel: int) -> Iterator[Problem]:
        """The heads and the feed-forward width are cut over the tensor-parallel devices too."""
        yield from super().layout_rules(tensor_parallel)
        if self.head_dim > 0 and self.embedding_dim % self.head_dim == 0:
            yield from splits(self, "head_dim", tensor_parallel, self.num_heads(), "number of heads")
        yield from splits(self, "ffn_multiple_of", tensor_parallel, self.ff_dim(), "feed-forward width")
