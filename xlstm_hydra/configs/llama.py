"""The Llama baseline: a transformer with rotary position embeddings and a gated feed-forward layer (arXiv
2302.13971)."""

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
"""Implementations of attention in `jax.nn.dot_product_attention`."""

PUBLISHED_BACKENDS = (*ATTENTION_BACKENDS, "pallas_triton")
"""Values of `attention_backend` in published metadata. Only those in `ATTENTION_BACKENDS` are implemented here."""

_FLASH_TYPES = ("bfloat16", "float16")
_FLASH_HEAD_DIMS = tuple(range(8, 257, 8))


@config_dataclass
class LlamaConfig(LanguageModelConfig, schema="llama"):
    """The Llama baseline: causal attention with rotary position embeddings, then a gated feed-forward layer."""

    flax_class = "xlstm_hydra.models.Llama"

    head_dim: int = field(default=128, metadata=affects(PARAMETERS))
    """Width of each head. The number of heads is `embedding_dim / head_dim`. Must be even, because rotary position
    embeddings rotate pairs of channels."""

    qk_norm: bool = field(default=False, metadata=affects(PARAMETERS))
    """Normalise the queries and keys of each head, before the rotary position embedding."""

    causal: bool = field(default=True, metadata=affects(NUMERICS))
    """Let each token attend only to itself and to earlier tokens. false: each token attends to the whole example,
    including the tokens to be predicted, which only makes sense for encoders."""

    theta: float = field(default=500000.0, metadata=affects(NUMERICS))
    """Base of the rotary position embedding. The slowest pair of channels completes one rotation in about 2 pi theta
    tokens."""

    mask_across_document_boundaries: bool = field(default=False, metadata=affects(NUMERICS))
    """Let each token attend only to tokens of its own document. Positions always restart at every document, even if
    this is false."""

    attention_backend: str | None = field(default="xla", metadata=affects(LAYOUT))
    """Implementation of attention: xla (any device), cudnn (flash attention on NVIDIA GPUs, for `dtype` bfloat16 or
    float16) or null (chosen by JAX). The metadata of a published checkpoint may contain pallas_triton, which is not
    available here. `task=generate` always uses xla."""

    ffn_multiple_of: int = field(default=64, metadata=affects(PARAMETERS))
    """The feed-forward width, 8/3 * `ffn_dim_multiplier` * `embedding_dim`, is rounded up to a multiple of this number
    of channels."""

    ffn_dim_multiplier: float = field(default=1.0, metadata=affects(PARAMETERS))
    """Factor by which the feed-forward width is multiplied before rounding."""

    use_bias: bool = field(default=False, metadata=affects(PARAMETERS))
    """Add a bias to the dense layers inside the blocks. The output head never has a bias."""

    dropout_rate: float = field(default=0.0, metadata=affects(NUMERICS))
    """Dropout probability for the output of each residual branch, in training only. 0: no dropout."""

    lm_head_dtype: str | None = None
    """Data type of the output head, the projection to the vocabulary. null: same as `dtype`, as in the published
    models. The loss is always computed in float32."""

    output_init_fn: str = "wang2"
    """Standard deviation of the initial projections back to the residual stream, for embedding width D and L blocks:
    2/(L sqrt(D)) for wang, 1/(L sqrt(D)) for wang2, sqrt(2/(5 D)) for small, and 0 for zeros."""

    def num_heads(self) -> int:
        """Number of heads per block."""
        return self.embedding_dim // max(self.head_dim, 1)

    def ff_dim(self) -> int:
        """Width of the feed-forward layer, or 0 if the fields give no valid width."""
        width = 8 * self.embedding_dim // 3 * self.ffn_dim_multiplier
        multiple = max(self.ffn_multiple_of, 1)
        return -(-int(width) // multiple) * multiple if 0 < width < math.inf else 0

    def dropout_probability(self) -> float:
        """Return `dropout_rate`."""
        return self.dropout_rate

    def block_classes(self) -> tuple[str, ...]:
        """Class names of the blocks."""
        return ("TransformerBlock",)

    def module_classes(self) -> tuple[str, ...]:
        """Class names of the modules inside this model."""
        names = ("Embed", "LMHead", "TransformerBlock", "AttnBlock", "FFNBlock", "Attention", "FeedForward")
        return (*names, "Dense", "Norm", *(["HeadNorm"] if self.qk_norm else []))

    def rules(self) -> Iterator[Problem]:
        """Check value ranges and allowed values, and that the head width divides the embedding width."""
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
            yield Problem(given, "the feed-forward width must be at least 1", "Raise {ffn_dim_multiplier}.")
        if self.attention_backend == "cudnn":
            yield from self._flash_rules()

    def _head_rules(self) -> Iterator[Problem]:
        fits = [d for d in divisors(self.embedding_dim) if d % 2 == 0 and d <= 256]
        choose = f"Choose {either(fits)}." if fits else "Set {embedding_dim} to an even number."
        if self.head_dim % 2:
            yield Problem(
                {"head_dim": self.head_dim}, "must be even, because rotary positions rotate pairs of channels", choose
            )
        elif self.embedding_dim % self.head_dim:
            given = {"embedding_dim": self.embedding_dim, "head_dim": self.head_dim}
            yield Problem(
                given, "{head_dim} must divide {embedding_dim}", choose.replace("Choose", "Set {head_dim} to")
            )

    def _flash_rules(self) -> Iterator[Problem]:
        backend = {"attention_backend": "cudnn"}
        if self.dtype not in _FLASH_TYPES:
            fix = f"Set {{dtype}} to {either(_FLASH_TYPES)}, or {{attention_backend}}=xla."
            yield Problem({**backend, "dtype": self.dtype}, "cuDNN attention supports only 16-bit types", fix)
        if self.head_dim not in _FLASH_HEAD_DIMS:
            text = "cuDNN attention supports head widths that are multiples of 8 up to 256 (128 before Hopper)"
            fix = "Set {head_dim} to such a number, or {attention_backend}=xla."
            yield Problem({**backend, "head_dim": self.head_dim}, text, fix)
        if self.mask_across_document_boundaries and self.context_length % 2:
            given = {**backend, "mask_across_document_boundaries": True, "context_length": self.context_length}
            text = "cuDNN attention can mask documents only if the context length is even"
            yield Problem(given, text, f"Set {{context_length}} to {self.context_length + 1}.")

    def platform_rules(self, platform: str) -> Iterator[Problem]:
        """Check that the attention backend is available here and supports the platform."""
        if self.attention_backend in PUBLISHED_BACKENDS and self.attention_backend not in ATTENTION_BACKENDS:
            given, fix = (
                {"attention_backend": self.attention_backend},
                "Set {attention_backend}=xla, which gives the same results.",
            )
            yield Problem(given, "xlstm-hydra does not have this kernel", fix)
        if self.attention_backend == "cudnn" and platform != "gpu":
            given = {"attention_backend": "cudnn"}
            yield Problem(given, f"cuDNN needs NVIDIA GPUs, not {platform}", "Set {attention_backend}=xla.")

    def generation_rules(self, prompt_length: int, max_new_tokens: int) -> Iterator[Problem]:
        """Check that the model is causal, and that prompt and generated text fit in `context_length`."""
        if not self.causal:
            rule = "a model that also sees later tokens cannot continue a text"
            yield Problem({"/model.causal": False}, rule, "Use a model that was trained with {/model.causal}=true.")
        if prompt_length + max_new_tokens - 1 > self.context_length > 0:
            given = {"max_new_tokens": max_new_tokens, "/model.context_length": self.context_length}
            rule = f"the {prompt_length} tokens of the prompt and the new tokens exceed the context length"
            fix = "Set {/model.context_length} to a larger value."
            if (fits := self.context_length - prompt_length + 1) > 0:
                fix = f"Set {{max_new_tokens}} to at most {fits}, or {fix[4:]}"
            yield Problem(given, rule, fix)

    def layout_rules(self, tensor_parallel: int) -> Iterator[Problem]:
        """Also check that the number of heads and the feed-forward width are divisible by the number of tensor-parallel
        devices."""
        yield from super().layout_rules(tensor_parallel)
        if self.head_dim > 0 and self.embedding_dim % self.head_dim == 0:
            yield from splits(self, "head_dim", tensor_parallel, self.num_heads(), "number of heads")
        yield from splits(self, "ffn_multiple_of", tensor_parallel, self.ff_dim(), "feed-forward width")
