"""Operations, memory traffic and collectives of a traced program, on each device.

`count` walks the program that JAX traced, loops as often as they run. Inside `shard_map` every shape is a device's own, so
that what is counted is what each device does.

Operations are counted as XLA counts them (`HloCostAnalysis`): two for each multiplication and addition of a matrix product or
convolution, one per element of what works element by element, one per element that a reduction takes in beyond those
that it gives, one per element of an all-reduce; functions such as exp, which take many, are counted apart.

Memory traffic is that of a program whose elementwise operations are fused: a value is written and read again where a
matrix product, a reduction, a collective, a loop or the like makes or uses it; what lies between is computed
on the way, from those of these values that it depends on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import Literal, jaxprs_in_params

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
    "reduce_scatter": "reduce-scatter",
    "unreduced_psum": "all-reduce",
    "unreduced_reduce_scatter": "reduce-scatter",
}
"""What JAX calls the collectives."""

VIEWS = frozenset(
    "bitcast_convert_type copy dynamic_slice expand_dims optimization_barrier pcast pvary random_unwrap random_wrap "
    "reduced_vary_cast reshape sharding_constraint slice split squeeze stop_gradient transpose".split()
)
"""Primitives that give a part of a value, or all of it in another shape: nothing is computed, and nothing is written."""

MOVES = VIEWS | frozenset(
    "axis_index broadcast_in_dim concatenate device_put dynamic_update_slice empty gather iota pad rev scatter stack "
    "unstack".split()
)
"""Primitives that place values and compute none."""

TRANSCENDENTAL = frozenset(
    "acosh asinh atan2 atanh cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1 lgamma log log1p logistic pow rsqrt "
    "sin sinh sqrt tan tanh".split()
)
"""Primitives that take several operations per element."""

REDUCTIONS = frozenset(
    "argmax argmin cumlogsumexp cummax cummin cumprod cumsum reduce reduce_and reduce_max reduce_min reduce_or "
    "reduce_prod reduce_sum reduce_window".split()
)
"""Primitives that compute their operands on the way and write their result to memory."""

PRODUCTS = frozenset({"conv_general_dilated", "dot_general"})
"""Primitives that multiply and add, from memory to memory."""

UPDATES = frozenset(
    "dynamic_update_slice scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub scatter_add scatter_max "
    "scatter_min scatter_mul scatter_sub".split()
)
"""Primitives that change a part of their first operand, where that is."""


@dataclass(frozen=True)
class Exchange:
    """A collective of a step, as often as it runs."""

    operation: str
    """all-gather, reduce-scatter, all-reduce, all-to-all or collective-permute."""

    axes: tuple[str, ...]
    """Names of the mesh axes whose devices exchange with each other."""

    dtype: str
    """Element type, by NumPy's name."""

    bytes: int
    """Bytes of its larger side on each device: what is gathered, what is scattered, what is sent."""

    count: int
    """How often it runs in a step."""


@dataclass(frozen=True)
class Counts:
    """What each device does in a step."""

    product_flops: dict[str, float] = field(default_factory=dict)
    """Floating-point operations of matrix products and convolutions, by the type of their operands."""

    other_flops: float = 0.0
    """Operations of everything else, one per element."""

    transcendentals: float = 0.0
    """Elements of which exp, log, tanh and the like are computed. XLA counts them apart."""

    traffic: float = 0.0
    """Bytes read from and written to memory, as far as operations are not fused."""

    exchanges: tuple[Exchange, ...] = ()
    """Collectives, alike ones together."""

    open_loops: int = 0
    """Loops whose number of rounds is known only when they run. One round of each is counted."""

    @property
    def flops(self) -> float:
        """All operations but the transcendental ones, as XLA's `cost_analysis` counts them."""
        return sum(self.product_flops.values()) + self.other_flops


def count(jaxpr: Any) -> Counts:
    """The counts of a program from `trace`."""
    tally = _Tally()
    tally.run(jaxpr.jaxpr, [_Value(_bytes(var.aval)) for var in jaxpr.jaxpr.invars], 1)
    return tally.counts()


