"""Memory, counts and time of many layouts from the programs of a few.

A program is traced for each choice of what is recomputed, with tensor parallelism and without, at the smallest and the
largest number of rows that a device is given. Everything between follows from how a step is made:

- The work of a device, and what it keeps, grow evenly with its rows.
- Tensor parallelism divides the work and what is kept, but for the residual stream where it is gathered.
- FSDP and data parallelism change only the shares of parameters, gradients and optimizer state, which `parallel.place`
  gives, and which mesh axes the gradients are summed over. Gathered parameters are as large as ever.
- Gradient accumulation repeats all but the sums of the gradients, and holds a second set of them.
- A stage of a pipeline does one share of the blocks in each of microbatches + stages - 1 ticks, with the rows of a
  microbatch, and its share of the rows outside the blocks.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from xlstm_hydra.configs import DeviceConfig, RunConfig
from xlstm_hydra.configs.language_model import LanguageModelConfig
from xlstm_hydra.models import Objective, build_objective
from xlstm_hydra.parallel import Parameter, Placement, abstract_mesh, place

from ._counts import Counts, Exchange, count
from ._layouts import SHARDING, assembled, closed
from ._memory import Memory, step_memory
from ._plan import Plan, axes_across
from ._time import StepTime, step_time
from ._trace import trace

Numbers = Mapping[Any, float]
"""Named quantities of a program."""

PARTS = ("forward", "backward", "outside")
"""Parts of a program: the blocks forward, the blocks backward, and what is around them."""

_KEPT = ("activations", "gathered", "logits", "working")
"""Kinds of memory that grow with the rows, or do not depend on the layout."""


@dataclass(frozen=True)
class Estimate:
    """What a layout costs, as far as arithmetic tells."""

    run: RunConfig
    sizes: Mapping[str, int]
    memory: Memory
    counts: Counts
    time: StepTime | None
    """None where the device's speeds are not known."""


@dataclass(frozen=True)
class _Shape:
    """Sizes of a layout, and what a device is given at a time."""

    data: int
    fsdp: int
    stages: int
    tensor: int
    parts: int
    microbatches: int
    rows: int
    """Rows of a device in a part of the batch."""

    @property
    def ticks(self) -> int:
        return self.microbatches + self.stages - 1

    @property
    def block_rows(self) -> int:
        """Rows that go through a block at a time."""
        return self.rows // self.microbatches

    @property
    def outer_rows(self) -> int:
        """Rows outside the blocks."""
        return self.rows // self.stages


