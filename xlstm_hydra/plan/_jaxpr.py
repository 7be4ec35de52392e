"""Traced programs as dataclasses, independent of the JAX version. No other module reads jaxprs.

Names and parameters of primitives differ between JAX versions. All versions since 0.10 are supported:

| JAX | jaxprs |
|---|---|
| 0.10 | a scan has `num_consts` and `num_carry`; a program with constants is a `ClosedJaxpr` |
| 0.11.0 | a scan has `ft_in` and `ft_out` instead; `Jaxpr` and `ClosedJaxpr` are one class |
| 0.11.1 | the constants of a `ClosedJaxpr` of a call are inputs of the call; `closed_call` is `eval_jaxpr` |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core

from xlstm_hydra._jax_internals import cudnn_assumed, cudnn_time_axis
from xlstm_hydra.errors import TaskError
from xlstm_hydra.step import ShardedLoss

_COLLECTIVES = {
    "all-gather": "all_gather all_gather_invariant all_gather_reduced",
    "all-reduce": "pmax pmin psum psum_invariant unreduced_pmax unreduced_pmin unreduced_psum",
    "all-to-all": "all_to_all ragged_all_to_all",
    "collective-permute": "ppermute",
    "reduce-scatter": "reduce_scatter unreduced_reduce_scatter",
}
COLLECTIVES = {name: operation for operation, names in _COLLECTIVES.items() for name in names.split()}
"""XLA operation of each JAX collective, by primitive name."""

RESHAPES = frozenset(
    "bitcast_convert_type copy expand_dims from_edtype layout_constraint mesh_cast name optimization_barrier pcast "
    "preduced pvary random_unwrap random_wrap reduced_vary_cast reduced_vary_cast_p relayout reshape reshard "
    "sharding_constraint squeeze stop_gradient to_edtype vary_unreduced_cast vary_unreduced_cast_p "
    "with_memory_space_constraint".split()
)
"""Primitives that only change the shape or the metadata of a value, without computing or writing anything."""

VIEWS = RESHAPES | {"dynamic_slice", "slice", "split", "transpose"}
"""`RESHAPES`, and primitives that select part of a value or permute its array axes."""

MOVES = VIEWS | frozenset(
    "axis_index broadcast_in_dim broadcast_to concatenate device_put dynamic_update_slice empty gather iota pad rev "
    "scatter stack tile unstack".split()
)
"""Primitives that only move elements."""

TRANSCENDENTAL = frozenset(
    "acos acosh asin asinh atan atan2 atanh cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1 lgamma log log1p "
    "log2 logistic pow rsqrt sin sinh sqrt tan tanh".split()
)
"""Transcendental functions, which take several operations per element."""

REDUCTIONS = frozenset(
    "argmax argmin cumlogsumexp cummax cummin cumprod cumsum reduce reduce_and reduce_max reduce_min reduce_or "
    "reduce_prod reduce_sum reduce_window".split()
)
"""Reductions. Their operands are computed on the fly, and their results are written to memory."""

ATTENTION = ("dot_product_attention_fwd_wrapper", "dot_product_attention_bwd_wrapper")
"""Primitives of cuDNN attention: forward and backward pass."""

PRODUCTS = frozenset({"conv_general_dilated", "dot_general", *ATTENTION})
"""Primitives that consist of multiply-adds."""

FROM_MEMORY = PRODUCTS | {"sort", "top_k"}
"""Primitives that read their operands from memory and write their results to memory."""

UPDATES = frozenset(
    "dynamic_update_slice scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub scatter_add scatter_max "
    "scatter_min scatter_mul scatter_sub".split()
)
"""Primitives that update part of their first operand in place."""

ELEMENTWISE = TRANSCENDENTAL | frozenset(
    "abs add add_any and ceil clamp clz complex conj convert_element_type div eq eq_to floor ge gt imag integer_pow "
    "is_finite le le_to lt lt_to max min mul mulhi ne neg nextafter not one_minus_square or population_count real rem "
    "round select_n shift_left shift_right_arithmetic shift_right_logical sign square sub xor".split()
)
"""Primitives that compute each element of the result from the operand elements at the same position."""

KNOWN = MOVES | ELEMENTWISE | REDUCTIONS | FROM_MEMORY | UPDATES
KNOWN |= {"debug_callback", "debug_print", "reduce_precision", "rng_bit_generator"}
KNOWN |= {f"random_{name}" for name in ("bits", "clone", "fold_in", "seed", "split")}
"""Known primitives. For any other primitive, each element of the result counts as one operation."""


# ---- programs


@dataclass(frozen=True, eq=False, slots=True)
class Atom:
    """A variable or a literal of a program."""

    shape: tuple[int, ...]
    dtype: str
    """NumPy name of the dtype; empty for a value that is not an array, such as a token."""
    itemsize: int
    literal: str | None = None
    """Text of a literal; None for a variable."""

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
    """A traced program, or part of one."""

    inputs: tuple[Atom, ...]
    constants: tuple[Atom, ...]
    equations: tuple[Equation, ...]
    results: tuple[Atom, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Equation:
    """A primitive applied to variables and literals."""

    name: str
    """Name of the primitive."""
    inputs: tuple[Atom, ...]
    results: tuple[Atom, ...]
    form: Form
    """Parameters that affect the plan; None if there are none."""
    scope: str
    """Names of the enclosing transformations and modules, joined by slashes."""
    parameters: str
    """All parameters as text, used to find equations that compute the same result from the same inputs. Empty for calls
    and loops."""


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """A program that runs once on the inputs of the equation."""

    program: Program
    recomputes: bool = False
    """True if it recomputes values in the backward pass (`jax.checkpoint`)."""


@dataclass(frozen=True, eq=False, slots=True)
class Scan:
    """A loop with a fixed number of iterations. The inputs are constants, carried values and stacked arrays, in this
    order."""

    body: Program
    length: int
    constants: int
    """Number of inputs that every iteration reads in full."""
    carried: int
    """Number of values passed from one iteration to the next. They are the first results."""


@dataclass(frozen=True, eq=False, slots=True)
class While:
    """A loop that runs while its condition is true. The last inputs are the carried values."""

    condition: Program
    body: Program
    constants: int
    """Number of inputs of the body that are not carried."""


@dataclass(frozen=True, eq=False, slots=True)
class Programs:
    """Branches of a `cond`, or programs in the parameters of an unknown primitive."""

    programs: tuple[Program, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Product:
    """A matrix product (`dot_general`), described by the contracted and the batch array axes of each operand."""

    contracted: tuple[tuple[int, ...], tuple[int, ...]]
    batch: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, eq=False, slots=True)
class Convolution:
    """A convolution."""

    summed: tuple[int, ...]
    """Array axes of the kernel over which products are summed."""


@dataclass(frozen=True, eq=False, slots=True)
class Collective:
    """A collective: communication between devices."""

    axes: tuple[str, ...]
    """Names of the mesh axes."""
    array_axis: int
    """Array axis that is gathered or scattered; 0 for other collectives."""


@dataclass(frozen=True, eq=False, slots=True)
class Transposition:
    """A permutation of array axes."""

    order: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Power:
    """A power with an integer exponent."""

    exponent: int


@dataclass(frozen=True, eq=False, slots=True)
class Attention:
    """cuDNN attention, forward or backward."""

    time_axis: int
    """Array axis of time in the keys."""
    is_causal: bool


Form = Call | Scan | While | Programs | Product | Convolution | Collective | Transposition | Power | Attention | None
"""Parameters of an equation that affect the plan; None if there are none."""


class UnknownForm(TaskError):
    """The structure of a program does not match any supported JAX version."""


# ---- from JAX


def read_program(jaxpr: Any) -> Program:
    """Convert a jaxpr, open or closed, to a `Program`.

    Raises:
        UnknownForm: the parameters of a primitive do not match any supported JAX version.
    """
    return _Reader().program(jaxpr)


class _Reader:
    """Converts each jaxpr once, even if several equations share it."""

    def __init__(self) -> None:
        self._read: dict[int, Program] = {}

    def program(self, jaxpr: Any) -> Program:
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        if id(jaxpr) not in self._read:  # the outermost jaxpr keeps all others alive, so ids stay unique
            self._read[id(jaxpr)] = self._program(jaxpr)
        return self._read[id(jaxpr)]

    def _program(self, jaxpr: Any) -> Program:
        atoms: dict[Any, Atom] = {}

        def atom(var: Any) -> Atom:
            if isinstance(var, core.Literal):
                return _atom(var.aval, str(var))
            if var not in atoms:
                atoms[var] = _atom(var.aval)
            return atoms[var]

        return Program(
            inputs=tuple(map(atom, jaxpr.invars)),
            constants=tuple(map(atom, jaxpr.constvars)),
            equations=tuple(
                self._equation(eqn, tuple(map(atom, eqn.invars)), tuple(map(atom, eqn.outvars))) for eqn in jaxpr.eqns
            ),
            results=tuple(map(atom, jaxpr.outvars)),
        )

    def _equation(self, eqn: Any, inputs: tuple[Atom, ...], results: tuple[Atom, ...]) -> Equation:
        name, params = eqn.primitive.name, eqn.params
        try:
            form = self._form(name, params, inputs)
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            names, why = ", ".join(sorted(params)) or "none", f"{type(error).__name__}: {error}"
            raise UnknownForm(f"the parameters of the primitive {name!r} cannot be read ({names}): {why}") from error
        text = "" if isinstance(form, Call | Scan | While) else str(params)
        return Equation(name, inputs, results, form, str(eqn.source_info.name_stack), text)

    def _form(self, name: str, params: Mapping[str, Any], inputs: tuple[Atom, ...]) -> Form:
        if name == "scan":
            constants, carried = _scan_sizes(params)
            return Scan(self.program(params["jaxpr"]), params["length"], constants, carried)
        if name == "while":
            condition, body = (self.program(params[key]) for key in ("cond_jaxpr", "body_jaxpr"))
            return While(condition, body, params["body_nconsts"])
        if name in _READ:
            return _READ[name](params)
        if axes := _mesh_axes(name, params):
            return Collective(axes, params.get("all_gather_dimension", params.get("scatter_dimension", 0)))
        jaxprs = [] if name in UPDATES | REDUCTIONS else list(core.jaxprs_in_params(params))
        if len(jaxprs) == 1 and len(jaxprs[0].invars) == len(inputs) and name != "cond":
            return Call(self.program(jaxprs[0]), bool(params.get("prevent_cse")))
        return Programs(tuple(map(self.program, jaxprs))) if jaxprs else None


def _atom(aval: Any, literal: str | None = None) -> Atom:
    dtype = getattr(aval, "dtype", None)
    name = "" if dtype is None else getattr(dtype, "name", str(dtype))
    return Atom(tuple(getattr(aval, "shape", ())), name, getattr(dtype, "itemsize", 0), literal)


def _scan_sizes(params: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of constants and carried values of a scan."""
    if "num_consts" in params:  # JAX 0.10
        return params["num_consts"], params["num_carry"]
    constants, carried, _ = params["ft_in"].unpack()
    return len(constants), len(carried)


