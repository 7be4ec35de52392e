"""A traced program as operations and the values that they hand on.

Calls are taken apart; what only looks at memory in another way (a reshape) is no operation; what nobody reads is left
out. Loops keep their bodies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LOOPS = ("scan", "while", "cond")
"""Operations with bodies."""

VIEWS = frozenset(
    "reshape squeeze expand_dims pvary pcast optimization_barrier stop_gradient copy copy_p name sharding_constraint "
    "mesh_cast reduce_precision psum_invariant_cast all_gather_invariant_cast bitcast_convert_type".split()
)
"""Operations whose result is an operand, seen in another way."""

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


def _graph(jaxpr: Any) -> Graph:
    arguments = [_value(var.aval) for var in jaxpr.invars]
    reader = _Reader()
    return Graph(arguments, reader.operations, reader.read(jaxpr, arguments))


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

        for eqn in jaxpr.eqns:
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

    def _add(self, eqn: Any, operands: list[Value | None], scope: str) -> list[Value | None]:
        constants = tuple(str(atom) for atom in eqn.invars if hasattr(atom, "val"))
        params = len(self.operations) if eqn.primitive.name in LOOPS else str(eqn.params)
        key = (eqn.primitive.name, tuple(map(id, operands)), constants, params, eqn.outvars[0].aval)
        if key not in self.same:
            operation = _operation(eqn, operands)
            operation.scope = scope
            self.operations.append(operation)
            self.same[key] = operation
        operation = self.same[key]
        if operation.name != "scan":
            return list(operation.results)
        stacked: dict[Any, Value | None] = {}
        first = operation.params["num_carry"]
        inside = operation.bodies[0].results
        alike = [
            stacked.setdefault(id(value), result)
            for value, result in zip(inside[first:], operation.results[first:], strict=True)
        ]
        return [*operation.results[:first], *alike]


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


def _operation(eqn: Any, operands: list[Value | None]) -> Operation:
    shapes = [tuple(getattr(atom.aval, "shape", ())) for atom in eqn.invars]
    source = operands[0].source if eqn.primitive.name.startswith("reduce_") and operands[0] is not None else None
    if source is not None and source.name in ("mul", "square"):
        operands, shapes = source.operands, source.shapes  # a product is computed while it is summed
    if eqn.primitive.name in ("add", "add_any"):
        for added, other in (operands, operands[::-1]):
            if added is not None and added.source is not None and _scatters_into_zeros(added.source):
                scatter = added.source
                operands, shapes = [other, *scatter.operands[1:]], scatter.shapes
                operation = Operation(scatter.name, scatter.params, shapes, operands, [])
                operation.results = [_value(eqn.outvars[0].aval, operation)]
                return operation
    by_constant = eqn.primitive.name == "div" and operands[1] is None
    operation = Operation("mul" if by_constant else eqn.primitive.name, eqn.params, shapes, operands, [])
    operation.results = [_value(var.aval, operation) for var in eqn.outvars]
    if eqn.primitive.name == "scan":
        operation.bodies = [_graph(_open(eqn.params["jaxpr"]))]
    elif eqn.primitive.name == "while":
        operation.bodies = [_graph(_open(eqn.params["body_jaxpr"]))]
    elif eqn.primitive.name == "cond":
        operation.bodies = [_graph(_open(branch)) for branch in eqn.params["branches"]]
    return operation


def _scatters_into_zeros(operation: Operation) -> bool:
    if operation.name != "scatter-add" or (target := operation.operands[0]) is None:
        return False
    return target.source is not None and not any(target.source.operands)


def _drop_unread(graph: Graph) -> None:
    """Leave out the operations whose results nobody reads, in the bodies of loops too."""
    read = {id(value) for value in graph.results}
    kept = []
    for operation in reversed(graph.operations):
        if not any(id(value) in read for value in operation.results):
            continue
        if operation.name == "scan":
            (body,), carried = operation.bodies, operation.params["num_carry"]
            for number, value in enumerate(operation.results[carried:], carried):
                if id(value) not in read:
                    body.results[number] = None
        for body in operation.bodies:
            _drop_unread(body)
        if operation.name == "scan":
            (body,) = operation.bodies
            for number in range(len(body.arguments)):
                if (
                    number not in range(operation.params["num_consts"], operation.params["num_consts"] + carried)
                    and not body.arguments[number].readers
                    and body.arguments[number] not in body.results
                ):
                    operation.operands[number] = None
        read.update(id(value) for value in operation.operands)
        kept.append(operation)
    graph.operations = kept[::-1]
    for operation in graph.operations:
        for number, value in enumerate(operation.operands):
            if value is not None:
                value.readers.append((operation, number))
