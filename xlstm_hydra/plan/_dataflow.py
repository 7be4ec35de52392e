"""Dataflow graph of a traced program: operations, and the values that they read and produce.

Calls are inlined. Reshapes are omitted, and operations whose results are not read are removed. The body of a loop is a
graph of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._jaxpr import RESHAPES, Atom, Call, Equation, Form, Program, Programs, Scan, Transposition, While

VIEWS = RESHAPES | {"reduce_precision"}
"""Operations whose result shares the memory of an operand."""

SUMS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")
"""Reductions that are fused with a product of two arrays, so that the product is not stored."""

UPDATES = ("scatter-add", "dynamic_update_slice")
"""Operations that update part of their first operand in place."""


@dataclass(eq=False, slots=True)
class Value:
    """Result of an operation, or an argument of the graph."""

    shape: tuple[int, ...]
    bytes: int
    source: Operation | None = None
    readers: list[tuple[Operation, int]] = field(default_factory=list)
    """Operations that read this value, each with the position of the operand."""


@dataclass(eq=False, slots=True)
class Operation:
    """An operation of the graph. Constant operands are None."""

    name: str
    form: Form
    """Parameters that affect the plan."""
    shapes: list[tuple[int, ...]]
    """Shapes of the operands in the traced equation. `Value.shape` may differ, because reshapes are omitted."""
    operands: list[Value | None]
    results: list[Value]
    bodies: list[Graph] = field(default_factory=list)
    scope: str = ""
    """Names of the enclosing transformations and modules, joined by slashes. In a loop body, the names outside the loop
    are missing."""

    @property
    def backward(self) -> bool:
        """True for an operation of the backward pass. Not reliable in a loop body, where the outer part of the scope is
        missing."""
        return "transpose(" in self.scope


@dataclass(eq=False)
class Graph:
    """A program, or the body of a loop."""

    arguments: list[Value]
    operations: list[Operation]
    results: list[Value | None]


def read_dataflow(program: Program) -> Graph:
    """Return the dataflow graph of a program."""
    graph = _graph(program)
    _drop_unread(graph)
    return graph


def _graph(program: Program, filled: Collection[int] = ()) -> Graph:
    """Return the dataflow graph with unread operations. Inputs at the positions in `filled` are replaced by arrays
    filled with a constant."""
    arguments = [_value(atom) for atom in program.inputs]
    reader = _Reader()
    given = [reader.fill(value) if number in filled else value for number, value in enumerate(arguments)]
    return Graph(arguments, reader.operations, reader.read(program, given))


def _is_filled(value: Value | None) -> bool:
    return value is not None and value.source is not None and not any(value.source.operands) and value.bytes > 0


def _value(atom: Atom, source: Operation | None = None) -> Value:
    return Value(atom.shape, atom.bytes, source)


class _Reader:
    """Inlines calls, and merges operations that compute the same result from the same values."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.same: dict[Any, Operation] = {}

    def read(self, program: Program, arguments: Sequence[Value | None], scope: str = "") -> list[Value | None]:
        """Append the operations of a program with `scope` as prefix of their scopes, and return its results."""
        known: dict[Atom, Value | None] = dict(zip(program.inputs, arguments, strict=True))
        known |= dict.fromkeys(program.constants)

        def value_of(atom: Atom) -> Value | None:
            return None if atom.literal is not None else known[atom]

        for equation in (equation for equation in program.equations if equation.results):
            form, operands = equation.form, [value_of(atom) for atom in equation.inputs]
            inner_scope = f"{scope}/{equation.scope}"
            if isinstance(form, Call):
                if form.recomputes:
                    self.same = {}  # a recomputation is not merged with the first computation
                results = self.read(form.program, operands, inner_scope)
            elif isinstance(form, Scan) and form.length == 1:
                results = self.read(form.body, operands, inner_scope)
            elif equation.name in VIEWS or _changes_nothing(equation, operands):
                results = operands[: len(equation.results)]
            else:
                results = self._add(equation, operands, inner_scope)
            known.update(zip(equation.results, results, strict=True))
        return [value_of(atom) for atom in program.results]

    def fill(self, like: Value) -> Value:
        """Return a new array of the same shape, filled with a constant."""
        operation = Operation("broadcast_in_dim", None, [], [], [])
        operation.results.append(value := Value(like.shape, like.bytes, operation))
        self.operations.append(operation)
        return value

    def _add(self, equation: Equation, operands: list[Value | None], scope: str) -> Sequence[Value | None]:
        form = equation.form
        if isinstance(form, Scan):
            return self._add_scan(equation, form, operands, scope)
        if isinstance(form, While | Programs):
            bodies = [form.body] if isinstance(form, While) else form.programs
            operation = self._append(equation.name, equation, operands, equation.results, scope)
            operation.bodies = [_graph(body) for body in bodies]
            return operation.results
        if equation.name in ("split", "unstack"):
            parts = [self._append("slice", equation, operands, [result], scope) for result in equation.results]
            return [part.results[0] for part in parts]
        # The value of a constant passed to a call is unknown here, so equations that read it are never merged.
        atoms = zip(equation.inputs, operands, strict=True)
        read = tuple(atom.literal or id(equation if value is None else value) for atom, value in atoms)
        first = equation.results[0]
        key = equation.name, read, equation.parameters, first.shape, first.dtype
        if key not in self.same:
            name, operands, shapes = _simpler(equation, operands)
            self.same[key] = self._append(name, equation, operands, equation.results, scope, shapes)
        return self.same[key].results

    def _add_scan(
        self, equation: Equation, scan: Scan, operands: list[Value | None], scope: str
    ) -> Sequence[Value | None]:
        operation = self._append(equation.name, equation, operands, equation.results, scope)
        filled = [number for number in range(scan.constants) if _is_filled(operands[number])]
        operation.bodies = [_graph(scan.body, filled)]
        first, inside = scan.carried, operation.bodies[0].results
        stacks: dict[Any, Value] = {}  # equal stacked outputs are merged
        stacked = zip(inside[first:], operation.results[first:], strict=True)
        return [*operation.results[:first], *(stacks.setdefault(id(value), stack) for value, stack in stacked)]

    def _append(
        self,
        name: str,
        equation: Equation,
        operands: list[Value | None],
        results: Sequence[Atom],
        scope: str,
        shapes: list[tuple[int, ...]] | None = None,
    ) -> Operation:
        operation = Operation(name, equation.form, shapes or _shapes(equation), operands, [], scope=scope)
        operation.results = [_value(result, operation) for result in results]
        self.operations.append(operation)
        return operation


