"""A traced program in three parts: its blocks forward, its blocks backward, and what is around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from xlstm_hydra.configs import RunConfig
from xlstm_hydra.configs.language_model import LanguageModelConfig

from ._dataflow import Graph, Operation
from ._jaxpr import Call, Equation, Program, Scan, UnknownForm
from ._liveness import Moment, busiest_moments

PHASES = ("forward", "backward", "outside")
"""The parts of a program."""


def split(run: RunConfig, program: Program) -> dict[str, Program]:
    """The same program thrice, each time with one of its parts alone."""
    mapped, inner = _mapped(program)
    length = _stack_length(run)
    loops = [equation for equation in inner.equations if _is_stack(equation, length)]
    others = [equation for equation in inner.equations if equation not in loops]

    def only(equations: Sequence[Equation]) -> Program:
        local = replace(mapped, form=Call(replace(inner, equations=tuple(equations))))
        return replace(program, equations=(local,))

    return dict(zip(PHASES, (only(loops[:1]), only(loops[1:]), only(others)), strict=True))


def _mapped(program: Program) -> tuple[Equation, Program]:
    """The `shard_map` of a program, and what each device does in it."""
    for equation in program.equations:
        if equation.name == "shard_map" and isinstance(equation.form, Call):
            return equation, equation.form.program
    raise UnknownForm("no `shard_map` in the program of loss and gradients")


def busiest_by_phase(run: RunConfig, graph: Graph) -> dict[str, Moment]:
    """The moment of each part when most bytes are in memory."""
    length = _stack_length(run)

    def phase(operation: Operation | None) -> str:
        if operation is None or not _is_stack(operation, length):
            return "outside"
        return "backward" if operation.backward else "forward"

    return busiest_moments(graph, phase)


def _is_stack(one: Equation | Operation, length: int | None) -> bool:
    """True for a loop over the blocks."""
    return isinstance(one.form, Scan) and one.form.length == length


def _stack_length(run: RunConfig) -> int | None:
    """Rounds of the loop over the blocks; None where there is none."""
    config = run.model.model_config
    if not isinstance(config, LanguageModelConfig) or not config.scan_blocks:
        return None
    return config.num_blocks // config.scan_period()
