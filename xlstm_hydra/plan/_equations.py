"""A traced program as plain values: its equations, the primitives by what they do, and the operations of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xlstm_hydra.errors import TaskError

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


# ---- what a program consists of


@dataclass(frozen=True, eq=False, slots=True)
class Atom:
    """A value of a program, or a literal."""

    shape: tuple[int, ...]
    dtype: str
    """Element type by NumPy's name; empty for a value that is no array, such as a token."""
    itemsize: int
    literal: str | None = None
    """The text of a literal."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.itemsize


@dataclass(frozen=True, eq=False, slots=True)
class Program:
    """A traced program, or a part of one."""

    inputs: tuple[Atom, ...]
    constants: tuple[Atom, ...]
    equations: tuple[Equation, ...]
    results: tuple[Atom, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Equation:
    """One primitive that is applied to values."""

    name: str
    """Name of the primitive."""
    inputs: tuple[Atom, ...]
    results: tuple[Atom, ...]
    form: Form
    """The parameters that a plan depends on; None if there are none."""
    scope: str
    """Names of the transformations and modules that it stands in, joined with slashes."""
    parameters: str
    """All its parameters as text: two equations are the same if this and the inputs are."""


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """A program that runs once, with the inputs of the equation."""

    program: Program
    recomputes: bool = False
    """True if it recomputes values for jax.checkpoint."""


@dataclass(frozen=True, eq=False, slots=True)
class Scan:
    """A loop with a fixed number of rounds. Inputs: constants, carried values, stacks."""

    body: Program
    length: int
    constants: int
    """Number of inputs that every round reads whole."""
    carried: int
    """Number of values that a round hands to the next. They are the first results."""


@dataclass(frozen=True, eq=False, slots=True)
class While:
    """A loop that ends on a condition. Its last inputs are the carried values."""

    condition: Program
    body: Program
    constants: int
    """Number of the body's inputs that are not carried."""


@dataclass(frozen=True, eq=False, slots=True)
class Programs:
    """Several programs of which one runs (`cond`), or programs of a primitive that is not known here."""

    programs: tuple[Program, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Product:
    """A matrix product (`dot_general`). Array axes of each of the two operands."""

    contracted: tuple[tuple[int, ...], tuple[int, ...]]
    batch: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, eq=False, slots=True)
class Convolution:
    """A convolution."""

    summed: tuple[int, ...]
    """Array axes of the kernel that are summed over."""


@dataclass(frozen=True, eq=False, slots=True)
class Collective:
    """An exchange between devices."""

    axes: tuple[str, ...]
    """Names of the mesh axes."""
    array_axis: int
    """The array axis that is gathered or scattered; 0 for other exchanges."""


@dataclass(frozen=True, eq=False, slots=True)
class Transposition:
    """Array axes in another order."""

    order: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Power:
    """A power with an integer exponent."""

    exponent: int


@dataclass(frozen=True, eq=False, slots=True)
class Attention:
    """Attention by cuDNN, forward or backward."""

    time_axis: int
    """Array axis of the keys."""
    is_causal: bool


Form = Call | Scan | While | Programs | Product | Convolution | Collective | Transposition | Power | Attention | None
"""What an equation is, beyond a primitive and its operands."""


class UnknownForm(TaskError):
    """A program is not built as the JAX versions that are known here build it."""


# ---- operations

_SEVERAL = {"one_minus_square": 2, "random_bits": 29}
"""Primitives that take several operations per element. Of a random number these are those of Threefry as XLA counts
them, with the rounds of its loop once."""

_ATTENTION_PRODUCTS: dict[str, tuple[int, int]] = dict(zip(ATTENTION, [(1, 1), (3, 2)], strict=True))
"""How many products of attention have the width of the keys and of the values (FlashAttention, arXiv 2205.14135):
scores and output; then scores once more, the gradients of queries, keys, scores and values."""


def exchange_name(name: str) -> str:
    """What XLA calls a collective; one that is not known here keeps JAX's name, so that it is not overlooked."""
    return COLLECTIVES.get(name, name)


def operations(equation: Equation) -> int:
    """Operations of an equation, as XLA counts them; those of a transcendental function are its elements."""
    name, inputs, form = equation.name, equation.inputs, equation.form
    if not equation.results:
        return 0
    taken, given = inputs[0].size if inputs else 0, equation.results[0].size
    if isinstance(form, Collective):
        return sum(result.size for result in equation.results) if exchange_name(name) == "all-reduce" else 0
    if isinstance(form, Product):
        return 2 * given * math.prod(inputs[0].shape[axis] for axis in form.contracted[0])
    if isinstance(form, Convolution):  # padding included, which XLA leaves out
        return 2 * given * math.prod(inputs[1].shape[axis] for axis in form.summed)
    if isinstance(form, Attention):
        return _attention(equation, form)
    if isinstance(form, Power):
        power = abs(form.exponent)  # by squaring
        return given * (power.bit_length() + power.bit_count() - 2 + (form.exponent < 0))
    if name.startswith("reduce_") or name in ("argmax", "argmin"):
        return taken - given
    if (times := _SEVERAL.get(name)) is not None:
        return times * given
    if name in MOVES or (name == "convert_element_type" and inputs[0].dtype == equation.results[0].dtype):
        return 0
    return inputs[-1].size if name in UPDATES else given


def _attention(equation: Equation, form: Attention) -> int:
    """Operations of the products of attention; where no token sees later ones, of half of them."""
    queries, keys, values = (atom.shape for atom in equation.inputs[:3])
    of_keys, of_values = _ATTENTION_PRODUCTS[equation.name]
    pairs = math.prod(queries[:-1]) * keys[form.time_axis]
    flops = 2 * pairs * (of_keys * keys[-1] + of_values * values[-1])
    return flops // 2 if form.is_causal else flops
