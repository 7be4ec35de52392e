"""What is in memory while a traced program runs, and at which moment that is most.

Steps run breadth first, as XLA orders them: each as soon as what it reads is there, first come, first served. So what
is ready early is there for long, and what needs nothing is there from the start. A result is given up after the last
step that reads it; one of the same size that is computed from it, element by element, takes its place.

A loop stacks the results of all rounds in one array, there from the start of the program around it. What a round hands
to the next has a place outside the body and, as long as the old value is read, a copy inside. What the body needs
beyond this comes on top of what is around the loop.

Arguments of the program are not counted: they are there all the time. Nor is what is lost between places of different
sizes when the compiler packs them, a few percent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ._dataflow import Graph, Operation
from ._fusion import Buffer, Fused, Step, fuse
from ._jaxpr import Scan, While


@dataclass(frozen=True)
class Moment:
    """What is in memory at one time."""

    bytes: int
    running: tuple[Operation, ...]
    """What is being computed, the loops around it first."""

    buffers: tuple[tuple[Buffer, ...], ...]
    """What is there: around all loops, in the body of the outermost, and so on."""


def busiest_moment(graph: Graph) -> Moment:
    """The moment of a program when most bytes are in memory."""
    return _busiest(fuse(graph))


def busiest_moments(graph: Graph, part: Callable[[Operation | None], str]) -> dict[str, Moment]:
    """The busiest moment of each part of a program.

    Args:
        graph: the program.
        part: name of the part that an operation belongs to, which stands in no loop. None: the end of the program.
    """
    return _moments(fuse(graph), part)


def _busiest(fused: Fused) -> Moment:
    found = _moments(fused, lambda _: "")
    return found.get("", Moment(0, (), ()))


def _moments(fused: Fused, part: Callable[[Operation | None], str]) -> dict[str, Moment]:
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
    """The busiest moment inside a loop or a branch."""
    operation = step.operation
    if operation is None or not operation.bodies or not step.makes:
        return None
    moments = [_busiest(fuse(body, *_arguments(operation), is_body=True)) for body in operation.bodies]
    return max(moments, key=lambda moment: moment.bytes)


def _arguments(operation: Operation) -> tuple[range, range]:
    """Numbers of the arguments of a body that are carried, and of those that are slices."""
    form = operation.form
    if isinstance(form, Scan):
        first, last = form.constants, form.constants + form.carried
        return range(first, last), range(last, len(operation.operands))
    if isinstance(form, While):
        return range(form.constants, form.constants + len(operation.results)), range(0)
    return range(0), range(0)


def in_order(steps: list[Step]) -> list[Step]:
    """Steps breadth first."""
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
    """Note in every buffer from which step to which it is there. Returns all of them."""
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
