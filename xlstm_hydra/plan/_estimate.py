"""Estimate memory, operations and step time of many layouts from a few traced programs.

Programs are traced for each choice of `parallel.remat`, with and without tensor parallelism, for the smallest and the
largest number of rows (examples) per device. The costs of other layouts follow from the structure of a step:

- Operations and saved activations of a device grow linearly with its rows.
- Tensor parallelism divides both, except where the residual stream is gathered.
- FSDP and data parallelism change only the shards of parameters, gradients and optimizer state (`shard_parameter`) and
  the mesh axes over which gradients are summed. The size of gathered parameters does not change.
- Gradient accumulation repeats everything except the sum of the gradients over devices, and keeps a second set of
  gradients.
- In a pipeline of S stages and M microbatches, a stage computes its share of the blocks in each of M + S - 1 ticks, on
  the rows of one microbatch. Outside the blocks, it computes its share of the rows.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from xlstm_hydra.configs import DeviceConfig, RunConfig
from xlstm_hydra.configs.language_model import LanguageModelConfig
from xlstm_hydra.parallel import Parameter, Placement, shard_parameter

from ._counts import Counts, Exchange
from ._memory import Memory
from ._plan import Estimate, Plan, axes_across, step_time
from ._probe import PHASES, Fit, Numbers, probe, probe_of

_KINDS = ("activations", "gathered", "logits", "working")
"""Fields of `Memory` that are estimated for each phase of a step, besides gradients."""


@dataclass(frozen=True)
class _Shape:
    """Mesh axis sizes of a layout, and how it splits the batch."""

    data: int
    fsdp: int
    stages: int
    tensor: int
    parts: int
    microbatches: int
    rows: int
    """Rows per device in one gradient accumulation step."""

    @property
    def ticks(self) -> int:
        return self.microbatches + self.stages - 1

    @property
    def block_rows(self) -> int:
        """Rows that a block processes in one pipeline tick."""
        return self.rows // self.microbatches

    @property
    def outer_rows(self) -> int:
        """Rows per device outside the blocks."""
        return self.rows // self.stages


class LayoutEstimator:
    """Estimates the costs of runs that differ only in their layout."""

    def __init__(
        self,
        runs: Sequence[RunConfig],
        num_devices: int,
        device: DeviceConfig,
        parameters: Sequence[Parameter],
        known: Plan | None = None,
    ) -> None:
        """Choose the sizes for which programs are traced. Each program is traced when it is first needed.

        Args:
            runs: the runs to estimate.
            num_devices: number of devices.
            device: properties of each device.
            parameters: parameters of the model.
            known: plan of one of the runs, used instead of a traced program if possible.
        """
        self.num_devices, self.device, self.parameters = num_devices, device, parameters
        shapes = [self._shape(run) for run in runs]
        rows = {shape.block_rows for shape in shapes} | {shape.outer_rows for shape in shapes}
        # A single row is not representative: some of its arrays are small enough to be computed twice.
        self.rows = sorted({min(max(min(rows), 2), max(rows)), max(rows)})
        widths = sorted({shape.tensor for shape in shapes if shape.tensor > 1})
        self.widths = sorted({*widths[:1], *widths[-1:]})
        sharded = (run.parallel for run, shape in zip(runs, shapes, strict=True) if shape.fsdp > 1)
        self.sharded = next(sharded, None)
        self.traced = 0
        self.optimizer_share = 0.0 if known is None else known.memory.optimizer / known.memory.parameters
        self._fits: dict[Any, tuple[Fit, Mapping[str, str]]] = {}
        self._placements: dict[Any, tuple[Placement, ...]] = {}
        self._known: dict[Any, tuple[Numbers, Mapping[str, str]]] = {}
        if known is not None:
            self._learn(known)

    def estimate(self, run: RunConfig) -> Estimate:
        """Return the estimated memory, counts and step time of a run."""
        sizes, shape = run.parallel.axis_sizes(self.num_devices), self._shape(run)
        counts = self._counts(run, shape, sizes)
        across = axes_across(run, sizes, self.device.devices_per_host)
        time = step_time(counts, sizes, across, self.device) if self.device.has_speeds else None
        return Estimate(run, sizes, self._memory(run, shape), counts, time)

    def on(self, num_devices: int) -> LayoutEstimator:
        """Return a copy of the estimator for another number of devices."""
        other = copy.copy(self)
        other.num_devices, other._placements = num_devices, {}
        return other

    def state_bytes(self, run: RunConfig) -> int:
        """Return the size in bytes of the parameters and optimizer state on each device."""
        parameters = sum(placement.bytes_per_device for placement in self.placements(run))
        return round(parameters * (1 + self.optimizer_share))

    def placements(self, run: RunConfig) -> tuple[Placement, ...]:
        """Return the placements of all parameters in the layout of a run."""
        sizes = run.parallel.axis_sizes(self.num_devices)
        key = tuple(sizes.values())
        if key not in self._placements:
            self._placements[key] = tuple(shard_parameter(each, run.parallel, sizes) for each in self.parameters)
        return self._placements[key]

    def _shape(self, run: RunConfig) -> _Shape:
        data, fsdp, stages, tensor = run.parallel.axis_sizes(self.num_devices).values()
        parts = run.trainer.gradient_accumulate_steps
        rows = run.trainer.batch_size // (data * fsdp * parts)
        return _Shape(data, fsdp, stages, tensor, parts, run.trainer.microbatches(data, fsdp, stages), rows)

    def _fit(self, run: RunConfig, tensor: int) -> tuple[Fit, Mapping[str, str]]:
        """Return the costs of the run as a function of its sizes, and a description of the memory peak of each
        phase."""
        remat, is_split = tuple(run.parallel.remat), tensor > 1
        if (remat, is_split) not in self._fits:
            widths, rows = self.widths if is_split else [1], self.rows
            points = [(widths[0], number) for number in rows] + [(width, rows[-1]) for width in widths[1:]]
            probes = [self._probe(run, *point) for point in points]
            self._fits[remat, is_split] = Fit([numbers for numbers, _ in probes], rows, widths), probes[-1][1]
        return self._fits[remat, is_split]

    def _probe(self, run: RunConfig, tensor: int, rows: int) -> tuple[Numbers, Mapping[str, str]]:
        if (known := self._known.get((tuple(run.parallel.remat), tensor, rows))) is not None:
            return known
        self.traced += 1
        return probe(run, tensor, rows, self.sharded, self.parameters)

    def _learn(self, plan: Plan) -> None:
        """Use a plan instead of a traced program if it has no pipeline and no gradient accumulation."""
        shape = self._shape(plan.run)
        if shape.parts * shape.stages == 1 and (shape.fsdp > 1 or self.sharded is None):
            self._known[tuple(plan.run.parallel.remat), shape.tensor, shape.rows] = probe_of(plan, shape.rows)

    def _counts(self, run: RunConfig, shape: _Shape, sizes: Mapping[str, int]) -> Counts:
        fit, _ = self._fit(run, shape.tensor)
        numbers = {"outside": fit.at(shape.outer_rows, shape.tensor)}
        numbers["forward"] = numbers["backward"] = fit.at(shape.block_rows, shape.tensor)
        gathers, total = ("all-gather", (run.parallel.fsdp_axis_name,)), defaultdict[Any, float](float)
        for part in PHASES:
            times = shape.parts * _times(part, shape, run.trainer.pipeline_remat)
            # The forward pass gathers parameters once, before the first tick, unless `pipeline_remat` is set.
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
            other_flops=total["other_flops",],
            transcendentals=total["transcendentals",],
            traffic=total["traffic",] + self._added_traffic(run, shape) - self._unshared_traffic(run, total, shape),
            exchanges=tuple(exchanges),
        )

    def _part_exchanges(self, run: RunConfig, total: Numbers, sizes: Mapping[str, int]) -> Iterator[Exchange]:
        """Yield the collectives of all gradient accumulation steps, except the sums of gradients over devices."""
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

    def _added_traffic(self, run: RunConfig, shape: _Shape) -> float:
        """Return the additional memory traffic of gradient accumulation and pipeline ticks in bytes. A tick reads and
        writes the gradients of the stage's parameters and, in both passes, the rows that contain its microbatch."""
        gradients = sum(placement.bytes_per_device for placement in self.placements(run))
        added = 3.0 * gradients * (shape.parts - 1)
        if shape.stages > 1:
            per_tick = 4 * self._stage_bytes(run) + 4.5 * _stream_bytes(run, shape.rows, shape.tensor)
            added += per_tick * shape.ticks * shape.parts
        return added

    def _unshared_traffic(self, run: RunConfig, total: Numbers, shape: _Shape) -> float:
        """Return the memory traffic in bytes that FSDP collectives cause in the traced programs, over two devices, but
        not in the run."""
        if self.sharded is None:
            return 0.0
        axes = (run.parallel.fsdp_axis_name,)
        exchanged = sum(size for (kind, *key), size in total.items() if kind == "bytes" and key[1] == axes)
        return exchanged * (1.5 if shape.fsdp == 1 else 1 / 2 - 1 / shape.fsdp)

    def _gradient_sums(self, run: RunConfig, sizes: Mapping[str, int]) -> Iterator[Exchange]:
        """Yield the all-reduces of gradients over devices that hold the same parameters."""
        names = run.parallel.axis_names()[:3]
        for placement in self.placements(run):
            if axes := tuple(name for name in names if sizes[name] > 1 and name not in placement.spec):
                yield Exchange("all-reduce", axes, placement.parameter.dtype, placement.bytes_per_device, 1)

    def _memory(self, run: RunConfig, shape: _Shape) -> Memory:
        fit, words = self._fit(run, shape.tensor)
        placements = self.placements(run)
        parameters = sum(placement.bytes_per_device for placement in placements)
        shares = {key[1]: value for key, value in fit.at(shape.rows, shape.tensor).items() if key[0] == "share"}
        summed = sum(exchange.bytes for exchange in self._gradient_sums(run, run.parallel.axis_sizes(self.num_devices)))
        update = dict.fromkeys(_KINDS, 0.0) | {"working": max(parameters * shares["update"], summed)}
        moments = {"update": update | {"gradients": parameters}}
        for phase in PHASES:
            if phase in shares:
                kinds = self._phase_memory(run, fit, shape, phase)
                kinds["gradients"] = parameters * (shares[phase] + (shape.parts > 1))
                if shape.stages > 1 and phase == "backward":  # the gradients of one tick and their sum so far
                    kinds["gradients"] += self._stage_bytes(run)
                moments[phase] = kinds
        phase = max(moments, key=lambda phase: sum(moments[phase].values()))
        return Memory(
            parameters=parameters,
            optimizer=round(parameters * shares["optimizer"]),
            batch=round(shares["batch"] * shape.rows * shape.parts),
            moment=words.get(phase, "the optimizer's update"),
            **{kind: max(round(value), 0) for kind, value in moments[phase].items()},
        )

    def _phase_memory(self, run: RunConfig, fit: Fit, shape: _Shape, phase: str) -> dict[str, float]:
        """Return the memory of a phase in bytes by kind, excluding gradients."""
        rows = shape.outer_rows if phase == "outside" else shape.block_rows
        here = fit.at(rows, shape.tensor)
        kinds = {kind: here["memory", phase, kind] for kind in _KINDS}
        if shape.fsdp == 1:
            kinds["gathered"] = 0.0
        if shape.stages > 1:
            self._add_pipeline(kinds, run, fit, shape, phase)
        return kinds

    def _add_pipeline(self, kinds: dict[str, float], run: RunConfig, fit: Fit, shape: _Shape, phase: str) -> None:
        """Add the memory of a pipeline: activations saved in every tick, rows sent between stages, and the gathered
        parameters of the stage."""
        none, kept = fit.at(0, shape.tensor), fit.at(shape.block_rows, shape.tensor)
        weights = none["memory", "forward", "activations"] / shape.stages
        tick = kept["memory", "forward", "activations"] / shape.stages - weights
        is_recomputed = run.trainer.pipeline_remat  # only the input of the stage is saved in each tick
        stream, whole = (_stream_bytes(run, rows, shape.tensor) for rows in (shape.block_rows, shape.rows))
        stacked = (stream if is_recomputed else tick) * shape.ticks
        if phase == "outside":
            kinds["activations"] -= fit.at(shape.outer_rows, shape.tensor)["memory", "forward", "activations"]
            kinds["working"] += stream + whole
        else:
            kinds["activations"] = 0.0
            kinds["working"] += 3 * stream * shape.ticks + stream
            if not run.parallel.remat or phase == "forward" or is_recomputed:
                kinds["working"] += tick
        if phase == "forward":
            kinds["working"] += self._whole_stage_bytes(run)
        kinds["activations"] += stacked + weights

    def _stage_bytes(self, run: RunConfig) -> int:
        """Return the size in bytes of this device's shards of its stage's parameters."""
        pipeline = run.parallel.pipeline_axis_name
        return sum(placement.bytes_per_device for placement in self.placements(run) if pipeline in placement.spec)

    def _whole_stage_bytes(self, run: RunConfig) -> int:
        """Return the size in bytes of a stage's parameters, gathered over FSDP and in the compute dtype."""
        config, pipeline = run.model.model_config, run.parallel.pipeline_axis_name
        assert isinstance(config, LanguageModelConfig)
        fsdp, size = run.parallel.fsdp_axis_name, run.parallel.axis_sizes(self.num_devices)
        return sum(
            placement.bytes_per_device
            * (size[fsdp] if fsdp in placement.spec else 1)
            * _itemsize(config.dtype)
            // placement.parameter.itemsize
            for placement in self.placements(run)
            if pipeline in placement.spec
        )