class Scale:
    """Estimates of runs that differ in their layout only."""

    def __init__(
        self,
        runs: Sequence[RunConfig],
        num_devices: int,
        device: DeviceConfig,
        parameters: Sequence[Parameter],
        known: Plan | None = None,
    ) -> None:
        """Prepare for some runs.

        Args:
            runs: those that estimates are wanted of.
            num_devices: how many there are.
            device: what they are.
            parameters: of the model.
            known: a plan of one of them, which takes the place of a program that would be traced, where it can.
        """
        self.num_devices, self.device, self.parameters = num_devices, device, parameters
        shapes = [self._shape(run) for run in runs]
        rows = {shape.block_rows for shape in shapes} | {shape.outer_rows for shape in shapes}
        self.rows = sorted({min(rows), max(rows)})
        widths = sorted({shape.tensor for shape in shapes if shape.tensor > 1})
        self.widths = sorted({*widths[:1], *widths[-1:]})
        sharded = (run.parallel for run, shape in zip(runs, shapes, strict=True) if shape.fsdp > 1)
        self.sharded = next(sharded, None)
        self.traced = 0
        self._known: dict[Any, tuple[Numbers, str]] = {}
        if known is not None:
            self._learn(known)
        self.optimizer_share = 0.0 if known is None else known.memory.optimizer / known.memory.parameters
        self._fits: dict[Any, _Fit] = {}
        self._placements: dict[Any, tuple[Placement, ...]] = {}

    def estimate(self, run: RunConfig) -> Estimate:
        """Memory, counts and time of a run."""
        sizes, shape = run.parallel.axis_sizes(self.num_devices), self._shape(run)
        counts = self._counts(run, shape, sizes)
        across = axes_across(run, sizes, self.device.devices_per_host)
        time = step_time(counts, sizes, across, self.device) if self.device.has_speeds else None
        return Estimate(run, sizes, self._memory(run, shape), counts, time)

    def on(self, num_devices: int) -> Scale:
        """The same for another number of devices."""
        other = copy.copy(self)
        other.num_devices, other._placements = num_devices, {}
        return other

    def state_bytes(self, run: RunConfig) -> int:
        """Bytes on a device that a run needs for parameters and optimizer, however small its batch is."""
        parameters = sum(placement.bytes_per_device for placement in self.placements(run))
        return round(parameters * (1 + self.optimizer_share))

    def placements(self, run: RunConfig) -> tuple[Placement, ...]:
        """Where every parameter lives."""
        sizes = run.parallel.axis_sizes(self.num_devices)
        key = tuple(sizes.values())
        if key not in self._placements:
            self._placements[key] = tuple(place(parameter, run.parallel, sizes) for parameter in self.parameters)
        return self._placements[key]

    def _shape(self, run: RunConfig) -> _Shape:
        data, fsdp, stages, tensor = run.parallel.axis_sizes(self.num_devices).values()
        parts = run.trainer.gradient_accumulate_steps
        rows = run.trainer.batch_size // (data * fsdp * parts)
        return _Shape(data, fsdp, stages, tensor, parts, run.microbatches(data, fsdp, stages), rows)

    def _fit(self, run: RunConfig, tensor: int) -> _Fit:
        """The numbers of the programs that are like this one but for their sizes."""
        key = (tuple(run.parallel.remat), tensor > 1)
        if key not in self._fits:
            widths, rows = self.widths if tensor > 1 else [1], self.rows
            probes = [self._probe(run, widths[0], rows[0])]
            probes += [self._probe(run, widths[0], rows[1])] if len(rows) > 1 else []
            probes += [self._probe(run, widths[1], rows[-1])] if len(widths) > 1 else []
            self._fits[key] = _Fit(probes, rows, widths)
        return self._fits[key]

    def _learn(self, plan: Plan) -> None:
        """Take the numbers of a plan for those of a program. They are not told apart by parts of the program, so that
        they are of use only where no layout has a pipeline."""
        shape = self._shape(plan.run)
        if shape.parts * shape.stages == 1 and (shape.fsdp > 1 or self.sharded is None):
            numbers = _numbers(plan.memory, {"outside": plan.counts}, shape.rows)
            self._known[tuple(plan.run.parallel.remat), shape.tensor, shape.rows] = numbers, plan.memory.moment

    def _probe(self, run: RunConfig, tensor: int, rows: int) -> tuple[Numbers, str]:
        """The numbers of a program, and the moment that needs most memory."""
        if (known := self._known.get((tuple(run.parallel.remat), tensor, rows))) is not None:
            return known
        self.traced += 1
        fsdp = 1 if self.sharded is None else 2
        sizes = {"data_axis_size": 1, "fsdp_axis_size": fsdp, "pipeline_axis_size": 1, "model_axis_size": tensor}
        sharding = {} if self.sharded is None else {key: self.sharded.get(key) for key in SHARDING}
        layout = closed(run.parallel, **sharding | sizes | {"fsdp_gather_dtype": None})
        trainer = replace(
            run.trainer,
            batch_size=rows * fsdp,
            gradient_accumulate_steps=1,
            pipeline_microbatches=None,
            pipeline_remat=False,
        )
        run = assembled(run, model=replace(run.model, parallel=layout), trainer=trainer)
        objective = build_objective(run, abstract_mesh(layout, fsdp * tensor), self.parameters)
        jaxpr = trace(objective)
        memory = step_memory(objective, jaxpr)
        parts = {part: count(program) for part, program in _split(objective, jaxpr).items()}
        return _numbers(memory, parts, rows), memory.moment

    def _counts(self, run: RunConfig, shape: _Shape, sizes: Mapping[str, int]) -> Counts:
        fit = self._fit(run, shape.tensor)
        numbers = {"outside": fit.at(shape.outer_rows, shape.tensor)}
        numbers["forward"] = numbers["backward"] = fit.at(shape.block_rows, shape.tensor)
        gathers, total = ("all-gather", (run.parallel.fsdp_axis_name,)), defaultdict[Any, float](float)
        for part in PARTS:
            times = shape.parts * _times(part, shape, run.trainer.pipeline_remat)
            # What the forward pass gathers, it gathers before the first tick, if it is not done twice.
            is_early = part == "forward" and not (shape.stages > 1 and run.trainer.pipeline_remat)
            for (where, *key), value in numbers[part].items():
                if where == part:
                    is_once = is_early and tuple(key[1:3]) == gathers
                    total[tuple(key)] += value * (shape.parts / shape.stages if is_once else times)
        exchanges = [*self._part_exchanges(run, total, sizes), *self._gradient_sums(run, sizes)]
        if shape.stages > 1:
            exchanges += _stage_exchanges(run, shape)
        products = {dtype: value for (kind, *dtype_), value in total.items() if kind == "product" for dtype in dtype_}
        return Counts(
            product_flops=products,
            other_flops=total["other",],
            transcendentals=total["transcendentals",],
            traffic=total["traffic",],
            exchanges=tuple(exchanges),
        )

    def _part_exchanges(self, run: RunConfig, total: Numbers, sizes: Mapping[str, int]) -> Iterator[Exchange]:
        """The collectives of all parts of a batch, but for those that sum gradients."""
        parallel = run.parallel
        batch_axes = {parallel.data_axis_name, parallel.fsdp_axis_name}
        for (kind, *key), size in list(total.items()):
            if kind != "bytes":
                continue
            operation, axes, dtype = key
            times = total["count", operation, axes, dtype]
            if (operation == "all-reduce" and set(axes) <= batch_axes) or times < 1:
                continue
            if operation == "all-gather" and axes == (parallel.fsdp_axis_name,) and parallel.fsdp_gather_dtype:
                size *= _itemsize(parallel.fsdp_gather_dtype) / _itemsize(dtype)
                dtype = parallel.fsdp_gather_dtype
            if named := tuple(axis for axis in axes if sizes[axis] > 1):
                yield Exchange(operation, named, dtype, round(size / times), round(times))

    def _gradient_sums(self, run: RunConfig, sizes: Mapping[str, int]) -> Iterator[Exchange]:
        """What sums the gradients over the devices that computed parts of the loss with the same parameters."""
        names = run.parallel.axis_names()[:3]
        for placement in self.placements(run):
            if axes := tuple(name for name in names if sizes[name] > 1 and name not in placement.spec):
                yield Exchange("all-reduce", axes, placement.parameter.dtype, placement.bytes_per_device, 1)

    def _memory(self, run: RunConfig, shape: _Shape) -> Memory:
        fit = self._fit(run, shape.tensor)
        here, outer = fit.at(shape.block_rows, shape.tensor), fit.at(shape.outer_rows, shape.tensor)
        parameters = sum(placement.bytes_per_device for placement in self.placements(run))
        kept = {kind: here["memory", kind] for kind in _KEPT}
        kept["logits"] = outer["memory", "logits"]
        if shape.stages > 1:
            stream = _stream_bytes(run, shape.block_rows, shape.tensor)
            kept["activations"] = kept["activations"] * shape.ticks / shape.stages + 3 * shape.ticks * stream
        if shape.fsdp == 1:
            kept["gathered"] = 0.0
        gradients = parameters * (here["share", "gradients"] + (shape.parts > 1))
        return Memory(
            parameters=parameters,
            gradients=round(gradients),
            optimizer=round(parameters * here["share", "optimizer"]),
            batch=round(here["share", "batch"] * shape.rows * shape.parts),
            moment=fit.moment,
            **{kind: max(round(value), 0) for kind, value in kept.items()},
        )


