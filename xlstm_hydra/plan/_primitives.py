"""What the primitives of a traced program are, and how many operations they take."""

from __future__ import annotations

import math
from typing import Any

from ._cudnn import ATTENTION, attention_flops

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

PRODUCTS = frozenset({"conv_general_dilated", "dot_general", *ATTENTION})
"""Primitives that multiply and add."""

FROM_MEMORY = PRODUCTS | {"sort", "top_k"}
"""Primitives that read their operands from memory and write their result to it."""

UPDATES = frozenset(
    "dynamic_update_slice scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub scatter_add scatter_max "
    "scatter_min scatter_mul scatter_sub".split()
)
"""Primitives that change a part of their first operand, where that is."""

RANDOM_BITS = 29
"""Operations of a random number, as XLA counts those of Threefry, with the rounds of its loop once."""


def size_of(aval: Any) -> int:
    """Elements of a value."""
    return math.prod(getattr(aval, "shape", ()))


def bytes_of(aval: Any) -> int:
    """Bytes of a value."""
    return size_of(aval) * aval.dtype.itemsize if hasattr(aval, "dtype") else 0


def named_axes(eqn: Any) -> tuple[str, ...]:
    """Names of the mesh axes of a collective, if it is one; those that `jax.vmap` maps over have numbers."""
    if eqn.primitive.name in MOVES:
        return ()
    axes = eqn.params.get("axes", eqn.params.get("axis_name"))
    return tuple(axis for axis in (axes if isinstance(axes, tuple) else (axes,)) if isinstance(axis, str))


def collective(eqn: Any) -> str:
    """What XLA calls a collective; one that is not known here keeps JAX's name, so that it is not overlooked."""
    name: str = eqn.primitive.name
    return COLLECTIVES.get(name, name)


def operations(eqn: Any) -> int:
    """Operations of an equation, as XLA counts them; those of a transcendental function are its elements."""
    name, params = eqn.primitive.name, eqn.params
    taken, given = size_of(eqn.invars[0].aval) if eqn.invars else 0, size_of(eqn.outvars[0].aval)
    if named_axes(eqn):
        return sum(size_of(var.aval) for var in eqn.outvars) if collective(eqn) == "all-reduce" else 0
    if name in ATTENTION:
        return attention_flops(eqn)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * given * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":  # padding included, which XLA leaves out
        kernel = eqn.invars[1].aval.shape
        return 2 * given * math.prod(kernel[axis] for axis in params["dimension_numbers"].rhs_spec[1:])
    if name.startswith("reduce_") or name in ("argmax", "argmin"):
        return taken - given
    if name == "random_bits":
        return RANDOM_BITS * given
    if name == "integer_pow":
        power = abs(params["y"])  # by squaring
        return given * (power.bit_length() + power.bit_count() - 2 + (params["y"] < 0))
    if name in MOVES or (name == "convert_element_type" and eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype):
        return 0
    return size_of(eqn.invars[-1].aval) if name in UPDATES else given
