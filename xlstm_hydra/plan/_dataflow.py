"""A traced program as operations and the values that they hand on.

Calls are taken apart; what only looks at memory in another way (a reshape) is no operation; what nobody reads is left
out. Loops keep their bodies.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._primitives import RESHAPES

LOOPS = ("scan", "while", "cond")
"""Operations with bodies."""

VIEWS = RESHAPES | {"reduce_precision"}
"""Operations whose result is an operand, seen in another way."""

SUMS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")
"""Operations that compute a product while they sum it."""

UPDATES = ("scatter-add", "dynamic_update_slice")
"""Operations that change a part of their first operand, in its place."""

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "shard_map": "jaxpr",
}
"""Operations that are a program of their own, by the parameter that holds it."""


@dataclass(eq=False, slots=True)
class Value:
    """What an operation makes, or an argument."""

    shape: tuple[int, ...]
    bytes: int
    source: Operation | None = None
    readers: list[tuple[Operation, int]] = field(default_factory=list)
    """Operations that read it, and the number of the operand that it is."""


@dataclass(eq=False, slots=True)
class Operation:
    """One operation. An operand that is a constant is None."""

    name: str
    params: dict[str, Any]
    shapes: list[tuple[int, ...]]
    """Shapes of the operands, as it sees them."""
    operands: list[Value | None]
    results: list[Value]
    bodies: list[Graph] = field(default_factory=list)
    scope: str = ""
    """Names of the transformations and modules that it stands in, joined with slashes; those outside a loop are not
    known inside."""

    @property
    def backward(self) -> bool:
        """Whether it belongs to the backward pass. In the body of a loop of that pass, nothing says so."""
        return "transpose(" in self.scope


@dataclass(eq=False)
class Graph:
    """A program, or the body of a loop."""

    arguments: list[Value]
    operations: list[Operation]
    results: list[Value | None]


def read_jaxpr(jaxpr: Any) -> Graph:
    """The dataflow of an open jaxpr."""
    graph = _graph(jaxpr)
    _drop_unread(graph)
    return graph


def _graph(jaxpr: Any, filled: Collection[int] = ()) -> Graph:
    """The dataflow of a jaxpr, with what nobody reads. Arguments that are `filled` with a number are made inside."""
    arguments = [_value(var.aval) for var in jaxpr.invars]
    reader = _Reader()
    given = [reader.fill(value) if number in filled else value for number, value in enumerate(arguments)]
    return Graph(arguments, reader.operations, reader.read(jaxpr, given))


def _is_filled(value: Value | None) -> bool:
    return value is not None and value.source is not None and not any(value.source.operands) and value.bytes > 0


def _value(aval: Any, source: Operation | None = None) -> Value:
    shape = tuple(getattr(aval, "shape", ()))
    return Value(shape, math.prod(shape) * getattr(getattr(aval, "dtype", None), "itemsize", 0), source)


class _Reader:
    """Takes calls apart, and computes once what is computed twice from the same values."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.same: dict[Any, Operation] = {}

    def read(self, jaxpr: Any, arguments: Sequence[Value | None], scope: str = "") -> list[Value | None]:
        """Append the operations of a jaxpr, which stands in a scope of names; returns its results."""
        known: dict[Any, Value | None] = dict(zip(jaxpr.invars, arguments, strict=True))
        known |= dict.fromkeys(jaxpr.constvars)

        def value_of(atom: Any) -> Value | None:
            return None if hasattr(atom, "val") else known[atom]

        for eqn in (eqn for eqn in jaxpr.eqns if eqn.outvars):
            name, operands = eqn.primitive.name, [value_of(atom) for atom in eqn.invars]
            inner_scope = f"{scope}/{eqn.source_info.name_stack}"
            if name in CALLS:
                if eqn.params.get("prevent_cse"):
                    self.same = {}  # what is computed anew is not what was computed before
                results = self.read(_open(eqn.params[CALLS[name]]), operands, inner_scope)
            elif name == "scan" and eqn.params["length"] == 1:
                results = self.read(_open(eqn.params["jaxpr"]), operands, inner_scope)
            elif name in VIEWS or _changes_nothing(eqn, operands):
                results = operands[: len(eqn.outvars)]
            else:
                results = self._add(eqn, operands, inner_scope)
            known.update(zip(eqn.outvars, results, strict=True))
        return [value_of(atom) for atom in jaxpr.outvars]

    def fill(self, like: Value) -> Value:
        """An array that is filled with a number."""
        operation = Operation("broadcast_in_dim", {}, [], [], [])
        operation.results.append(value := Value(like.shape, like.bytes, operation))
        self.operations.append(operation)
        return value

    def _add(self, eqn: Any, operands: list[Value | None], scope: str) -> Sequence[Value | None]:
        if eqn.primitive.name in LOOPS:
            return self._add_loop(eqn, operands, scope)
        if eqn.primitive.name in ("split", "unstack"):
            parts = [self._append("slice", eqn, operands, [var.aval], scope) for var in eqn.outvars]
            return [part.results[0] for part in parts]
        atoms = zip(eqn.invars, operands, strict=True)
        # A constant that came as an argument of a call is not known here, and so not compared.
        read = tuple(
            str(atom) if hasattr(atom, "val") else id(eqn if value is None else value) for atom, value in atoms
        )
        key = eqn.primitive.name, read, str(eqn.params), eqn.outvars[0].aval
        if key not in self.same:
            name, operands, shapes = _simpler(eqn, operands)
            self.same[key] = self._append(name, eqn, operands, [var.aval for var in eqn.outvars], scope, shapes)
        return self.same[key].results

    def _add_loop(self, eqn: Any, operands: list[Value | None], scope: str) -> Sequence[Value | None]:
        operation = self._append(eqn.primitive.name, eqn, operands, [var.aval for var in eqn.outvars], scope)
        if operation.name != "scan":
            bodies = eqn.params["branches"] if operation.name == "cond" else [eqn.params["body_jaxpr"]]
            operation.bodies = [_graph(_open(body)) for body in bodies]
            return operation.results
        filled = [number for number in range(eqn.params["num_consts"]) if _is_filled(operands[number])]
        operation.bodies = [_graph(_open(eqn.params["jaxpr"]), filled)]
        first, inside = operation.params["num_carry"], operation.bodies[0].results
        stacks: dict[Any, Value] = {}  # what is stacked twice is stacked once
        stacked = zip(inside[first:], operation.results[first:], strict=True)
        return [*operation.results[:first], *(stacks.setdefault(id(value), stack) for value, stack in stacked)]

    def _append(
        self,
        name: str,
        eqn: Any,
        operands: list[Value | None],
        avals: Sequence[Any],
        scope: str,
        shapes: list[tuple[int, ...]] | None = None,
    ) -> Operation:
        operation = Operation(name, eqn.params, shapes or _shapes(eqn), operands, [], scope=scope)
        operation.results = [_value(aval, operation) for aval in avals]
        self.operations.append(operation)
        return operation


