"""The collectives of a lowered program, with their types before any compiler changes them: on CPU, XLA turns bfloat16
collectives into float32 ones when it compiles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NAMES = {
    "stablehlo.all_gather": "all-gather",
    "stablehlo.reduce_scatter": "reduce-scatter",
    "stablehlo.all_reduce": "all-reduce",
    "stablehlo.all_to_all": "all-to-all",
    "stablehlo.collective_permute": "collective-permute",
}
_BITS = {"i1": 8, "bf16": 16}


@dataclass(frozen=True)
class Collective:
    """One collective operation in the text of a program."""

    operation: str
    """all-gather, reduce-scatter, all-reduce, all-to-all or collective-permute."""

    dtype: str
    """Element type in MLIR's spelling, such as bf16."""

    bytes: int
    """Bytes of its larger side on each device: what is gathered, what is scattered, what is sent."""

    devices: int
    """Devices that exchange with each other."""

    loops: int
    """Loops (scans) that it stands in."""

    executions: int
    """How often it runs: the product of the lengths of those loops."""


def list_collectives(lowered: Any) -> list[Collective]:
    """Every collective of a program from `jax.jit(f).lower(...)`, in the order of its text.

    A function that is called several times counts as often.
    """
    functions = _functions(lowered)
    return list(_walk(functions["main"].regions[0], functions, 0, 1))


def list_local_results(lowered: Any) -> list[int]:
    """Bytes that each device has of each result of a program that is one `shard_map`."""
    (block,) = _functions(lowered)["main"].regions[0].blocks
    for op in block.operations:
        if op.operation.name == "sdy.manual_computation":  # there is none on one device
            (block,) = op.regions[0].blocks
    *_, last = block.operations
    return [_bytes(value.type) for value in last.operands]


def _functions(lowered: Any) -> dict[str, Any]:
    module = lowered.compiler_ir("stablehlo")
    return {str(op.attributes["sym_name"]).strip('"'): op for op in module.body.operations}


def _walk(region: Any, functions: dict[str, Any], loops: int, executions: int) -> Iterator[Collective]:
    for op in (operation for block in region.blocks for operation in block.operations):
        name = op.operation.name
        if name in NAMES:
            yield _collective(op, loops, executions)
        elif name == "func.call":
            callee = functions[str(op.attributes["callee"]).lstrip("@").strip('"')]
            yield from _walk(callee.regions[0], functions, loops, executions)
        elif name == "stablehlo.while":
            trips = _trip_count(op)
            yield from _walk(op.regions[1], functions, loops + 1, executions * trips)
        else:
            for inner in op.regions:
                yield from _walk(inner, functions, loops, executions)


def _collective(op: Any, loops: int, executions: int) -> Collective:
    sides = [value.type for value in (*op.operands, *op.results)]
    dtype, size = str(sides[0].element_type), max(map(_bytes, sides))
    attribute = "source_target_pairs" if op.operation.name.endswith("permute") else "replica_groups"
    shape = op.attributes[attribute].type.shape
    devices = _ring_size(op) if attribute == "source_target_pairs" else shape[1]
    return Collective(NAMES[op.operation.name], dtype, size, devices, loops, executions)


def _bytes(kind: Any) -> int:
    dtype = str(kind.element_type)
    bits = _BITS.get(dtype, int("".join(filter(str.isdigit, dtype)) or 8))
    return math.prod(kind.shape) * bits // 8


def _ring_size(op: Any) -> int:
    """Devices that a permute connects: those on the way from one to where it ends or comes back to."""
    following = {int(source): int(target) for source, target in _pairs(op.attributes["source_target_pairs"])}
    starts = set(following) - set(following.values()) or {min(following)}
    first = at = min(starts)
    size = 1
    while (at := following.get(at, first)) != first:
        size += 1
    return size


def _pairs(attribute: Any) -> list[tuple[int, int]]:
    numbers = list(attribute)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _trip_count(op: Any) -> int:
    """Rounds of a `while` that a scan was lowered to: its counter runs from 0 to a constant."""
    (block,) = op.regions[0].blocks
    for inner in block.operations:
        if inner.operation.name == "stablehlo.constant":
            return int(next(iter(inner.attributes["value"])))
    raise ValueError("a loop without a fixed number of rounds")
