"""Count the operations, memory traffic and collectives of a traced program on each device.

`count` walks the traced program and multiplies the counts of a loop body by the number of iterations. Shapes inside
`shard_map` are local to a device, so the counts are per device.

Operations are counted as in XLA's `HloCostAnalysis`: two per multiply-add of a matrix product or convolution, one per
element of an elementwise operation, one per element removed by a reduction, and one per element of an all-reduce.
Transcendental functions such as exp are counted separately.

Memory traffic assumes that elementwise operations are fused. An array is written to memory or read from memory where a
matrix product, a reduction, a collective, a loop or a similar operation produces or consumes it. All other values are
computed on the fly from these arrays.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ._jaxpr import (
    ATTENTION,
    COLLECTIVES,
    FROM_MEMORY,
    KNOWN,
    MOVES,
    PRODUCTS,
    REDUCTIONS,
    TRANSCENDENTAL,
    UPDATES,
    VIEWS,
    Atom,
    Attention,
    Call,
    Collective,
    Convolution,
    Equation,
    Power,
    Product,
    Program,
    Programs,
    Scan,
    While,
)


@dataclass(frozen=True)
class Exchange:
    """A collective, and the number of times it runs per step."""

    operation: str
    """`all-gather`, `reduce-scatter`, `all-reduce`, `all-to-all` or `collective-permute`."""

    axes: tuple[str, ...]
    """Names of the mesh axes over which devices communicate."""

    dtype: str
    """NumPy name of the dtype."""

    bytes: int
    """Size in bytes of the larger of its input and output on each device."""

    count: int
    """Number of executions per step."""


@dataclass(frozen=True)
class Counts:
    """Operations, memory traffic and collectives of each device in a step."""

    product_flops: dict[str, float] = field(default_factory=dict)
    """Floating-point operations in matrix products and convolutions, by operand dtype."""

    other_flops: float = 0.0
    """All other operations, excluding transcendental functions."""

    transcendentals: float = 0.0
    """Number of elements to which exp, log, tanh and similar functions are applied. XLA also counts them separately."""

    traffic: float = 0.0
    """Bytes read from and written to memory, assuming that elementwise operations are fused."""

    exchanges: tuple[Exchange, ...] = ()
    """Collectives. Equal collectives are merged and their counts added."""

    flops_once: float = 0.0
    """`flops` with each loop body counted once, as in XLA's `cost_analysis`."""

    open_loops: int = 0
    """Number of `while` loops, whose number of iterations is unknown. One iteration of each is counted."""

    unknown: tuple[str, ...] = ()
    """Names of unknown primitives, counted as one operation per element of the result."""

    @property
    def flops(self) -> float:
        """All operations except transcendental functions, as in XLA's `cost_analysis`."""
        return sum(self.product_flops.values()) + self.other_flops


def count(program: Program) -> Counts:
    """Return the operations, memory traffic and collectives of a program."""
    tally = _Tally()
    tally.run(program, _in_memory(program.inputs), 1)
    return tally.counts()


class _Value:
    """A value of the program, either stored in memory or computed on the fly from stored values."""

    __slots__ = ("bytes", "sources")

    def __init__(self, size: int, sources: frozenset[_Value] | None = None) -> None:
        self.bytes = size
        self.sources = sources
        """Stored values that this value is computed from. None: this value is itself stored."""


_NOTHING = frozenset[_Value]()


