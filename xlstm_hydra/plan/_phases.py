"""A traced program in three parts: its blocks forward, its blocks backward, and what is around them."""

from __future__ import annotations

from typing import Any

from xlstm_hydra.configs import RunConfig
from xlstm_hydra.configs.language_model import LanguageModelConfig

from ._dataflow import Graph
from ._fusion import fuse
from ._liveness import Moment, _body_moment, in_order, set_lifetimes

PHASES = ("forward", "backward", "outside")
"""The parts of a program."""


def split(run: RunConfig, jaxpr: Any) -> dict[str, Any]:
    """The same program thrice, each time with one of its parts alone."""
    body = jaxpr.jaxpr
    mapped = next(eqn for eqn in body.eqns if eqn.primitive.name == "shard_map")
    inner = mapped.params["jaxpr"]
    length = _stack_length(run)
    loops = [eqn for eqn in inner.eqns if eqn.primitive.name == "scan" and eqn.params["length"] == length]
    others = [eqn for eqn in inner.eqns if eqn not in loops]

    def only(eqns: list[Any]) -> Any:
        local = mapped.replace(params=mapped.params | {"jaxpr": inner.replace(eqns=eqns)})
        return jaxpr.replace(jaxpr=body.replace(eqns=[local]))

    return dict(zip(PHASES, (only(loops[:1]), only(loops[1:]), only(others)), strict=True))


def busiest_by_phase(run: RunConfig, graph: Graph) -> dict[str, Moment]:
    """The moment of each part when most bytes are in memory, as `busiest_moment` gives it for the whole."""
    fused = fuse(graph)
    steps = in_order(fused.steps)
    bodies = {number: body for number, step in enumerate(steps) if (body := _body_moment(step)) is not None}
    buffers, length = set_lifetimes(steps, fused.kept), _stack_length(run)
    found: dict[str, tuple[int, int]] = {}
    for number, step in enumerate(steps):
        here = sum(buffer.bytes for buffer in buffers if buffer.start <= number <= buffer.end)
        total = here + (bodies[number].bytes if number in bodies else 0)
        operation, phase = step.operation, "outside"
        if operation is not None and operation.name == "scan" and operation.params["length"] == length:
            phase = "backward" if operation.backward else "forward"
        if total > found.get(phase, (-1, 0))[0]:
            found[phase] = total, number
    moments = {}
    for phase, (total, when) in found.items():
        alive = tuple(buffer for buffer in buffers if buffer.start <= when <= buffer.end and buffer.bytes)
        inner, operation = bodies.get(when), steps[when].operation
        running = (() if operation is None else (operation,)) + (inner.running if inner else ())
        moments[phase] = Moment(total, running, (alive, *(inner.buffers if inner else ())))
    return moments


def _stack_length(run: RunConfig) -> int | None:
    """Rounds of the loop over the blocks; None where there is none."""
    config = run.model.model_config
    if not isinstance(config, LanguageModelConfig) or not config.scan_blocks:
        return None
    return config.num_blocks // config.scan_period()