def _times(part: str, shape: _Shape, stage_remat: bool) -> float:
    """Return how many times a device executes a phase per gradient accumulation step. A pipeline tick counts as a
    fraction of an execution, because a stage executes only its share of the blocks."""
    if part == "outside":
        return 1
    return shape.ticks / shape.stages * (2 if part == "forward" and stage_remat else 1)


def _stage_exchanges(run: RunConfig, shape: _Shape) -> Iterator[Exchange]:
    """Yield the collectives between pipeline stages: in each tick, rows forward and their gradients backward; after the
    last tick, each stage's share of the rows of the last stage."""
    name, dtype = (run.parallel.pipeline_axis_name,), run.model.model_config.get("dtype")  # pyright: ignore[reportOptionalMemberAccess]
    tick, whole = (_stream_bytes(run, rows, shape.tensor) for rows in (shape.block_rows, shape.rows))
    yield Exchange("collective-permute", name, dtype, tick, 2 * shape.ticks * shape.parts)
    yield Exchange("reduce-scatter", name, dtype, whole, shape.parts)
    yield Exchange("all-gather", name, dtype, whole, shape.parts)


def _stream_bytes(run: RunConfig, rows: int, tensor: int) -> int:
    """Return the size in bytes of a device's shard of the residual stream."""
    config = run.model.model_config
    assert isinstance(config, LanguageModelConfig)
    return rows * config.context_length * config.embedding_dim // tensor * _itemsize(config.dtype)


def _itemsize(dtype: str) -> int:
    return jnp.dtype(dtype).itemsize