class _Tally:
    """Running totals of the counts."""

    def __init__(self) -> None:
        self.products = Counter[str]()
        self.exchanges = Counter[tuple[str, tuple[str, ...], str, int]]()
        self.other = self.transcendentals = self.traffic = self.once = 0.0
        self.open_loops = 0
        self.unknown: dict[str, None] = {}

    def counts(self) -> Counts:
        """Return the totals."""
        found = tuple(Exchange(*kind, count=times) for kind, times in self.exchanges.items())
        return Counts(
            product_flops=dict(self.products),
            other_flops=self.other,
            transcendentals=self.transcendentals,
            traffic=self.traffic,
            exchanges=found,
            flops_once=self.once,
            open_loops=self.open_loops,
            unknown=tuple(self.unknown),
        )

    def run(self, program: Program, inputs: Sequence[_Value], times: int) -> list[_Value]:
        """Count a program that runs `times` times per step, and return its results."""
        values: dict[Atom, _Value] = dict(zip(program.inputs, inputs, strict=True))

        def read(atom: Atom) -> _Value:
            if atom.literal is not None:
                return _Value(0, _NOTHING)
            if atom not in values:
                values[atom] = _Value(atom.bytes)  # a constant, or a result of another phase (see `_probe.split`)
            return values[atom]

        for equation in program.equations:
            results = self.step(equation, [read(atom) for atom in equation.inputs], times)
            values.update(zip(equation.results, results, strict=True))
        return [read(atom) for atom in program.results]

    def step(self, equation: Equation, inputs: list[_Value], times: int) -> list[_Value]:
        """Count an equation and return its results."""
        name, form = equation.name, equation.form
        if isinstance(form, Scan):
            return self.loop(equation, form, inputs, times)
        if isinstance(form, Call):
            return self.run(form.program, inputs, times)
        if isinstance(form, While | Programs):
            return self.choices(equation, form, inputs, times)
        if name in TRANSCENDENTAL:
            self.transcendentals += times * operations(equation)
        else:
            self.work(equation, times)
        if isinstance(form, Collective):
            for before, after in zip(equation.inputs, equation.results, strict=True):
                size = max(before.bytes, after.bytes)
                self.exchanges[COLLECTIVES.get(name, name), form.axes, before.dtype, size] += times
        return self.results(equation, inputs, times)

    def work(self, equation: Equation, times: int) -> None:
        """Count the operations of an equation."""
        number = operations(equation)
        self.once += number
        if equation.name not in KNOWN and not isinstance(equation.form, Collective):
            self.unknown[equation.name] = None
        if equation.name in PRODUCTS:
            operand = max(equation.inputs[:2], key=lambda atom: atom.itemsize)
            self.products[operand.dtype] += times * number
        else:
            self.other += times * number

    def results(self, equation: Equation, inputs: list[_Value], times: int) -> list[_Value]:
        """Count the memory traffic of an equation and return its results."""
        name, sizes = equation.name, [result.bytes for result in equation.results]
        if name in VIEWS and inputs[0].sources is None:
            return [inputs[0] if size == inputs[0].bytes else _Value(size) for size in sizes]
        if name in UPDATES:
            changed = inputs[1] if name == "dynamic_update_slice" else inputs[-1]
            self.store(inputs[0], times)
            self.read([changed], times)
            self.traffic += times * changed.bytes * (1 if name in MOVES else 2)
        elif name == "gather":
            self.store(inputs[0], times)
            self.read(inputs[1:], times)
            self.traffic += times * 2 * sizes[0]
        elif name in REDUCTIONS or name in FROM_MEMORY or isinstance(equation.form, Collective):
            for value in () if name in REDUCTIONS else inputs:
                self.store(value, times)
            self.read(inputs, times)
            self.traffic += times * sum(sizes)
        else:
            sources = _NOTHING.union(*map(_sources, inputs))
            return [_Value(size, sources) for size in sizes]
        return [_Value(size) for size in sizes]

    def read(self, values: Iterable[_Value], times: int) -> None:
        """Count the bytes of the stored arrays that `values` depend on, each array once."""
        sources = _NOTHING.union(*map(_sources, values))
        self.traffic += times * sum(source.bytes for source in sources)

    def store(self, value: _Value, times: int) -> None:
        """Mark a value as stored and count the traffic of computing and writing it, unless it is already stored."""
        if value.sources is not None:
            self.read([value], times)
            self.traffic += times * value.bytes
            value.sources = None

    def loop(self, equation: Equation, scan: Scan, inputs: list[_Value], times: int) -> list[_Value]:
        """Count all iterations of a scan. Each iteration reads its slices of the stacked inputs, and writes the carried
        values and its slices of the stacked outputs."""
        for value in inputs:
            self.store(value, times)
        for value in self.run(scan.body, _in_memory(scan.body.inputs), times * scan.length):
            self.store(value, times * scan.length)
        return _in_memory(equation.results)

    def choices(self, equation: Equation, form: While | Programs, inputs: list[_Value], times: int) -> list[_Value]:
        """Count the most expensive branch of a `cond`, one iteration of a `while` loop, or all programs of an unknown
        primitive."""
        for value in inputs:
            self.store(value, times)
        tallies = []
        for program in (form.condition, form.body) if isinstance(form, While) else form.programs:
            tallies.append(_Tally())
            for value in tallies[-1].run(program, _in_memory(program.inputs), times):
                tallies[-1].store(value, times)
        for tally in tallies:
            self.unknown |= tally.unknown
        if equation.name == "cond":
            tallies = [max(tallies, key=lambda tally: (sum(tally.products.values()), tally.traffic))]
        elif not isinstance(form, While):
            self.unknown[equation.name] = None
        for tally in tallies:
            self.add(tally)
        self.open_loops += times * isinstance(form, While)
        return _in_memory(equation.results)

    def add(self, other: _Tally) -> None:
        """Add the totals of another tally."""
        self.products += other.products
        self.exchanges += other.exchanges
        self.other += other.other
        self.transcendentals += other.transcendentals
        self.traffic += other.traffic
        self.once += other.once
        self.open_loops += other.open_loops


