"""Peak memory of a training step on each device.

The steps of a program run in breadth-first order, as XLA schedules them: a step is queued as soon as all its operands
exist. Results that are ready early are therefore kept for a long time, and results without operands exist from the
start. A result is freed after the last step that reads it, or its memory is reused for a result of the same size that
is computed from it element by element.

A loop stacks the results of all iterations in one array, which exists from the start of the program that contains the
loop. Carried values have a buffer outside the body and, while the old value is still read, a copy inside. All other
memory of the body is added to the memory outside the loop.

Arguments of the program exist all the time and are counted separately. Fragmentation, a few percent, is not counted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from xlstm_hydra.configs import RunConfig, SGDConfig
from xlstm_hydra.optim import build_optimizer, hyperparameters
from xlstm_hydra.parallel import Placement
from xlstm_hydra.step import BATCH_TYPES, ShardedLoss, abstract_params

from ._dataflow import Graph, Operation, Value, read_dataflow
from ._fusion import Buffer, Fused, Step, fuse
from ._jaxpr import Collective, Program, Scan, While


@dataclass(frozen=True)
class Memory:
    """Memory of each device at the peak of a step, in bytes."""

    parameters: int
    """Shards of the parameters."""

    gradients: int
    """Shards of the gradients that exist at the peak."""

    optimizer: int
    """Shards of the optimizer state, and the step number, random key and hyperparameters."""

    batch: int
    """Shard of the batch."""

    activations: int
    """Values saved for the backward pass, as selected by `parallel.remat` and `trainer.remat_policy`."""

    gathered: int
    """Parameters gathered by FSDP, and their gradients before the reduce-scatter."""

    logits: int
    """Logits, loss and their gradients."""

    working: int
    """Intermediate results of the current computation."""

    moment: str
    """Description of the computation that runs at the peak."""

    @property
    def total(self) -> int:
        """Sum of all kinds."""
        kinds = (self.parameters, self.gradients, self.optimizer, self.batch)
        return sum(kinds) + self.activations + self.gathered + self.logits + self.working


def step_memory(loss: ShardedLoss, program: Program) -> Memory:
    """Return the peak memory of a training step.

    Args:
        loss: the loss of the run.
        program: the program of the loss, from `trace_loss`.
    """
    graph = read_dataflow(program)
    moment = busiest_moment(fuse(graph))
    state = state_bytes(loss.run, loss.placements, loss.mesh.shape, parts_read(loss, graph))
    gradients = sum(value.bytes for value in graph.results[1:] if value is not None)
    update = update_bytes(loss.run, graph)
    if moment.bytes >= gradients + update:
        kinds, words = bytes_by_kind(loss, graph, moment), in_words(moment)
    else:
        kinds = dict.fromkeys(_KINDS, 0) | {"gradients": gradients, "working": update}
        words = "the optimizer's update"
    return Memory(**state, **kinds, moment=words)


def state_bytes(
    run: RunConfig,
    placements: Sequence[Placement],
    sizes: Mapping[str, int],
    parts: Collection[str] = tuple(BATCH_TYPES),
) -> dict[str, int]:
    """Return the sizes in bytes of the parameters, optimizer state and batch on each device.

    Args:
        run: the config.
        placements: placements of the parameters.
        sizes: size of each mesh axis.
        parts: names of the batch arrays that the model reads. Other arrays are not transferred to devices.
    """
    params = abstract_params(placements)
    shards = traverse_util.unflatten_dict({each.parameter.path: each.shards for each in placements}, sep=".")
    optimizer = build_optimizer(run, params)
    state = jax.eval_shape(optimizer.init, params)
    shares = optax.tree.map_params(
        optimizer, lambda leaf, shards: _bytes(leaf) // shards, state, shards, transform_non_params=_bytes
    )
    step_key_and_numbers = 4 + 8 + 4 * len(hyperparameters(run.optimizer))
    devices = math.prod(sizes[name] for name in run.parallel.axis_names()[:2])
    assert run.model.model_config is not None
    tokens = run.trainer.batch_size // devices * run.model.model_config.get("context_length")
    return {
        "parameters": sum(placement.bytes_per_device for placement in placements),
        "optimizer": sum(jax.tree.leaves(shares)) + step_key_and_numbers,
        "batch": tokens * sum(jnp.dtype(BATCH_TYPES[part]).itemsize for part in parts),
    }


def parts_read(loss: ShardedLoss, graph: Graph) -> list[str]:
    """Return the names of the batch arrays that the program reads."""
    arguments = graph.arguments[len(loss.placements) :]
    return [name for name, value in zip(sorted(BATCH_TYPES), arguments, strict=False) if value.readers]


def _bytes(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize


def update_bytes(run: RunConfig, graph: Graph) -> int:
    """Return the size in bytes of the temporary arrays in the optimizer update, excluding the gradients.

    State and parameters are updated in place. A second set of gradients is needed if clipped gradients are read more
    than once, and while gradients are summed over devices.
    """
    optimizer, results = run.optimizer, [value for value in graph.results[1:] if value is not None]
    read_once = isinstance(optimizer, SGDConfig) and not (optimizer.momentum and optimizer.nesterov)
    clipped = sum(value.bytes for value in results) if optimizer.grad_clip_norm and not read_once else 0
    summed = sum(value.bytes for value in results if value.source is not None and value.source.name.startswith("psum"))
    return max(clipped, summed)


_KINDS: tuple[str, ...] = ("gradients", "activations", "gathered", "logits", "working")


def bytes_by_kind(loss: ShardedLoss, graph: Graph, moment: Moment) -> dict[str, int]:
    """Return the live bytes at a moment, by `Memory` field."""
    gradients: set[Value] = set()
    for value in graph.results[1:]:
        _mark_gradient(value, gradients)
    fsdp = loss.run.parallel.fsdp_axis_name
    config = loss.model.model_config
    vocab_size = config.get("vocab_size") if config is not None else None
    widths = (vocab_size, vocab_size // loss.axes.tensor_size) if vocab_size else ()
    bytes_of = dict.fromkeys(_KINDS, 0)
    outer = 1 if loss.run.trainer.gradient_accumulate_steps == 1 else 2
    for level, buffer in ((level, buffer) for level, there in enumerate(moment.buffers) for buffer in there):
        if buffer.value in gradients:
            kind = "gradients"
        elif _is_gathered(buffer.value, fsdp):
            kind = "gathered"
        elif level < outer and len(buffer.value.shape) == 3 and buffer.value.shape[-1] in widths:
            kind = "logits"
        elif _is_activation(buffer):
            kind = "activations"
        else:
            kind = "working"
        bytes_of[kind] += buffer.bytes
    return bytes_of


def _mark_gradient(value: Value | None, found: set[Value]) -> None:
    """Add a gradient to `found`, and the terms of the sums that produce it."""
    if value is None or value in found or value.source is None:
        return
    found.add(value)
    source = value.source
    if isinstance(source.form, Scan):
        number = source.results.index(value)
        _mark_gradient(source.bodies[0].results[number], found)
        if number < source.form.carried:
            _mark_gradient(source.operands[source.form.constants + number], found)
    elif source.name in ("add", "add_any", "transpose", "scatter-add") or source.name.startswith("psum"):
        for operand in source.operands[:2] if source.name.startswith("add") else source.operands[:1]:
            _mark_gradient(operand, found)


def _is_gathered(value: Value, fsdp: str) -> bool:
    """True for a parameter gathered by FSDP, and for its gradient before the reduce-scatter."""
    source = value.source
    while source is not None and source.name in ("convert_element_type", "transpose"):
        source = source.operands[0].source if source.operands[0] is not None else None
    if source is not None and source.name == "all_gather" and _goes_over(source, fsdp):
        return True
    return any(reader.name == "reduce_scatter" and _goes_over(reader, fsdp) for reader, _ in value.readers)


def _goes_over(collective: Operation, axis: str) -> bool:
    return isinstance(collective.form, Collective) and axis in collective.form.axes


def _is_activation(buffer: Buffer) -> bool:
    """True if the forward pass computes the value and the backward pass reads it."""
    maker, last = buffer.maker.operation, buffer.last.operation if buffer.last is not None else None
    return maker is not None and last is not None and last.backward and not maker.backward


def in_words(moment: Moment) -> str:
    """Return a description of the computation that runs at a moment."""
    if not moment.running:
        return "no computation"
    backward = any(operation.backward for operation in moment.running)
    names: list[str] = []
    for operation in moment.running:
        for name in operation.scope.split("/"):
            if name.isidentifier() and name not in (*names, *_NO_MODULES):
                names.append(name)
    return f"the {'backward' if backward else 'forward'} pass of {'.'.join(names) or 'the loss'}"


_NO_MODULES = ("checkpoint", "rematted_computation", "closed_call", "while", "body")


# ---- the peak of a program


def working_memory(program: Program) -> int:
    """Return the peak memory of a program in bytes, excluding its arguments."""
    return busiest_moment(fuse(read_dataflow(program))).bytes


@dataclass(frozen=True)
class Moment:
    """Live buffers and running operations at one moment of a program."""

    bytes: int
    running: tuple[Operation, ...]
    """Running operations, from the outermost loop inward."""

    buffers: tuple[tuple[Buffer, ...], ...]
    """Live buffers by nesting level: outside all loops, in the body of the outermost loop, and so on."""


def busiest_moment(fused: Fused) -> Moment:
    """Return the moment of a program with the most live bytes."""
    return busiest_moments(fused, lambda _: "").get("", Moment(0, (), ()))


def busiest_moments(fused: Fused, part: Callable[[Operation | None], str]) -> dict[str, Moment]:
    """Return the moment with the most live bytes in each part of a program, by name of the part.

    Args:
        fused: the program.
        part: function that returns the name of the part to which an operation outside all loops belongs. It is called
            with None for a step without an operation.
    """
    steps = in_order(fused.steps)
    bodies = {number: body for number, step in enumerate(steps) if (body := _body_moment(step)) is not None}
    buffers = set_lifetimes(steps, fused.kept)
    changes = [0] * (len(steps) + 2)
    for buffer in buffers:
        changes[buffer.start] += buffer.bytes
        changes[buffer.end + 1] -= buffer.bytes
    most: dict[str, tuple[int, int]] = {}
    here = 0
    for number, step in enumerate(steps):
        here += changes[number]
        total, name = here + (bodies[number].bytes if number in bodies else 0), part(step.operation)
        if name not in most or total > most[name][0]:
            most[name] = total, number

    def moment(total: int, when: int) -> Moment:
        alive = tuple(buffer for buffer in buffers if buffer.start <= when <= buffer.end and buffer.bytes)
        operation, inner = steps[when].operation, bodies.get(when)
        running = (() if operation is None else (operation,)) + (inner.running if inner else ())
        return Moment(total, running, (alive, *(inner.buffers if inner else ())))

    return {name: moment(*found) for name, found in most.items()}


def _body_moment(step: Step) -> Moment | None:
    """Return the moment of peak memory inside a loop or a branch; None for any other step."""
    operation = step.operation
    if operation is None or not operation.bodies or not step.makes:
        return None
    moments = [busiest_moment(fuse(body, *_arguments(operation), is_body=True)) for body in operation.bodies]
    return max(moments, key=lambda moment: moment.bytes)


def _arguments(operation: Operation) -> tuple[range, range]:
    """Return the positions of the body arguments that are carried, and of those that are slices of stacked arrays."""
    form = operation.form
    if isinstance(form, Scan):
        first, last = form.constants, form.constants + form.carried
        return range(first, last), range(last, len(operation.operands))
    if isinstance(form, While):
        return range(form.constants, form.constants + len(operation.results)), range(0)
    return range(0), range(0)


def in_order(steps: list[Step]) -> list[Step]:
    """Return the steps in breadth-first order."""
    missing = {step: len({buffer.maker for buffer in step.reads}) for step in steps}
    readers: dict[Step, list[Step]] = {step: [] for step in steps}
    for step in steps:
        for maker in dict.fromkeys(buffer.maker for buffer in step.reads):
            readers[maker].append(step)
    ready = deque(step for step in steps if not missing[step])
    order = []
    while ready:
        order.append(step := ready.popleft())
        for reader in readers[step]:
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    return order


def set_lifetimes(steps: list[Step], kept: list[Buffer]) -> list[Buffer]:
    """Set the first and last step of every buffer, and return all buffers."""
    buffers = []
    for number, step in enumerate(steps):
        for buffer in step.makes:
            buffer.start = 0 if buffer.at_start else number
            buffer.end = number
            buffers.append(buffer)
        for buffer in step.reads:
            buffer.end, buffer.last = number, step
    for buffer in kept:
        buffer.end = len(steps)
    for number, step in enumerate(steps):
        free = [buffer for buffer, same in step.reads.items() if same and buffer.end == number]
        for made in step.makes:
            if made.at_start:
                continue
            taken = next((buffer for buffer in free if buffer.bytes == made.bytes), None)
            if taken is not None:
                free.remove(taken)
                made.start = number + 1
    return buffers
