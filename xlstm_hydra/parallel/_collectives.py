"""Collectives of a lowered program. Dtypes are read before compilation, because XLA converts bfloat16 collectives to
float32 on CPU. This is the only module that reads StableHLO."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xlstm_hydra.errors import TaskError, versions

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
    """One collective operation in a lowered program."""

    operation: str
    """all-gather, reduce-scatter, all-reduce, all-to-all or collective-permute."""

    dtype: str
    """MLIR name of the element type, such as bf16."""

    bytes: int
    """Size of the operand or of the result on each device, whichever is larger, in bytes."""

    devices: int
    """Number of devices in each group that communicates."""

    loops: int
    """Number of loops (scans) that enclose the operation."""

    executions: int
    """Number of executions per run of the program: the product of the iteration counts of the enclosing loops."""


def list_collectives(lowered: Any) -> list[Collective]:
    """Return all collectives of a program lowered by `jax.jit(f).lower(...)`, in program order.

    Collectives inside a function are listed once for each call of the function.

    Raises:
        TaskError: the format of the lowered program is not supported, for example with a new JAX version.
    """
    symbols = _symbols(lowered)
    try:
        return list(_walk(symbols["main"].regions[0], symbols, 0, 1))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error} ({versions('xlstm-hydra', 'jax', 'jaxlib')})"
        raise TaskError(f"the collectives in the lowered program cannot be read: {why}") from error


def list_local_results(lowered: Any) -> list[int]:
    """Return the size per device, in bytes, of each result of a program that consists of a single `shard_map`."""
    (block,) = _symbols(lowered)["main"].regions[0].blocks
    for op in block.operations:
        if op.operation.name == "sdy.manual_computation":  # absent on one device
            (block,) = op.regions[0].blocks
    *_, last = block.operations
    return [_bytes(value.type) for value in last.operands]


def _symbols(lowered: Any) -> dict[str, Any]:
    """Return the functions and meshes of a program by name."""
    module = lowered.compiler_ir("stablehlo")
    return {str(op.attributes["sym_name"]).strip('"'): op for op in module.body.operations}


def _walk(region: Any, symbols: Mapping[str, Any], loops: int, executions: int) -> Iterator[Collective]:
    for op in (operation for block in region.blocks for operation in block.operations):
        name = op.operation.name
        if name in NAMES:
            yield _collective(op, symbols, loops, executions)
        elif name == "func.call":
            callee = symbols[str(op.attributes["callee"]).lstrip("@").strip('"')]
            yield from _walk(callee.regions[0], symbols, loops, executions)
        elif name == "stablehlo.while":
            trips = _trip_count(op)
            yield from _walk(op.regions[1], symbols, loops + 1, executions * trips)
        else:
            for inner in op.regions:
                yield from _walk(inner, symbols, loops, executions)


def _collective(op: Any, symbols: Mapping[str, Any], loops: int, executions: int) -> Collective:
    sides = [value.type for value in (*op.operands, *op.results)]
    dtype, size = str(sides[0].element_type), max(map(_bytes, sides))
    is_permute = op.operation.name.endswith("permute")
    devices = _ring_size(op) if is_permute else _group_size(op.attributes["replica_groups"], symbols)
    return Collective(NAMES[op.operation.name], dtype, size, devices, loops, executions)


def _group_size(groups: Any, symbols: Mapping[str, Any]) -> int:
    """Return the number of devices in each group of a collective."""
    if hasattr(groups.type, "shape"):  # JAX 0.10: a table with one row per group
        return groups.type.shape[1]
    mesh = re.search(r"mesh = @\"?([^,\"]+)", str(groups))  # later versions: names of mesh axes
    if mesh is None:
        raise ValueError(f"unknown format of device groups: {groups}")
    sizes = dict(re.findall(r'"([^"]+)"=(\d+)', str(symbols[mesh[1]].attributes["mesh"])))
    return math.prod(int(sizes[name]) for name in re.findall(r'axis_ref<name = "([^"]+)"', str(groups)))


def _bytes(kind: Any) -> int:
    dtype = str(kind.element_type)
    bits = _BITS.get(dtype, int("".join(filter(str.isdigit, dtype)) or 8))
    return math.prod(kind.shape) * bits // 8


def _ring_size(op: Any) -> int:
    """Return the number of devices in the chain or ring of a collective permute."""
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
    """Return the number of iterations of a `while` loop lowered from a scan, which counts from 0 to a constant."""
    (block,) = op.regions[0].blocks
    for inner in block.operations:
        if inner.operation.name == "stablehlo.constant":
            return int(next(iter(inner.attributes["value"])))
    raise ValueError("the program has a loop without a fixed number of iterations")
