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
    "unreduced_pmax": "all-reduce",
    "unreduced_pmin": "all-reduce",
    "unreduced_psum": "all-reduce",
    "unreduced_reduce_scatter": "reduce-scatter",
}
"""What JAX calls the collectives."""

RESHAPES = frozenset(
    "bitcast_convert_type copy expand_dims from_edtype layout_constraint mesh_cast name optimization_barrier pcast "
    "preduced pvary random_unwrap random_wrap reduced_vary_cast reduced_vary_cast_p relayout reshape reshard "
    "sharding_constraint squeeze stop_gradient to_edtype vary_unreduced_cast vary_unreduced_cast_p "
    "with_memory_space_constraint".split()
)
"""Primitives that give a value in another shape or under another name: nothing is computed or written."""

VIEWS = RESHAPES | {"dynamic_slice", "slice", "split", "transpose"}
"""These, and those that give a part of a value or its array axes in another order."""

MOVES = VIEWS | frozenset(
    "axis_index broadcast_in_dim broadcast_to concatenate device_put dynamic_update_slice empty gather iota pad rev "
    "scatter stack tile unstack".split()
)
"""Primitives that place values and compute none."""

TRANSCENDENTAL = frozenset(
    "acos acosh asin asinh atan atan2 atanh cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1 lgamma log log1p "
    "log2 logistic pow rsqrt sin sinh sqrt tan tanh".split()
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

ELEMENTWISE = TRANSCENDENTAL | frozenset(
    "abs add add_any and ceil clamp clz complex conj convert_element_type div eq eq_to floor ge gt imag integer_pow "
    "is_finite le le_to lt lt_to max min mul mulhi ne neg nextafter not one_minus_square or population_count real rem "
    "round select_n shift_left shift_right_arithmetic shift_right_logical sign square sub xor".split()
)
"""Primitives that compute every element of the result from the elements in the same place."""

_OTHERS = frozenset(
    "debug_callback debug_print random_bits random_clone random_fold_in random_seed random_split reduce_precision "
    "rng_bit_generator".split()
)

KNOWN = MOVES | ELEMENTWISE | REDUCTIONS | FROM_MEMORY | UPDATES | _OTHERS
"""Primitives that are counted by what they do. Of any other one, each element of the result counts as one operation."""