class _Fit:
    """The numbers of a program at any number of rows and any tensor parallelism, from two or three of them."""

    def __init__(self, probes: list[tuple[Numbers, str]], rows: list[int], widths: list[int]) -> None:
        self.moment = probes[-1][1]
        self._keys = sorted({key for numbers, _ in probes for key in numbers}, key=str)
        values = [np.array([numbers.get(key, 0.0) for key in self._keys]) for numbers, _ in probes]
        self._width, low = widths[0], rows[0]
        self._slope = np.zeros_like(values[0]) if len(rows) == 1 else (values[1] - values[0]) / (rows[1] - low)
        self._constant = values[0] - self._slope * low
        self._fixed = np.array([key[0] == "share" or "count" in key for key in self._keys])
        self._other_width, self._other_slope = self._width, self._slope
        if len(widths) > 1:
            constant = self._at_width(self._constant, widths[1])
            self._other_width, self._other_slope = widths[1], (values[-1] - constant) / rows[-1]
        self._known: dict[tuple[int, int], Numbers] = {}

    def at(self, rows: int, tensor: int) -> Numbers:
        """The numbers there."""
        if (rows, tensor) not in self._known:
            values = self._at_width(self._constant, tensor) + self._slope_at(tensor) * rows
            self._known[rows, tensor] = dict(zip(self._keys, values.tolist(), strict=True))
        return self._known[rows, tensor]

    def _at_width(self, constant: np.ndarray, tensor: int) -> np.ndarray:
        """What does not depend on the rows has to do with parameters, which are divided."""
        return np.where(self._fixed, constant, constant * self._width / tensor)

    def _slope_at(self, tensor: int) -> np.ndarray:
        """What depends on the rows is divided, but for the stream: it is even in 1 / width."""
        if self._other_width == self._width:
            return self._slope
        share = (1 / tensor - 1 / self._width) / (1 / self._other_width - 1 / self._width)
        return self._slope + share * (self._other_slope - self._slope)


