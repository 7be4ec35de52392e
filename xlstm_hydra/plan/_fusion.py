"""Select the results of a program that are stored in memory, following XLA's fusion.

Elementwise operations, broadcasts, slices and similar operations are computed inside each operation that reads their
result. A result is stored if

- a matrix product, a reduction, a collective, a loop or the end of the program needs it in memory;
- it is expensive to compute (an exponential or a division) and several operations read it;
- it is computed from several arrays in the forward pass, and both passes read it.

If a stored result is cheap to compute from a single array, its readers recompute it from that array. The reduction of a
product of two arrays reads the two arrays. A matrix product needs the array axes of its operands in a certain order,
and otherwise reads a transposed copy. The same holds for a collective along an array axis other than the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ._dataflow import UPDATES, Graph, Operation, Value
from ._jaxpr import ELEMENTWISE, TRANSCENDENTAL, Collective, Product, Scan

EXPENSIVE = TRANSCENDENTAL | {"div", "rem"}
"""Elementwise operations that are too expensive to compute twice."""

MOVING = frozenset("broadcast_in_dim concatenate dynamic_slice gather iota pad rev slice stack transpose".split())
"""Operations that move elements. Like elementwise operations, they are computed inside their readers."""


@dataclass(eq=False, slots=True)
class Buffer:
    """Memory of a stored result."""

    value: Value
    bytes: int
    maker: Step
    at_start: bool = False
    """True if the buffer exists from the start of the program or loop body."""

    start: int = 0
    end: int = 0
    last: Step | None = None
    """Last step that reads the buffer."""


@dataclass(eq=False, slots=True)
class Step:
    """Operations that are fused and run together."""

    operation: Operation | None
    reads: dict[Buffer, bool]
    """Buffers that the step reads. True: a result of the same size may reuse the buffer."""

    makes: list[Buffer] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Fused:
    """A program or loop body after fusion."""

    steps: list[Step]
    kept: list[Buffer]
    """Buffers that still exist at the end."""


def fuse(graph: Graph, carried: range = range(0), sliced: range = range(0), is_body: bool = False) -> Fused:
    """Return the fused steps of a program, a loop body or a branch.

    Args:
        graph: the program, body or branch.
        carried: positions of the carried arguments. The first results are their new values.
        sliced: positions of the arguments that are slices of stacked arrays.
        is_body: true for a body or branch, whose results are stored in buffers outside it.
    """
    return _Fusion(graph, carried, sliced, is_body).run()


class _Fusion:
    def __init__(self, graph: Graph, carried: range, sliced: range, is_body: bool):
        self.graph, self.carried, self.is_body = graph, carried, is_body
        self.stored: set[Value] = set()
        self.buffers: dict[tuple[Value, str], Buffer | None] = {(value, "as it is"): None for value in graph.arguments}
        self.sources: dict[Value, dict[Buffer, bool]] = {value: {} for value in graph.arguments}
        self.steps: list[Step] = []
        self.slices = dict.fromkeys(graph.arguments[number] for number in sliced)  # in the order of the program
        for value in self.slices:
            del self.buffers[value, "as it is"]

    def run(self) -> Fused:
        """Return the steps in the order of the program."""
        self._choose_stored()
        copies = [self._copy_of_carried(number) for number in self.carried]
        for value in [value for value in self.slices if value in self.stored]:
            self._make(value, "as it is", {})
        for operation in self.graph.operations:
            self._add(operation)
        kept = []
        for number, value in enumerate(self.graph.results):
            if value is None:
                continue
            reads = self._reads(value)
            if not self.is_body:
                kept += reads
                continue
            self.steps.append(last := Step(None, reads))
            if number < len(copies):
                self._settle_carried(copies[number], value, last)
        return Fused(self.steps, kept)

    def _choose_stored(self) -> None:
        """Select the values to store: values that a reader needs in memory, and expensive values on which several
        results depend."""
        roots: dict[Value, set[Any]] = {}
        results = set(self.graph.results)

        def visit(value: Value, expensive: bool) -> None:
            found: set[Any] = set()
            for reader, number in value.readers:
                need = need_of(reader, number)
                if need != "fused":
                    found.add((value, need))
                else:
                    found |= {reader.results[0]} if self._read_from_memory(reader) else roots[reader.results[0]]
            roots[value] = found | ({value} if value in results else set())
            if (
                (value, "as it is") in found
                or (value in results and not self.is_body)
                or (expensive and len(roots[value]) > 1)
            ):
                self.stored.add(value)

        for operation in reversed(self.graph.operations):
            if _is_fused(operation):
                visit(operation.results[0], operation.name in EXPENSIVE or _is_read_in_both_passes(operation))
        for value in self.slices:
            visit(value, False)

    def _add(self, operation: Operation) -> None:
        if _is_fused(operation):
            (value,) = operation.results
            aligned = operation.name in ELEMENTWISE
            reads: dict[Buffer, bool] = {}
            for operand in operation.operands:
                for buffer, same in self._reads(operand).items():
                    same = same and aligned and buffer.bytes == value.bytes
                    reads[buffer] = reads.get(buffer, True) and same
            if value in self.stored:
                self._make(value, "as it is", reads, operation)
            if not self._read_from_memory(operation):
                self.sources[value] = reads
            return
        reads = {}
        for number, operand in enumerate(operation.operands):
            need = need_of(operation, number)
            if operand is not None and (buffer := self._buffer(operand, need)) is not None:
                if need == "flat" and buffer is self.buffers.get((operand, "as it is")):
                    reads[self._view(buffer)] = False
                reads[buffer] = operation.name in ("scan", "while", "scatter", *UPDATES)
        self.steps.append(step := Step(operation, reads))
        first_stacked = operation.form.carried if isinstance(operation.form, Scan) else len(operation.results)
        for number, value in enumerate(operation.results):
            buffer = Buffer(value, value.bytes, step, at_start=number >= first_stacked)
            step.makes.append(buffer)
            self.buffers[value, "as it is"] = buffer
            self.sources[value] = {buffer: True}
        if operation.name == "all_gather" and _crosses(operation):
            (value,) = operation.results
            self._make(value, "as it is", {step.makes[0]: False}, operation)

    def _read_from_memory(self, operation: Operation) -> bool:
        """True if readers load the stored result instead of recomputing it: it is expensive, or it is computed from
        several arrays of its size."""
        return operation.results[0] in self.stored and not _is_unary(operation)

    def _reads(self, value: Value | None) -> dict[Buffer, bool]:
        """Return the buffers that must be read to compute a value inside its reader."""
        return {} if value is None else self.sources[value]

    def _buffer(self, value: Value, need: str) -> Buffer | None:
        """Return the buffer of a value with its array axes in the required order. None: the value is an argument, whose
        buffer is outside."""
        if need == "flat" and (value, "as it is") in self.buffers:
            need = "as it is"
        if (value, need) not in self.buffers:
            self._make(value, need, dict.fromkeys(self._reads(value), False), value.source)
        return self.buffers[value, need]

    def _make(self, value: Value, need: str, reads: dict[Buffer, bool], operation: Operation | None = None) -> Buffer:
        step = Step(operation or value.source, reads)
        step.makes.append(buffer := Buffer(value, value.bytes, step))
        self.steps.append(step)
        self.buffers[value, need] = buffer
        if need == "as it is":
            self.sources[value] = {buffer: True}
        return buffer

    def _view(self, buffer: Buffer) -> Buffer:
        """Return a view of a buffer with merged array axes. It takes no memory, but delays its readers by one step."""
        self.steps.append(step := Step(None, {buffer: False}))
        step.makes.append(view := Buffer(buffer.value, 0, step))
        return view

    def _copy_of_carried(self, number: int) -> Buffer:
        """Return a copy of a carried argument, because the new value overwrites the old one."""
        return self._make(self.graph.arguments[number], "as it is", {})

    def _settle_carried(self, copy: Buffer, result: Value, last: Step) -> None:
        """Set the size of the copy to 0 if it is not needed: the value does not change, or only the computation of the
        new value reads it. The new value also takes no memory here, because it uses the buffer outside the body."""
        buffer = self.buffers.get((result, "as it is"))
        readers = [step for step in self.steps if copy in step.reads and step is not last]
        updated = buffer is not None and buffer is not copy and readers == [buffer.maker] and buffer.maker.reads[copy]
        if buffer is copy or not readers or updated:
            copy.bytes = 0
        if buffer is not None:
            buffer.bytes = 0


def _is_fused(operation: Operation) -> bool:
    return operation.name in ELEMENTWISE or operation.name in MOVING


def _is_unary(operation: Operation) -> bool:
    """True for a cheap operation that reads at most one array as large as its result."""
    if operation.name in EXPENSIVE:
        return False
    size = math.prod(operation.results[0].shape)
    large = [
        operand
        for operand, shape in zip(operation.operands, operation.shapes, strict=True)
        if operand is not None and math.prod(shape) >= size and not _is_broadcast(operand)
    ]
    return len(large) < 2


def _is_read_in_both_passes(operation: Operation) -> bool:
    """True for an operation on several arrays whose result is read in both passes, so that it cannot be fused with all
    readers."""
    passes = {reader.backward for reader, _ in operation.results[0].readers}
    return len(passes) == 2 and not _is_unary(operation)


def _is_broadcast(value: Value) -> bool:
    return value.source is not None and value.source.name == "broadcast_in_dim"


def need_of(operation: Operation, number: int) -> str:
    """Return how an operation reads an operand: "fused" (computed on the fly), or from memory "as it is", "flat" (with
    merged array axes) or "moved" (with permuted array axes)."""
    if _is_fused(operation):
        return "fused"
    if isinstance(operation.form, Product):
        return _need_of_product(operation, operation.form, number)
    if operation.name == "reduce_scatter" and _crosses(operation):
        return "moved"
    return "as it is"


def _crosses(operation: Operation) -> bool:
    """True for a collective along an array axis other than the first. Axes of size 1 in front of it are ignored."""
    form = operation.form
    return isinstance(form, Collective) and math.prod(operation.shapes[0][: form.array_axis]) > 1


def _need_of_product(operation: Operation, product: Product, number: int) -> str:
    contracted, batch = product.contracted[number], product.batch[number]
    axes = [axis for axis, size in enumerate(operation.shapes[number]) if size > 1 or not batch]
    first, summed = ([axis for axis in some if axis in axes] for some in (batch, contracted))
    free = [axis for axis in axes if axis not in (*first, *summed)]
    orders = [first + free + summed, first + summed + free]
    if len(summed) < 2 and len(free) < 2:  # both orders are possible
        return "as it is" if axes in orders else "moved"
    return "flat" if axes == orders[number] else "moved"