def _shapes(equation: Equation) -> list[tuple[int, ...]]:
    return [atom.shape for atom in equation.inputs]


def _changes_nothing(equation: Equation, operands: Sequence[Value | None]) -> bool:
    """True for a conversion to the same dtype, a broadcast that adds no elements, a transposition that moves only array
    axes of size 1, and the transposition of a matrix product, which XLA replaces by swapping the operands."""
    before, after = equation.inputs[:1], equation.results[0]
    if equation.name == "convert_element_type":
        return before[0].dtype == after.dtype
    if equation.name == "broadcast_in_dim":
        return before[0].size == after.size > 1
    if isinstance(equation.form, Transposition):
        shape = before[0].shape
        source = operands[0].source if operands[0] is not None else None
        if len(shape) == 2 and source is not None and source.name == "dot_general":
            return True
        moved = [axis for axis in equation.form.order if shape[axis] != 1]
        return moved == sorted(moved)
    return False


def _simpler(equation: Equation, operands: list[Value | None]) -> tuple[str, list[Value | None], list[tuple[int, ...]]]:
    """Return the name, operands and shapes of the operation that XLA uses instead of this one."""
    name, shapes = equation.name, _shapes(equation)
    if name == "div" and operands[1] is None:
        return "mul", operands, shapes
    sources = [None if value is None else value.source for value in operands]
    if name in SUMS and sources[0] is not None and sources[0].name in ("mul", "square"):
        return name, sources[0].operands, sources[0].shapes
    if name in ("add", "add_any"):
        for source, other in zip(sources, operands[::-1], strict=True):
            if source is not None and source.name in UPDATES and _is_filled(source.operands[0]):
                return source.name, [other, *source.operands[1:]], source.shapes
    return name, operands, shapes


def _drop_unread(graph: Graph) -> None:
    """Remove operations whose results are not read, including those in loop bodies, and set `Value.readers`."""
    read = {id(value) for value in graph.results}
    kept = []
    for operation in reversed(graph.operations):
        if not any(id(value) in read for value in operation.results):
            continue
        if isinstance(operation.form, Scan):
            first = operation.form.carried
            for number, stack in enumerate(operation.results[first:], first):
                if id(stack) not in read:
                    operation.bodies[0].results[number] = None
        for body in operation.bodies:
            _drop_unread(body)
        if isinstance(operation.form, Scan):
            _drop_unread_operands(operation, operation.form)
        read.update(id(value) for value in operation.operands)
        kept.append(operation)
    graph.operations = kept[::-1]
    for operation in graph.operations:
        for number, value in enumerate(operation.operands):
            if value is not None:
                value.readers.append((operation, number))


def _drop_unread_operands(loop: Operation, scan: Scan) -> None:
    """Remove the operands of a loop that its body does not read."""
    (body,) = loop.bodies
    carried = range(scan.constants, scan.constants + scan.carried)
    for number, value in enumerate(body.arguments):
        if number not in carried and not value.readers and value not in body.results:
            loop.operands[number] = None
