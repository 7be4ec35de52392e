"""The task `plan`, and the files that it writes.

What the compiler says of a training step, to stand beside the plan.

The real step is lowered and compiled ahead of time for simulated CPU devices; nothing runs, and no array is made. XLA
then tells what each device holds at the same time. Collectives, operations and gradients are read from the lowered
program, before XLA changes types and merges what is computed twice: what it makes of them on CPU is not what it makes
on other devices. The optimizer's own exchanges (a few numbers, such as the norm of the gradients) are made while
compiling and are in neither count.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from xlstm_hydra._hooks import hooks
from xlstm_hydra._printable import printable_lines
from xlstm_hydra._table import table
from xlstm_hydra.configs import PlanTaskConfig, RunConfig, SubModelConfig, resolve_classes
from xlstm_hydra.configs.device import DEFAULT_DEVICE
from xlstm_hydra.devices import known_devices, no_accelerator, simulate_devices
from xlstm_hydra.parallel import (
    Collective,
    Placement,
    build_mesh,
    list_collectives,
    list_local_results,
    split_with,
)
from xlstm_hydra.problems import ConfigError
from xlstm_hydra.runs import replace_file
from xlstm_hydra.step import Program, build_program

from ._changes import Change, changes_that_fit
from ._counts import Counts, Exchange
from ._plan import Plan, PlanError, make_plan, step_traffic
from ._report import changes_report, report, search_report, summary, verdict
from ._search import FEW, Search, search

FORMAT, VERSION = "xlstm_hydra_plan", 1

PLAN_FILE, SEARCH_FILE = "plan.json", "search.json"
"""What a run folder keeps: all of a plan, and all layouts of a search."""


def to_dict(plan: Plan, changes: Sequence[Change] = ()) -> dict[str, Any]:
    """All of a plan as values that JSON has. Sizes are in bytes, times in seconds.

    Args:
        plan: the plan.
        changes: changes with which it fits.
    """
    config, step = plan.run.model.model_config, plan.time
    return {
        "format": FORMAT,
        "version": VERSION,
        "fits": plan.fits,
        "headroom": plan.headroom,
        "num_devices": plan.num_devices,
        "num_hosts": plan.num_hosts,
        "device": plan.device.to_dict() | {"memory_bytes": plan.device.memory_bytes},
        "mesh": dict(plan.sizes),
        "across_hosts": dict(plan.across_hosts),
        "model": {"model_class": plan.run.model.class_path(), **({} if config is None else config.to_dict())},
        "parallel": plan.run.parallel.to_dict(),
        "optimizer": plan.run.optimizer.to_dict(),
        "trainer": plan.run.trainer.to_dict(),
        "tokens": plan.tokens,
        "parameters": {
            "elements": plan.num_parameters,
            "bytes": sum(math.prod(each.parameter.shape) * each.parameter.itemsize for each in plan.placements),
            "bytes_per_device": sum(each.bytes_per_device for each in plan.placements),
            "arrays": [_array(plan, placement) for placement in plan.placements],
        },
        "memory": asdict(plan.memory) | {"total": plan.memory.total},
        "work": {
            "product_flops": dict(plan.counts.product_flops),
            "other_flops": plan.counts.other_flops,
            "transcendentals": plan.counts.transcendentals,
            "traffic_bytes": plan.counts.traffic,
            "open_loops": plan.counts.open_loops,
            "unknown_primitives": list(plan.counts.unknown),
        },
        "communication": [
            asdict(row) | {"axes": list(row.axes)}
            for row in step_traffic(plan.counts, plan.sizes, plan.across_hosts, plan.device)
        ],
        "bubble": plan.bubble,
        "time": None
        if step is None
        else asdict(step)
        | {"seconds": step.seconds, "bound_by": step.bound_by, "tokens_per_second": plan.tokens_per_second},
        "changes": [
            {"overrides": list(change.overrides), "num_devices": change.num_devices, "memory": change.needed}
            for change in changes
        ],
    }


def missing(reason: str) -> dict[str, Any]:
    """What a run folder keeps in place of a plan if none can be made."""
    return {"format": FORMAT, "version": VERSION, "no_plan": reason}


def _array(plan: Plan, placement: Placement) -> dict[str, Any]:
    parameter = placement.parameter
    whole = placement.fsdp_axis is None
    return {
        "path": parameter.path,
        "shape": list(parameter.shape),
        "dtype": parameter.dtype,
        "spec": list(placement.spec),
        "shards": placement.shards,
        "bytes_per_device": placement.bytes_per_device,
        "whole_because": placement.whole_because,
        "split_with": split_with(placement, plan.run.parallel, plan.sizes) if whole else None,
    }


log = logging.getLogger("xlstm_hydra")


def plan(run: RunConfig, folder: Path | str = ".", overrides: list[str] | None = None) -> float:
    """Plan a run, print the plan, and write it into `folder`.

    Returns:
        The lower bound of the time of a step in seconds, for sweepers that minimise it: 0 where the device's speeds are
        not known, infinite where the run does not fit. Of a search, that of the best layout.

    Raises:
        ConfigError: the layout does not fit the devices or the model.
        PlanError: the model cannot be traced, or this JAX makes programs that cannot be read.
    """
    del overrides
    folder, task = Path(folder), run.task
    assert isinstance(task, PlanTaskConfig)

    run = dataclasses.replace(run, model=resolve_classes(run.model))
    device = run.device or known_devices()[DEFAULT_DEVICE]
    number = run.known_devices() or device.devices_per_host
    with no_accelerator():
        is_searched = task.search or run.parallel.is_open()
        layouts = search(run, number, device, best=10 if task.search else FEW) if is_searched else None
        found = make_plan(run if layouts is None else _laid_out(layouts), number, device)
        changes = _changes(found)
    content = to_dict(found, changes)
    is_short = task.search or hooks.in_sweep()
    parts: list[Iterable[str]] = [
        _note(found),
        summary(found) if is_short else [report(found, task.parameters), "", verdict(found)],
    ]
    parts.append(changes_report(changes))
    if layouts is not None:
        _write(folder / SEARCH_FILE, layouts.to_dict())
    if layouts is not None and task.search:
        parts.append(["", search_report(layouts)])
    print(printable_lines("\n".join(line for part in parts for line in part)), flush=True)
    _write(folder / PLAN_FILE, content)
    if task.compile:
        _write(folder / PLAN_FILE, content | {"compiled": _compiled(found)})
    if not hooks.in_sweep():
        print(f"\nwritten: {folder / PLAN_FILE}{f' and {SEARCH_FILE}' if layouts is not None else ''}")
    best = layouts.best[0] if layouts is not None and layouts.best else found
    return math.inf if not best.fits else 0.0 if best.time is None else best.time.seconds


def _changes(found: Plan) -> tuple[Change, ...]:
    """The changes with which a run would fit that does not."""
    try:
        return () if found.fits else changes_that_fit(found)
    except PlanError as error:
        log.warning("cannot suggest changes that would make the run fit: %s", error.reason)
        return ()


def _laid_out(layouts: Search) -> RunConfig:
    """The run with a layout. With `parallel=auto` it is the one that training would choose; where none fits, the one
    that needs the least memory."""
    if not layouts.run.parallel.is_open():
        return layouts.run
    estimated = [*layouts.fitting, *layouts.dropped]
    if estimated and not layouts.best:
        print("parallel=auto: no layout fits, and this is the one that needs the least memory\n")
        return min(estimated, key=lambda one: one.memory.total).run
    chosen = layouts.chosen
    print(f"parallel=auto: {layouts.why()}\n")
    return chosen


def _compiled(found: Plan) -> list[dict[str, Any]]:
    """Print the plan beside what the compiler says."""
    compared = list(compare(found, compile_step(found.run, found.num_devices)))
    head = (f"compiled for {found.num_devices} simulated devices", "", "plan", "compiler", "ratio", "")
    rows = [
        (row.what, row.unit, f"{row.plan:,.0f}", f"{row.compiler:,.0f}", f"{row.ratio:.4g}", row.note)
        for row in compared
    ]
    print("\n".join(["", *table([head, *rows], left=(0, 1, 5))]))
    return [dataclasses.asdict(row) for row in compared]


def _note(found: Plan) -> list[str]:
    """Of what devices the figures are, where none were chosen."""
    task = found.run.task
    assert isinstance(task, PlanTaskConfig)
    if task.device is not None or hooks.chooses_device():
        return []
    return [f"no device is chosen, so these are {found.device.name}; task.device=... takes others", ""]


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps(content, indent=1, allow_nan=False) + "\n")


# ---- the compiler

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
