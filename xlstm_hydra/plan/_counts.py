"""Operations, memory traffic and collectives of a traced program on each device.

`count` walks the program that JAX traced and counts the body of a loop as often as it runs. Shapes inside `shard_map`
are those of one device, so the counts are those of one device.

Operations are counted like XLA's `HloCostAnalysis`: two per multiplication and addition of a matrix product or
convolution, one per element of an elementwise operation, one per element that a reduction removes, and one per element
of an all-reduce. Transcendental functions such as exp are counted separately.

Memory traffic assumes that elementwise operations are fused. Values are written and read where a matrix product, a
reduction, a collective, a loop or a similar operation produces or consumes them. Everything in between is computed on
the fly from such values.
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
    """A collective of a step, and how often it runs."""

    operation: str
    """all-gather, reduce-scatter, all-reduce, all-to-all or collective-permute."""

    axes: tuple[str, ...]
    """Names of the mesh axes over which devices communicate."""

    dtype: str
    """NumPy name of the dtype."""

    bytes: int
    """Bytes of its larger side on each device: the gathered, scattered or sent array."""

    count: int
    """Number of executions per step."""


@dataclass(frozen=True)
class Counts:
    """Operations, memory traffic and collectives of each device in a step."""

    product_flops: dict[str, float] = field(default_factory=dict)
    """Floating-point operations of matrix products and convolutions by the dtype of their operands."""

    other_flops: float = 0.0
    """All other operations, one per element."""

    transcendentals: float = 0.0
    """Elements to which exp, log, tanh and similar functions are applied. XLA counts them separately."""

    traffic: float = 0.0
    """Bytes read from and written to memory by operations that are not fused."""

    exchanges: tuple[Exchange, ...] = ()
    """Collectives, with equal ones merged."""

    flops_once: float = 0.0
    """`flops` with the body of each loop counted once, like XLA's `cost_analysis` of a program with loops."""

    open_loops: int = 0
    """Number of loops with an unknown number of iterations. One iteration of each is counted."""

    unknown: tuple[str, ...] = ()
    """Names of unknown primitives. Each element of their results counts as one operation."""

    @property
    def flops(self) -> float:
        """All operations except the transcendental ones, like XLA's `cost_analysis`."""
        return sum(self.product_flops.values()) + self.other_flops


def count(program: Program) -> Counts:
    """Return the counts of a program."""
    tally = _Tally()
    tally.run(program, _in_memory(program.inputs), 1)
    return tally.counts()


class _Value:
    """A value of the program: stored in memory, or computed on the fly from stored values."""

    __slots__ = ("bytes", "sources")

    def __init__(self, size: int, sources: frozenset[_Value] | None = None) -> None:
        self.bytes = size
        self.sources = sources
        """The stored values that it is computed from. None: it is stored itself."""


_NOTHING = frozenset[_Value]()


class _Tally:
    """The counts so far."""

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
        """Count a program that runs `times` times, and return its results."""
        values: dict[Atom, _Value] = dict(zip(program.inputs, inputs, strict=True))

        def read(atom: Atom) -> _Value:
            if atom.literal is not None:
                return _Value(0, _NOTHING)
            if atom not in values:
                values[atom] = _Value(atom.bytes)  # a constant of the program, or a result of another phase
            return values[atom]

        for equation in program.equations:
            results = self.step(equation, [read(atom) for atom in equation.inputs], times)
            values.update(zip(equation.results, results, strict=True))
        return [read(atom) for atom in program.results]

    def step(self, equation: Equation, inputs: list[_Value], times: int) -> list[_Value]:
        """Count an equation, and return its results."""
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
        """Count the memory traffic of an equation, and return its results."""
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
        """Count the bytes of the stored values that some values are computed from, each once."""
        sources = _NOTHING.union(*map(_sources, values))
        self.traffic += times * sum(source.bytes for source in sources)

    def store(self, value: _Value, times: int) -> None:
        """Store a value in memory if it is not stored yet."""
        if value.sources is not None:
            self.read([value], times)
            self.traffic += times * value.bytes
            value.sources = None

    def loop(self, equation: Equation, scan: Scan, inputs: list[_Value], times: int) -> list[_Value]:
        """Count all iterations of a scan. Each reads a slice of the stacked inputs, and writes a slice of the stacked
        outputs and the carried values."""
        for value in inputs:
            self.store(value, times)
        for value in self.run(scan.body, _in_memory(scan.body.inputs), times * scan.length):
            self.store(value, times * scan.length)
        return _in_memory(equation.results)

    def choices(self, equation: Equation, form: While | Programs, inputs: list[_Value], times: int) -> list[_Value]:
        """Count the most expensive branch of a `cond`; otherwise count every program of the equation once."""
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
        """Add the counts of another program."""
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
"""Operations per element of primitives with more than one. For random bits: Threefry as XLA counts it, with the body of
its loop counted once."""

_ATTENTION_PRODUCTS: dict[str, tuple[int, int]] = dict(zip(ATTENTION, [(1, 1), (3, 2)], strict=True))
"""Number of attention products with the width of the keys and of the values (FlashAttention, arXiv 2205.14135): scores
and output in the forward pass; scores again and the gradients of queries, keys, scores and values in the backward."""


def operations(equation: Equation) -> int:
    """Return the operations of an equation as XLA counts them; for transcendental functions, the number of elements."""
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
    """Operations of the products of attention, or half of them for causal attention."""
    queries, keys, values = (atom.shape for atom in equation.inputs[:3])
    of_keys, of_values = _ATTENTION_PRODUCTS[equation.name]
    pairs = math.prod(queries[:-1]) * keys[form.time_axis]
    flops = 2 * pairs * (of_keys * keys[-1] + of_values * values[-1])
    return flops // 2 if form.is_causal else flops
