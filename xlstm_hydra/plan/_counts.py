"""Operations, memory traffic and collectives of a traced program, on each device.

`count` walks the program that JAX traced, loops as often as they run. Inside `shard_map` every shape is a device's own,
so that what is counted is what each device does.

Operations are counted as XLA counts them (`HloCostAnalysis`): two per multiplication and addition of a matrix product
or convolution, one per element of what works element by element, one per element that a reduction takes in beyond
those that it gives, one per element of an all-reduce. Functions such as exp, which take many, are counted apart.

Memory traffic is that of a program whose elementwise operations are fused: a value is written and read again where a
matrix product, a reduction, a collective, a loop or the like makes or uses it; what lies between is computed
on the way, from those of these values that it depends on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import Literal, jaxprs_in_params

from ._primitives import (
    FROM_MEMORY,
    MOVES,
    PRODUCTS,
    REDUCTIONS,
    TRANSCENDENTAL,
    UPDATES,
    VIEWS,
    bytes_of,
    collective,
    named_axes,
    operations,
)


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

    flops_once: float = 0.0
    """`flops` if the body of each loop ran once: what XLA's `cost_analysis` says of a program with loops."""

    open_loops: int = 0
    """Loops whose number of rounds is known only when they run. One round of each is counted."""

    @property
    def flops(self) -> float:
        """All operations but the transcendental ones, as XLA's `cost_analysis` counts them."""
        return sum(self.product_flops.values()) + self.other_flops


def count(jaxpr: Any) -> Counts:
    """The counts of a program from `trace`."""
    tally = _Tally()
    tally.run(jaxpr.jaxpr, [_Value(bytes_of(var.aval)) for var in jaxpr.jaxpr.invars], 1)
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
        self.other = self.transcendentals = self.traffic = self.once = 0.0
        self.open_loops = 0

    def counts(self) -> Counts:
        """What has been counted."""
        found = tuple(Exchange(*kind, count=times) for kind, times in self.exchanges.items())
        return Counts(
            product_flops=dict(self.products),
            other_flops=self.other,
            transcendentals=self.transcendentals,
            traffic=self.traffic,
            exchanges=found,
            flops_once=self.once,
            open_loops=self.open_loops,
        )

    def run(self, jaxpr: Any, inputs: Sequence[_Value], times: int) -> list[_Value]:
        """Count a program that runs so many times, and give what comes out of it."""
        values: dict[Any, _Value] = dict(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> _Value:
            if isinstance(atom, Literal):
                return _Value(0, _NOTHING)
            if atom not in values:
                values[atom] = _Value(bytes_of(atom.aval))  # a constant of the program
            return values[atom]

        for eqn in jaxpr.eqns:
            results = self.step(eqn, [read(atom) for atom in eqn.invars], times)
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, eqn: Any, inputs: list[_Value], times: int) -> list[_Value]:
        """Count one equation, and give its results."""
        name = eqn.primitive.name
        programs = [] if name in UPDATES | REDUCTIONS else list(jaxprs_in_params(eqn.params))
        if name == "scan":
            return self.loop(eqn, inputs, times)
        if len(programs) == 1 and len(programs[0].invars) == len(inputs):
            return self.run(programs[0], inputs, times)
        if programs:
            return self.choices(eqn, programs, inputs, times)
        if name in TRANSCENDENTAL:
            self.transcendentals += times * operations(eqn)
        else:
            self.work(eqn, times)
        if axes := named_axes(eqn):
            for before, after in zip(eqn.invars, eqn.outvars, strict=True):
                size = max(bytes_of(before.aval), bytes_of(after.aval))
                self.exchanges[collective(eqn), axes, before.aval.dtype.name, size] += times
        return self.results(eqn, inputs, bool(axes), times)

    def work(self, eqn: Any, times: int) -> None:
        """Count the operations of an equation."""
        number = operations(eqn)
        self.once += number
        if eqn.primitive.name in PRODUCTS:
            dtype = max((var.aval.dtype for var in eqn.invars[:2]), key=lambda dtype: dtype.itemsize)
            self.products[dtype.name] += times * number
        else:
            self.other += times * number

    def results(self, eqn: Any, inputs: list[_Value], exchanges: bool, times: int) -> list[_Value]:
        """Count what an equation reads and writes, and give its results."""
        name, sizes = eqn.primitive.name, [bytes_of(var.aval) for var in eqn.outvars]
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
        elif name in REDUCTIONS or name in FROM_MEMORY or exchanges:
            for value in () if name in REDUCTIONS else inputs:
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
        """Count a scan: its body as often as it runs. Each round reads a slice of the stacked inputs, and writes one of
        the stacked outputs and the carry."""
        body, length = eqn.params["jaxpr"].jaxpr, eqn.params["length"]
        for value in inputs:
            self.store(value, times)
        inside = [_Value(bytes_of(var.aval)) for var in body.invars]
        for value in self.run(body, inside, times * length):
            self.store(value, times * length)
        return [_Value(bytes_of(var.aval)) for var in eqn.outvars]

    def choices(self, eqn: Any, programs: list[Any], inputs: list[_Value], times: int) -> list[_Value]:
        """Count the costliest of several programs of which one runs (`cond`), or each once where we know no better."""
        for value in inputs:
            self.store(value, times)
        tallies = []
        for program in programs:
            tallies.append(_Tally())
            for value in tallies[-1].run(program, [_Value(bytes_of(var.aval)) for var in program.invars], times):
                tallies[-1].store(value, times)
        if eqn.primitive.name == "cond":
            tallies = [max(tallies, key=lambda tally: (sum(tally.products.values()), tally.traffic))]
        for tally in tallies:
            self.add(tally)
        self.open_loops += times * (eqn.primitive.name == "while")
        return [_Value(bytes_of(var.aval)) for var in eqn.outvars]

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