def _shapes(eqn: Any) -> list[tuple[int, ...]]:
    return [tuple(getattr(atom.aval, "shape", ())) for atom in eqn.invars]


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _changes_nothing(eqn: Any, operands: Sequence[Value | None]) -> bool:
    """A conversion to the same type, or a transposition that moves array axes of size 1 alone or has a product
    computed the other way round."""
    if eqn.primitive.name == "convert_element_type":
        return eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype
    if eqn.primitive.name == "broadcast_in_dim":
        return eqn.invars[0].aval.size == eqn.outvars[0].aval.size > 1
    if eqn.primitive.name == "transpose":
        shape = eqn.invars[0].aval.shape
        source = operands[0].source if operands[0] is not None else None
        if len(shape) == 2 and source is not None and source.name == "dot_general":
            return True
        moved = [axis for axis in eqn.params["permutation"] if shape[axis] != 1]
        return moved == sorted(moved)
    return False


def _simpler(eqn: Any, operands: list[Value | None]) -> tuple[str, list[Value | None], list[tuple[int, ...]]]:
    """Name, operands and their shapes of what is computed in place of an operation with the same result."""
    name, shapes = eqn.primitive.name, _shapes(eqn)
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
    """Leave out the operations whose results nobody reads, in the bodies of loops too."""
    read = {id(value) for value in graph.results}
    kept = []
    for operation in reversed(graph.operations):
        if not any(id(value) in read for value in operation.results):
            continue
        if operation.name == "scan":
            first = operation.params["num_carry"]
            for number, stack in enumerate(operation.results[first:], first):
                if id(stack) not in read:
                    operation.bodies[0].results[number] = None
        for body in operation.bodies:
            _drop_unread(body)
        if operation.name == "scan":
            _drop_unread_operands(operation)
        read.update(id(value) for value in operation.operands)
        kept.append(operation)
    graph.operations = kept[::-1]
    for operation in graph.operations:
        for number, value in enumerate(operation.operands):
            if value is not None:
                value.readers.append((operation, number))


def _drop_unread_operands(loop: Operation) -> None:
    """Leave out what the body of a loop is given and does not read."""
    (body,), start = loop.bodies, loop.params["num_consts"]
    carried = range(start, start + loop.params["num_carry"])
    for number, value in enumerate(body.arguments):
        if number not in carried and not value.readers and value not in body.results:
            loop.operands[number] = None