class _Value:
    """A value of the program: in memory, or computed on the way from others that are."""

    __slots__ = ("bytes", "sources")

    def __init__(self, size: int, sources: frozenset[_Value] | None = None) -> None:
        self.bytes = size
        self.sources = sources
        """The values in memory that it is computed from. None: it is in memory itself."""


_NOTHING = frozenset[_Value]()


class _Tally:
    """The counts so far."""

    def __init__(self) -> None:
        self.products = Counter[str]()
        self.exchanges = Counter[tuple[str, tuple[str, ...], str, int]]()
        self.other = self.transcendentals = self.traffic = 0.0
        self.open_loops = 0

    def counts(self) -> Counts:
        """What has been counted."""
        found = tuple(Exchange(*kind, count=times) for kind, times in self.exchanges.items())
        return Counts(
            dict(self.products), self.other, self.transcendentals, self.traffic, found, open_loops=self.open_loops
        )

    def run(self, jaxpr: Any, inputs: Sequence[_Value], times: int) -> list[_Value]:
        """Count a program that runs so many times, and give what comes out of it."""
        values: dict[Any, _Value] = dict(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> _Value:
            if isinstance(atom, Literal):
                return _Value(0, _NOTHING)
            if atom not in values:
                values[atom] = _Value(_bytes(atom.aval))  # a constant of the program
            return values[atom]

        for eqn in jaxpr.eqns:
            results = self.step(eqn, [read(atom) for atom in eqn.invars], times)
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, eqn: Any, inputs: list[_Value], times: int) -> list[_Value]:
        """Count one equation, and give its results."""
        name, params = eqn.primitive.name, eqn.params
        programs = [] if name in UPDATES | REDUCTIONS else list(jaxprs_in_params(params))
        if name == "scan":
            return self.loop(eqn, inputs, times)
        if len(programs) == 1 and len(programs[0].invars) == len(inputs):
            return self.run(programs[0], inputs, times)
        if programs:
            return self.choices(eqn, programs, inputs, times)
        axes = _named_axes(params) if name in COLLECTIVES else ()
        self.operations(eqn, bool(axes), times)
        if axes:
            for before, after in zip(eqn.invars, eqn.outvars, strict=True):
                size = max(_bytes(before.aval), _bytes(after.aval))
                self.exchanges[COLLECTIVES[name], axes, before.aval.dtype.name, size] += times
        return self.results(eqn, inputs, bool(axes), times)

    def operations(self, eqn: Any, exchanges: bool, times: int) -> None:
        """Count the operations of an equation."""
        name, result = eqn.primitive.name, _size(eqn.outvars[0].aval)
        if name in PRODUCTS:
            flops = _dot_flops(eqn) if name == "dot_general" else _convolution_flops(eqn)
            dtype = max((var.aval.dtype for var in eqn.invars), key=lambda dtype: dtype.itemsize)
            self.products[dtype.name] += times * flops
        elif name in TRANSCENDENTAL:
            self.transcendentals += times * result
        elif exchanges:
            self.other += times * sum(_size(v.aval) for v in eqn.outvars) * (COLLECTIVES[name] == "all-reduce")
        elif name.startswith("reduce_") or name in ("argmax", "argmin"):
            self.other += times * (_size(eqn.invars[0].aval) - result)
        elif name in UPDATES:
            self.other += times * _size(eqn.invars[-1].aval) * (name not in MOVES)
        elif name == "integer_pow":
            self.other += times * result * _multiplications(eqn.params["y"])
        elif name == "convert_element_type":
            self.other += times * result * (eqn.invars[0].aval.dtype != eqn.outvars[0].aval.dtype)
        elif name not in MOVES:
            self.other += times * result

    def results(self, eqn: Any, inputs: list[_Value], exchanges: bool, times: int) -> list[_Value]:
        """Count what an equation reads and writes, and give its results."""
        name, sizes = eqn.primitive.name, [_bytes(var.aval) for var in eqn.outvars]
        if name in VIEWS and inputs[0].sources is None:
            return [inputs[0] if size == inputs[0].bytes else _Value(size) for size in sizes]
        if name in UPDATES:
            changed = inputs[-1 if name not in ("dynamic_update_slice",) else 1]
            self.store(inputs[0], times)
            self.read([changed], times)
            self.traffic += times * changed.bytes * (1 if name in MOVES else 2)
        elif name == "gather":
            self.store(inputs[0], times)
            self.read(inputs[1:], times)
            self.traffic += times * 2 * sizes[0]
        elif name in REDUCTIONS:
            self.read(inputs, times)
            self.traffic += times * sum(sizes)
        elif name in PRODUCTS or exchanges or name in ("sort", "top_k"):
            for value in inputs:
                self.store(value, times)
            self.read(inputs, times)
            self.traffic += times * sum(sizes)
        else:
            sources = _NOTHING.union(*map(_sources, inputs))
            return [_Value(size, sources) for size in sizes]
        return [_Value(size) for size in sizes]

    def read(self, values: Iterable[_Value], times: int) -> None:
        """Count the bytes from which values are computed, each once."""
        sources = _NOTHING.union(*map(_sources, values))
        self.traffic += times * sum(source.bytes for source in sources)

    def store(self, value: _Value, times: int) -> None:
        """Put a value into memory, unless it is there."""
        if value.sources is not None:
            self.read([value], times)
            self.traffic += times * value.bytes
            value.sources = None

    def loop(self, eqn: Any, inputs: list[_Value], times: int) -> list[_Value]:
        """Count a scan: its body as often as it runs. In each round a slice of the stacked inputs is read and one of the
        stacked outputs written, and the carry is written anew."""
        body, length = eqn.params["jaxpr"].jaxpr, eqn.params["length"]
        for value in inputs:
            self.store(value, times)
        inside = [_Value(_bytes(var.aval)) for var in body.invars]
        for value in self.run(body, inside, times * length):
            self.store(value, times * length)
        return [_Value(_bytes(var.aval)) for var in eqn.outvars]

    def choices(self, eqn: Any, programs: list[Any], inputs: list[_Value], times: int) -> list[_Value]:
        """Count the costliest of several programs of which one runs (`cond`), or each once where we know no better."""
        for value in inputs:
            self.store(value, times)
        tallies = []
        for program in programs:
            tallies.append(_Tally())
            for value in tallies[-1].run(program, [_Value(_bytes(var.aval)) for var in program.invars], times):
                tallies[-1].store(value, times)
        if eqn.primitive.name == "cond":
            tallies = [max(tallies, key=lambda tally: (sum(tally.products.values()), tally.traffic))]
        for tally in tallies:
            self.add(tally)
        self.open_loops += times * (eqn.primitive.name == "while")
        return [_Value(_bytes(var.aval)) for var in eqn.outvars]

    def add(self, other: _Tally) -> None:
        """Add the counts of another program."""
        self.products += other.products
        self.exchanges += other.exchanges
        self.other += other.other
        self.transcendentals += other.transcendentals
        self.traffic += other.traffic
        self.open_loops += other.open_loops


def _sources(value: _Value) -> frozenset[_Value]:
    return frozenset({value}) if value.sources is None else value.sources


def _size(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", ()))


def _bytes(aval: Any) -> int:
    return _size(aval) * aval.dtype.itemsize if hasattr(aval, "dtype") else 0


def _named_axes(params: dict[str, Any]) -> tuple[str, ...]:
    """Names of the mesh axes of a collective; what `jax.vmap` maps over has numbers."""
    axes = params.get("axes", params.get("axis_name"))
    return tuple(axis for axis in (axes if isinstance(axes, tuple) else (axes,)) if isinstance(axis, str))


def _dot_flops(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * _size(eqn.outvars[0].aval) * math.prod(left[axis] for axis in contracted)


def _convolution_flops(eqn: Any) -> int:
    kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
    return 2 * _size(eqn.outvars[0].aval) * math.prod(kernel[axis] for axis in spec[1:])


def _multiplications(power: int) -> int:
    """Multiplications and divisions of an integer power, by squaring."""
    size = abs(power)
    return size.bit_length() + size.bit_count() - 2 + (power < 0)
