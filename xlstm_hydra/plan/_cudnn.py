"""Attention by cuDNN: traced where there is no cuDNN, and counted, which its name in a program does not say.

The private names of JAX that this needs are here. A JAX that moves them breaks this module alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jax._src.cudnn import fused_attention_stablehlo as cudnn

VERSION = 91000
"""The cuDNN that is taken for there: one that has every kernel that JAX knows to call."""

ATTENTION = {"dot_product_attention_fwd_wrapper": (1, 1), "dot_product_attention_bwd_wrapper": (3, 2)}
"""What JAX calls it, and how many products have the width of the keys and of the values (FlashAttention, arXiv
2205.14135): scores and output; then scores once more, the gradients of queries, keys, scores and values."""


@contextmanager
def as_if_there() -> Iterator[None]:
    """Let JAX trace attention by cuDNN on a machine that has none."""
    asked = cudnn.check_cudnn_version

    def version() -> int:
        try:
            return asked()
        except RuntimeError:
            return VERSION

    cudnn.check_cudnn_version = version
    try:
        yield
    finally:
        cudnn.check_cudnn_version = asked


def attention_flops(eqn: Any) -> int:
    """Operations of its products; where no token sees later ones, of half of them."""
    queries, keys, values = (var.aval.shape for var in eqn.invars[:3])
    of_keys, of_values = ATTENTION[eqn.primitive.name]
    time = 1 if eqn.params["layout"] == cudnn.AttentionLayout.BTNH.value else 2
    pairs = math.prod(queries[:-1]) * keys[time]
    flops = 2 * pairs * (of_keys * keys[-1] + of_values * values[-1])
    return flops // 2 if "CAUSAL" in eqn.params["mask_type"].name else flops