def _mesh_axes(name: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the mesh axis names of a collective. Axes of `jax.vmap` are numbers and are skipped."""
    if name in MOVES:
        return ()
    axes = params.get("axes", params.get("axis_name"))
    return tuple(axis for axis in (axes if isinstance(axes, tuple) else (axes,)) if isinstance(axis, str))


_READ: dict[str, Callable[[Mapping[str, Any]], Form]] = {
    "dot_general": lambda params: Product(*params["dimension_numbers"]),
    "conv_general_dilated": lambda params: Convolution(tuple(params["dimension_numbers"].rhs_spec[1:])),
    "transpose": lambda params: Transposition(tuple(params["permutation"])),
    "integer_pow": lambda params: Power(params["y"]),
    **dict.fromkeys(
        ATTENTION, lambda params: Attention(cudnn_time_axis(params["layout"]), "CAUSAL" in params["mask_type"].name)
    ),
}
"""Functions that read the `Form` of a primitive from its parameters, by primitive name."""


def trace_loss(loss: ShardedLoss) -> Program:
    """Trace the loss and its gradients. The result is one `shard_map`, whose body is the program of each device."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    with cudnn_assumed():
        return read_program(jax.make_jaxpr(loss.loss_and_gradients)(loss.abstract_params, loss.abstract_batch, key))