def _sources(value: _Value) -> frozenset[_Value]:
    return frozenset({value}) if value.sources is None else value.sources


def _in_memory(atoms: Iterable[Atom]) -> list[_Value]:
    return [_Value(atom.bytes) for atom in atoms]


# ---- operations

_SEVERAL = {"one_minus_square": 2, "random_bits": 29}
"""Operations per element, for primitives with more than one. For `random_bits`: Threefry as counted by XLA, with its
loop body counted once."""

_ATTENTION_PRODUCTS: dict[str, tuple[int, int]] = dict(zip(ATTENTION, [(1, 1), (3, 2)], strict=True))
"""Number of matrix products in each attention primitive that involve the head dimension of the keys, and of the values
(FlashAttention, arXiv 2205.14135). Forward: scores; output. Backward: scores, gradients of queries and keys; gradients
of attention weights and values."""


def operations(equation: Equation) -> int:
    """Return the number of operations of an equation as counted by XLA; for transcendental functions, the number of
    elements."""
    name, inputs, form = equation.name, equation.inputs, equation.form
    if not equation.results:
        return 0
    taken, given = inputs[0].size if inputs else 0, equation.results[0].size
    if isinstance(form, Collective):
        return sum(result.size for result in equation.results) if COLLECTIVES.get(name) == "all-reduce" else 0
    if isinstance(form, Product):
        return 2 * given * math.prod(inputs[0].shape[axis] for axis in form.contracted[0])
    if isinstance(form, Convolution):  # includes padding, unlike XLA
        return 2 * given * math.prod(inputs[1].shape[axis] for axis in form.summed)
    if isinstance(form, Attention):
        return _attention(equation, form)
    if isinstance(form, Power):
        power = abs(form.exponent)  # exponentiation by squaring
        return given * (power.bit_length() + power.bit_count() - 2 + (form.exponent < 0))
    if name.startswith("reduce_") or name in ("argmax", "argmin"):
        return taken - given
    if (times := _SEVERAL.get(name)) is not None:
        return times * given
    if name in MOVES or (name == "convert_element_type" and inputs[0].dtype == equation.results[0].dtype):
        return 0
    return inputs[-1].size if name in UPDATES else given


def _attention(equation: Equation, form: Attention) -> int:
    """Return the operations of the matrix products in attention, halved if it is causal."""
    queries, keys, values = (atom.shape for atom in equation.inputs[:3])
    of_keys, of_values = _ATTENTION_PRODUCTS[equation.name]
    pairs = math.prod(queries[:-1]) * keys[form.time_axis]
    flops = 2 * pairs * (of_keys * keys[-1] + of_values * values[-1])
    return flops // 2 if form.is_causal else flops
