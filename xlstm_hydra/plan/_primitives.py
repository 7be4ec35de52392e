"""Names of the primitives of traced programs, by what they do."""

from __future__ import annotations

COLLECTIVES = {
    "all_gather": "all-gather",
    "all_gather_invariant": "all-gather",
    "all_gather_reduced": "all-gather",
    "all_to_all": "all-to-all",
    "pmax": "all-reduce",
    "pmin": "all-reduce",
    "ppermute": "collective-permute",
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",
    "ragged_all_to_all": "all-to-all",
    "reduce_scatter": "reduce-scatter",
    "unreduced_psum": "all-reduce",
    "unreduced_reduce_scatter": "reduce-scatter",
}
"""What JAX calls the collectives."""

RESHAPES = frozenset(
    "bitcast_convert_type copy expand_dims mesh_cast name optimization_barrier pcast preduced pvary random_unwrap "
    "random_wrap reduced_vary_cast reduced_vary_cast_p reshape sharding_constraint squeeze stop_gradient "
    "vary_unreduced_cast_p".split()
)
"""Primitives that give a value in another shape or under another name: nothing is computed or written."""

VIEWS = RESHAPES | {"dynamic_slice", "slice", "split", "transpose"}
"""These, and those that give a part of a value or its array axes in another order."""

MOVES = VIEWS | frozenset(
    "axis_index broadcast_in_dim concatenate device_put dynamic_update_slice empty gather iota pad rev scatter stack "
    "unstack".split()
)
"""Primitives that place values and compute none."""

TRANSCENDENTAL = frozenset(
    "acos acosh asin asinh atan atan2 atanh cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1 lgamma log log1p "
    "logistic pow rsqrt sin sinh sqrt tan tanh".split()
)
"""Primitives that take several operations per element."""

REDUCTIONS = frozenset(
    "argmax argmin cumlogsumexp cummax cummin cumprod cumsum reduce reduce_and reduce_max reduce_min reduce_or "
    "reduce_prod reduce_sum reduce_window".split()
)
"""Primitives that compute their operands on the way and write their result to memory."""

ATTENTION = ("dot_product_attention_fwd_wrapper", "dot_product_attention_bwd_wrapper")
"""Attention by cuDNN."""

PRODUCTS = frozenset({"conv_general_dilated", "dot_general", *ATTENTION})
"""Primitives that multiply and add."""

FROM_MEMORY = PRODUCTS | {"sort", "top_k"}
"""Primitives that read their operands from memory and write their result to it."""

UPDATES = frozenset(
    "dynamic_update_slice scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub scatter_add scatter_max "
    "scatter_min scatter_mul scatter_sub".split()
)
"""Primitives that change a part of their first operand, where that is."""