def _numbers(memory: Memory, parts: Mapping[str, Counts], rows: int) -> Numbers:
    """What a program costs, in numbers that can be scaled."""
    numbers: dict[Any, float] = {("memory", kind): getattr(memory, kind) for kind in _KEPT}
    numbers["share", "gradients"] = memory.gradients / memory.parameters
    numbers["share", "optimizer"] = memory.optimizer / memory.parameters
    numbers["share", "batch"] = memory.batch / rows
    for where, counts in parts.items():
        numbers |= {(where, "product", dtype): flops for dtype, flops in counts.product_flops.items()}
        for key in ("other_flops", "transcendentals", "traffic"):
            numbers[where, key.removesuffix("_flops")] = getattr(counts, key)
        for exchange in counts.exchanges:
            kind = (exchange.operation, exchange.axes, exchange.dtype)
            for key, value in (("count", exchange.count), ("bytes", exchange.bytes * exchange.count)):
                numbers[where, key, *kind] = numbers.get((where, key, *kind), 0.0) + value
    return numbers


def _split(objective: Objective, jaxpr: Any) -> dict[str, Any]:
    """The same program thrice: with nothing but the loop over the blocks forward, or backward, and without them."""
    config, body = objective.model.model_config, jaxpr.jaxpr
    length = config.num_blocks // config.scan_period() if isinstance(config, LanguageModelConfig) else None
    mapped = next(eqn for eqn in body.eqns if eqn.primitive.name == "shard_map")
    inner = mapped.params["jaxpr"]
    loops = [eqn for eqn in inner.eqns if eqn.primitive.name == "scan" and eqn.params["length"] == length]
    others = [eqn for eqn in inner.eqns if eqn not in loops]

    def only(eqns: list[Any]) -> Any:
        local = mapped.replace(params=mapped.params | {"jaxpr": inner.replace(eqns=eqns)})
        return jaxpr.replace(jaxpr=body.replace(eqns=[local]))

    return dict(zip(PARTS, (only(loops[:1]), only(loops[1:]), only(others)), strict=True))


def _times(part: str, shape: _Shape, stage_remat: bool) -> float:
    """How often a part of the program runs on a device for each part of the batch."""
    if part == "outside":
        return 1
    return shape.ticks / shape.stages * (2 if part == "forward" and stage_remat else 1)


def _stage_exchanges(run: RunConfig, shape: _Shape) -> Iterator[Exchange]:
    """What the stages of a pipeline hand on: each tick's rows forwards and their gradients backwards, and at the end
    each stage's share of the last stage's rows."""
    name, dtype = (run.parallel.pipeline_axis_name,), run.model.model_config.get("dtype")  # pyright: ignore[reportOptionalMemberAccess]
    tick, whole = (_stream_bytes(run, rows, shape.tensor) for rows in (shape.block_rows, shape.rows))
    yield Exchange("collective-permute", name, dtype, tick, 2 * shape.ticks * shape.parts)
    yield Exchange("reduce-scatter", name, dtype, whole, shape.parts)
    yield Exchange("all-gather", name, dtype, whole, shape.parts)


def _stream_bytes(run: RunConfig, rows: int, tensor: int) -> int:
    """A device's share of the residual stream of so many rows."""
    config = run.model.model_config
    assert isinstance(config, LanguageModelConfig)
    return rows * config.context_length * config.embedding_dim // tensor * _itemsize(config.dtype)


def _itemsize(dtype: str) -> int:
    return jnp.dtype(dtype).itemsize
