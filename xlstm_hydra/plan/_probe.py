"""Costs of traced programs, interpolated to other numbers of rows and other tensor-parallel sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xlstm_hydra.configs import ParallelConfig, RunConfig
from xlstm_hydra.configs.language_model import LanguageModelConfig
from xlstm_hydra.parallel import Parameter, abstract_mesh
from xlstm_hydra.step import build_sharded_loss

from ._counts import Counts, count
from ._dataflow import Graph, Operation, read_dataflow
from ._fusion import fuse
from ._jaxpr import Call, Equation, Program, Scan, UnknownForm, trace_loss
from ._layouts import SHARDING, assembled, closed
from ._memory import Moment, busiest_moments, bytes_by_kind, in_words, parts_read, state_bytes, update_bytes
from ._plan import Plan

Numbers = Mapping[Any, float]
"""Costs of a program by key.

- `("share", name)`: bytes per byte of parameters, or per row for `batch`.
- `("memory", phase, kind)`: bytes at the peak of the phase.
- `(phase, name, ...)`: fields of `Counts`, and the count and bytes of each kind of collective.
"""


def probe(
    run: RunConfig, tensor: int, rows: int, sharded: ParallelConfig | None, parameters: Sequence[Parameter]
) -> tuple[Numbers, Mapping[str, str]]:
    """Trace a run with other sizes. Return its costs and a description of the memory peak of each phase.

    Args:
        run: the run. Only mesh axis sizes, sharding settings and batch size are changed.
        tensor: number of tensor-parallel devices.
        rows: rows (examples) per device.
        sharded: a layout whose FSDP settings are applied, over two devices. None: no FSDP.
        parameters: parameters of the model.
    """
    fsdp = 1 if sharded is None else 2
    sizes = {"data_axis_size": 1, "fsdp_axis_size": fsdp, "pipeline_axis_size": 1, "model_axis_size": tensor}
    sharding = {} if sharded is None else {key: sharded.get(key) for key in SHARDING}
    layout = closed(run.parallel, **sharding | sizes | {"fsdp_gather_dtype": None})
    alone = {"gradient_accumulate_steps": 1, "pipeline_microbatches": None, "pipeline_remat": False}
    trainer = replace(run.trainer, batch_size=rows * fsdp, **alone)
    run = assembled(run, model=replace(run.model, parallel=layout), trainer=trainer)
    loss = build_sharded_loss(run, abstract_mesh(layout, fsdp * tensor), parameters)
    program = trace_loss(loss)
    graph = read_dataflow(program)
    state = state_bytes(run, loss.placements, loss.mesh.shape, parts_read(loss, graph))
    moments = busiest_by_phase(run, graph)
    numbers: dict[Any, float] = {}
    for phase, moment in moments.items():
        kinds = bytes_by_kind(loss, graph, moment)
        numbers["share", phase] = kinds.pop("gradients") / state["parameters"]
        numbers |= {("memory", phase, kind): size for kind, size in kinds.items()}
    numbers["share", "update"] = update_bytes(run, graph) / state["parameters"]
    numbers |= _shares(state, rows)
    for phase, part in split(run, program).items():
        numbers |= _count_numbers(phase, count(part))
    return numbers, {phase: in_words(moment) for phase, moment in moments.items()}


def probe_of(plan: Plan, rows: int) -> tuple[Numbers, Mapping[str, str]]:
    """Return the costs of a plan without a pipeline in the form that `probe` returns. All phases are assigned the same
    memory, and all operations are assigned to the phase `outside`."""
    memory = plan.memory
    numbers: dict[Any, float] = {}
    for phase in PHASES:
        numbers["share", phase] = memory.gradients / memory.parameters
        for kind in ("activations", "gathered", "logits", "working"):
            numbers["memory", phase, kind] = getattr(memory, kind)
    numbers["share", "update"] = 1.0 if plan.run.optimizer.grad_clip_norm else 0.0
    state = {kind: getattr(memory, kind) for kind in ("parameters", "optimizer", "batch")}
    numbers |= _shares(state, rows)
    numbers |= _count_numbers("outside", plan.counts)
    return numbers, dict.fromkeys(PHASES, memory.moment)


def _shares(state: Mapping[str, int], rows: int) -> Numbers:
    return {("share", "optimizer"): state["optimizer"] / state["parameters"], ("share", "batch"): state["batch"] / rows}


def _count_numbers(phase: str, counts: Counts) -> Numbers:
    numbers: dict[Any, float] = {
        (phase, "other_flops"): counts.other_flops,
        (phase, "transcendentals"): counts.transcendentals,
        (phase, "traffic"): counts.traffic,
    }
    numbers |= {(phase, "product", dtype): flops for dtype, flops in counts.product_flops.items()}
    for exchange in counts.exchanges:
        kind = (exchange.operation, exchange.axes, exchange.dtype)
        for key, value in (("count", exchange.count), ("bytes", exchange.bytes * exchange.count)):
            numbers[phase, key, *kind] = numbers.get((phase, key, *kind), 0.0) + value
    return numbers


class Fit:
    """Costs of a program, interpolated to any number of rows and any tensor-parallel size."""

    def __init__(self, probes: Sequence[Numbers], rows: Sequence[int], widths: Sequence[int]) -> None:
        """Fit costs as a function of rows and tensor-parallel size to one to three traced programs.

        Args:
            probes: costs at `widths[0]` for each of `rows`, then at `widths[1]`, if given, for `rows[-1]`.
            rows: one or two numbers of rows.
            widths: one or two tensor-parallel sizes.
        """
        self._keys = sorted({key for numbers in probes for key in numbers}, key=str)
        values = [np.array([numbers.get(key, 0.0) for key in self._keys]) for numbers in probes]
        self._width, low = widths[0], rows[0]
        self._slope = np.zeros_like(values[0]) if len(rows) == 1 else (values[1] - values[0]) / (rows[1] - low)
        self._constant = values[0] - self._slope * low
        self._fixed = np.array([key[0] == "share" or key[1] == "count" for key in self._keys])
        self._other_width, self._other_slope = self._width, self._slope
        if len(widths) > 1:
            constant = self._at_width(self._constant, widths[1])
            self._other_width, self._other_slope = widths[1], (values[-1] - constant) / rows[-1]
        self._known: dict[tuple[int, int], Numbers] = {}

    def at(self, rows: int, tensor: int) -> Numbers:
        """Return the costs for this number of rows and this tensor-parallel size. With 0 rows, only the costs that do
        not depend on rows remain."""
        if (rows, tensor) not in self._known:
            values = self._at_width(self._constant, tensor) + self._slope_at(tensor) * rows
            self._known[rows, tensor] = dict(zip(self._keys, values.tolist(), strict=True))
        return self._known[rows, tensor]

    def _at_width(self, constant: np.ndarray, tensor: int) -> np.ndarray:
        """Return the costs that do not depend on rows. They come from parameters, which tensor parallelism divides."""
        return np.where(self._fixed, constant, constant * self._width / tensor)

    def _slope_at(self, tensor: int) -> np.ndarray:
        """Return the costs per row. Tensor parallelism divides them, except for the residual stream, so they are linear
        in 1 / `tensor`."""
        if self._other_width == self._width:
            return self._slope
        share = (1 / tensor - 1 / self._width) / (1 / self._other_width - 1 / self._width)
        return self._slope + share * (self._other_slope - self._slope)


# ---- phases of a step

PHASES = ("forward", "backward", "outside")
"""Phases of a step: the forward and the backward loop over the blocks, and everything outside these loops."""


def split(run: RunConfig, program: Program) -> dict[str, Program]:
    """Return one program per phase, each containing only the operations of that phase."""
    mapped, inner = _mapped(program)
    length = _stack_length(run)
    loops = [equation for equation in inner.equations if _is_stack(equation, length)]
    others = [equation for equation in inner.equations if equation not in loops]

    def only(equations: Sequence[Equation]) -> Program:
        local = replace(mapped, form=Call(replace(inner, equations=tuple(equations))))
        return replace(program, equations=(local,))

    return dict(zip(PHASES, (only(loops[:1]), only(loops[1:]), only(others)), strict=True))


def _mapped(program: Program) -> tuple[Equation, Program]:
    """Return the `shard_map` equation of a program, and the program of each device inside it."""
    for equation in program.equations:
        if equation.name == "shard_map" and isinstance(equation.form, Call):
            return equation, equation.form.program
    raise UnknownForm("the program of loss and gradients has no `shard_map`")


def busiest_by_phase(run: RunConfig, graph: Graph) -> dict[str, Moment]:
    """Return the moment of peak memory in each phase."""
    length = _stack_length(run)

    def phase(operation: Operation | None) -> str:
        if operation is None or not _is_stack(operation, length):
            return "outside"
        return "backward" if operation.backward else "forward"

    return busiest_moments(fuse(graph), phase)


def _is_stack(one: Equation | Operation, length: int | None) -> bool:
    """True for a loop over the blocks."""
    return isinstance(one.form, Scan) and one.form.length == length


def _stack_length(run: RunConfig) -> int | None:
    """Return the number of iterations of the loop over the blocks; None if there is no loop."""
    config = run.model.model_config
    if not isinstance(config, LanguageModelConfig) or not config.scan_blocks:
        return None
    return config.num_blocks // config.scan_period()
