"""What the compiler says of a training step, to stand beside the plan.

The real step is lowered and compiled ahead of time for simulated CPU devices; nothing runs, and no array is made. XLA
then tells what each device holds at the same time. Collectives, operations and gradients are read from the lowered
program, before XLA changes types and merges what is computed twice: what it makes of them on CPU is not what it makes
on other devices. The optimizer's own exchanges (a few numbers, such as the norm of the gradients) are made while
compiling and are in neither count.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from xlstm_hydra.configs import RunConfig, SubModelConfig
from xlstm_hydra.devices import simulate_devices
from xlstm_hydra.parallel import Collective, build_mesh, list_collectives, list_local_results
from xlstm_hydra.problems import ConfigError
from xlstm_hydra.step import Program, build_program

from ._counts import Counts, Exchange
from ._plan import Plan

Kind = tuple[str, str, int, int]
"""Operation, type by NumPy's name, devices, and bytes of a collective."""


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a training step, on each of its devices. `compile_step` makes one."""

    num_devices: int
    parameters: int
    """Bytes of the parameters."""
    gradients: int
    """Bytes of their gradients, once these are summed."""
    optimizer: int
    """Bytes of the rest of the state, and of the numbers that the optimizer works with."""
    batch: int
    """Bytes of what the step reads of the batch."""
    total: int
    """Bytes at the moment that needs most: of arguments, of results that are not in their place, and of temporaries."""
    flops_once: float
    """Operations of loss and gradients, with the body of each loop counted once."""
    collectives: tuple[Collective, ...]
    """Those of the whole step."""
    seconds: float
    """What lowering and compiling took."""


@dataclass(frozen=True)
class Comparison:
    """A figure of the plan beside the compiler's."""

    what: str
    unit: str
    """bytes, operations or times."""
    plan: float
    compiler: float
    note: str = ""
    """Why they may differ."""

    @property
    def ratio(self) -> float:
        """The plan's figure / the compiler's."""
        return self.plan / self.compiler if self.compiler else 1.0 if not self.plan else math.inf


def compile_step(run: RunConfig, num_devices: int) -> Compiled:
    """Compile the training step of a run, whose `model_class` is a class, for simulated CPU devices.

    Raises:
        ConfigError: the layout does not fit so many devices, or the model, or CPUs cannot compute the model.
    """
    config = run.model.model_config
    if isinstance(config, SubModelConfig) and (problems := [*config.platform_rules("cpu")]):
        raise ConfigError(problem.at("model") for problem in problems)
    simulate_devices(num_devices)
    mesh = build_mesh(run.parallel, jax.devices()[:num_devices], run.distributed.device_order)
    return compile_program(build_program(run, mesh))


def compile_program(program: Program) -> Compiled:
    """Compile the training step of a program that is there already."""
    start = time.perf_counter()
    state, batch, numbers = program.abstract_state, program.abstract_batch, program.abstract_numbers
    step = program.train_step.lower(state, batch, numbers)
    key = jax.eval_shape(lambda: jax.random.key(0))
    gradients: Any = jax.jit(program.loss_and_gradients).lower(state.params, batch, key)
    compiled: Any = step.compile()
    memory = compiled.memory_analysis()
    (state_shardings, batch_shardings, number_shardings), _ = compiled.input_shardings
    parameters = _bytes(state.params, state_shardings.params)
    return Compiled(
        num_devices=program.mesh.size,
        parameters=parameters,
        gradients=sum(list_local_results(gradients)[1:]),
        optimizer=_bytes(state, state_shardings) - parameters + _bytes(numbers, number_shardings),
        batch=_bytes(batch, batch_shardings),
        total=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        flops_once=gradients.cost_analysis()["flops"],
        collectives=tuple(list_collectives(step)),
        seconds=time.perf_counter() - start,
    )


def _bytes(arrays: Any, shardings: Any) -> int:
    """Bytes that each device has of a tree of arrays, as the compiler placed them. What the step does not read, such as
    borders of documents that the model ignores, has no place."""
    placed = jax.tree.leaves(shardings, is_leaf=lambda sharding: sharding is None)
    return sum(
        math.prod(sharding.shard_shape(array.shape)) * array.dtype.itemsize
        for array, sharding in zip(jax.tree.leaves(arrays), placed, strict=True)
        if sharding is not None
    )


def compare(plan: Plan, compiled: Compiled) -> Iterator[Comparison]:
    """The figures of a plan beside the compiler's."""
    held = sum(placement.bytes_per_device for placement in plan.placements)
    yield Comparison("parameters", "bytes", held, compiled.parameters)
    yield Comparison("gradients", "bytes", held, compiled.gradients)
    yield Comparison("optimizer state", "bytes", plan.memory.optimizer, compiled.optimizer)
    yield Comparison("batch", "bytes", plan.memory.batch, compiled.batch)
    types = widened_types(plan.counts)
    note = f"not comparable: XLA computes {' and '.join(types)} in float32 on CPU" if types else ""
    yield Comparison("all memory", "bytes", plan.memory.total, compiled.total, note)
    note = "the body of each loop once, as XLA counts; without the optimizer"
    yield Comparison("operations", "operations", plan.counts.flops_once, compiled.flops_once, note)
    planned, found = planned_collectives(plan.counts.exchanges, plan.sizes), lowered_collectives(compiled.collectives)
    for kind in sorted({kind[:3] for kind in planned | found}):
        operation, dtype, devices = kind
        what = f"{operation} of {dtype} over {devices} devices"
        planned_of, found_of = (
            [(size, times) for (*of, size), times in each.items() if tuple(of) == kind] for each in (planned, found)
        )
        yield Comparison(what, "times", sum(n for _, n in planned_of), sum(n for _, n in found_of))
        yield Comparison(what, "bytes", sum(size * n for size, n in planned_of), sum(size * n for size, n in found_of))


def widened_types(counts: Counts) -> list[str]:
    """The types of what a program multiplies and sends for which XLA takes float32 on CPU."""
    types = {*counts.product_flops, *(each.dtype for each in counts.exchanges)}
    return sorted(types & {"bfloat16", "float16"})


def planned_collectives(exchanges: Iterable[Exchange], sizes: Mapping[str, int]) -> Counter[Kind]:
    """How often each kind of collective is in the plan of a step."""
    found = Counter[Kind]()
    for each in exchanges:
        devices = math.prod(sizes[axis] for axis in each.axes)
        found[each.operation, each.dtype, devices, each.bytes] += each.count
    return found


def lowered_collectives(collectives: Iterable[Collective]) -> Counter[Kind]:
    """How often each kind of collective is in a lowered program."""
    found = Counter[Kind]()
    for each in collectives:
        found[each.operation, _numpy_name(each.dtype), each.devices, each.bytes] += each.executions
    return found


def _numpy_name(dtype: str) -> str:
    """What NumPy calls an element type of MLIR: float32 what is f32 there."""
    kind = dtype.rstrip("0123456789")
    names = {"f": "float", "bf": "bfloat", "i": "int", "ui": "uint"}
    return "bool" if dtype == "i1" else names[kind] + dtype[len(kind) :]
