"""The task `plan`, the files that it writes, and the comparison of a plan with the compiler's figures.

With `task.compile=true`, the real training step is lowered and compiled ahead of time for simulated CPU devices. The
step does not run, and no array is allocated. Memory is what XLA reports for the compiled step. Collectives, operations
and gradients are read from the lowered program, because XLA's CPU compiler then changes dtypes and merges duplicates,
unlike on other devices. The optimizer's own collectives (a few scalars, such as the gradient norm) are added during
compilation, so neither side counts them.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax

from xlstm_hydra._hooks import hooks
from xlstm_hydra._logging import log
from xlstm_hydra._printable import printable_lines
from xlstm_hydra._status import status
from xlstm_hydra._table import fit_terminal, table
from xlstm_hydra.configs import PlanTaskConfig, RunConfig, SubModelConfig, resolve_classes
from xlstm_hydra.configs.device import DEFAULT_DEVICE
from xlstm_hydra.devices import known_devices, no_accelerator, simulate_devices
from xlstm_hydra.parallel import Collective, Placement, build_mesh, list_collectives, list_local_results, split_with
from xlstm_hydra.problems import ConfigError
from xlstm_hydra.runs import replace_file
from xlstm_hydra.step import Program, build_program

from ._changes import Change, changes_that_fit
from ._counts import Counts, Exchange
from ._plan import Plan, PlanError, make_plan, step_traffic
from ._report import changes_report, report, search_report, summary, verdict
from ._search import FEW, Search, search

FORMAT, VERSION = "xlstm_hydra_plan", 1

PLAN_FILE, PLAN_TEXT_FILE, SEARCH_FILE = "plan.json", "plan.txt", "search.json"
"""Files in the run folder: the complete plan, the plan as text, and all layouts of a search."""


def to_dict(plan: Plan, changes: Sequence[Change] = ()) -> dict[str, Any]:
    """Return the content of `plan.json`. Sizes are in bytes, times in seconds.

    Args:
        plan: the plan.
        changes: changes that would make the run fit.
    """
    config, counts, step = plan.run.model.model_config, plan.counts, plan.time
    traffic = step_traffic(counts, plan.sizes, plan.across_hosts, plan.device)
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
            "product_flops": dict(counts.product_flops),
            "other_flops": counts.other_flops,
            "transcendentals": counts.transcendentals,
            "traffic_bytes": counts.traffic,
            "open_loops": counts.open_loops,
            "unknown_primitives": list(counts.unknown),
        },
        "communication": [asdict(row) | {"axes": list(row.axes)} for row in traffic],
        "bubble": plan.bubble,
        "time": step
        and asdict(step)
        | {"seconds": step.seconds, "bound_by": step.bound_by, "tokens_per_second": plan.tokens_per_second},
        "changes": [
            {"overrides": list(change.overrides), "num_devices": change.num_devices, "memory": change.needed}
            for change in changes
        ],
    }


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


def missing(reason: str) -> dict[str, Any]:
    """Return the content of `plan.json` when no plan can be made."""
    return {"format": FORMAT, "version": VERSION, "no_plan": reason}


def plan(run: RunConfig, folder: Path | str = ".", overrides: list[str] | None = None) -> float:
    """Plan a run, print the plan, and write it to `folder`.

    Returns:
        The lower bound of the step time in seconds, as an objective for sweepers: 0 if the device's speeds are not
        known, infinity if the run does not fit. After a search, the bound of the best layout.

    Raises:
        ConfigError: the layout does not match the number of devices, the batch size or the model.
        PlanError: the model cannot be traced, or the traced program cannot be read with this JAX version.
    """
    del overrides
    folder, task = Path(folder), run.task
    assert isinstance(task, PlanTaskConfig)
    run = replace(run, model=resolve_classes(run.model))
    device = run.device or known_devices()[DEFAULT_DEVICE]
    number = run.known_devices() or device.devices_per_host
    is_searched = task.search or run.parallel.is_open()
    with no_accelerator():
        with status("searching for a layout", in_log=False):
            layouts = search(run, number, device, best=10 if task.search else FEW) if is_searched else None
        run = run if layouts is None else _laid_out(layouts)
        with status("planning the training step", in_log=False):
            found = make_plan(run, number, device)
            changes = _changes(found)
    is_short = task.search or hooks.in_sweep()
    lines = [] if task.device is not None or hooks.chooses_device() else [_DEFAULT_NOTE.format(found.device.name), ""]
    lines += summary(found) if is_short else [report(found, task.parameters), "", verdict(found)]
    lines += changes_report(changes)
    lines += ["", search_report(layouts)] if layouts is not None and task.search else []
    print(fit_terminal(printable_lines("\n".join(lines))), flush=True)
    if layouts is not None:
        _write(folder / SEARCH_FILE, layouts.to_dict())
    content = to_dict(found, changes)
    _write(folder / PLAN_FILE, content)
    if task.compile:
        _write(folder / PLAN_FILE, content | {"compiled": _compiled(found)})
    if not hooks.in_sweep():
        print(f"\nwritten: {folder / PLAN_FILE}{f' and {SEARCH_FILE}' if layouts is not None else ''}")
    best = layouts.best[0] if layouts is not None and layouts.best else found
    return math.inf if not best.fits else 0.0 if best.time is None else best.time.seconds


_DEFAULT_NOTE = "No device is chosen; the plan is for {}. Choose a device with task.device=NAME."


def _changes(found: Plan) -> tuple[Change, ...]:
    """Return changes that would make a run fit; empty if it already fits."""
    try:
        return () if found.fits else changes_that_fit(found)
    except PlanError as error:
        log.warning("cannot suggest changes that would make the run fit: %s", error.reason)
        return ()


def _laid_out(layouts: Search) -> RunConfig:
    """Return the run with a fixed layout. With `parallel=auto`, this is the layout that training would choose or, if
    none fits, the one that needs the least memory."""
    if not layouts.run.parallel.is_open():
        return layouts.run
    estimated = [*layouts.fitting, *layouts.dropped]
    if estimated and not layouts.best:
        print("parallel=auto: no layout fits; this is the plan of the layout that needs the least memory\n")
        return min(estimated, key=lambda one: one.memory.total).run
    chosen = layouts.chosen
    print(fit_terminal(f"parallel=auto: {layouts.why()}"), end="\n\n")
    return chosen


def _compiled(found: Plan) -> list[dict[str, Any]]:
    """Print the plan's figures next to the compiler's, and return them as JSON values."""
    with status("compiling the training step", in_log=False):
        compared = list(compare(found, compile_step(found.run, found.num_devices)))
    head = (f"compiled for {found.num_devices} simulated devices", "unit", "plan", "compiler", "ratio", "")
    rows = [(r.what, r.unit, f"{r.plan:,.0f}", f"{r.compiler:,.0f}", f"{r.ratio:.4g}", r.note) for r in compared]
    print(fit_terminal("\n".join(["", *table([head, *rows], left=(0, 1, 5))])))
    return [asdict(row) for row in compared]


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps(content, indent=1, allow_nan=False) + "\n")


# ---- the compiler

Kind = tuple[str, str, int, int]
"""Operation, NumPy dtype name, number of devices, and size in bytes of a collective."""


@dataclass(frozen=True)
class Compiled:
    """The compiler's figures for a training step on each device, returned by `compile_step`."""

    num_devices: int
    parameters: int
    """Bytes of the parameters."""
    gradients: int
    """Bytes of the gradients after they are summed over devices."""
    optimizer: int
    """Bytes of the training state other than the parameters, and of the hyperparameters."""
    batch: int
    """Bytes of the batch arrays that the step reads."""
    total: int
    """Peak bytes: arguments, temporary arrays, and results that do not reuse the memory of an argument."""
    flops_once: float
    """Operations of the loss and its gradients, with each loop body counted once."""
    collectives: tuple[Collective, ...]
    """Collectives of the whole step."""
    seconds: float
    """Time to lower and compile the step, in seconds."""


@dataclass(frozen=True)
class Comparison:
    """A figure of the plan, and the compiler's figure for the same quantity."""

    what: str
    unit: str
    """`bytes`, `operations` or `times`."""
    plan: float
    compiler: float
    note: str = ""
    """Reason why the two may differ."""

    @property
    def ratio(self) -> float:
        """The plan's figure divided by the compiler's."""
        return self.plan / self.compiler if self.compiler else 1.0 if not self.plan else math.inf


def compile_step(run: RunConfig, num_devices: int) -> Compiled:
    """Compile the training step of a run for simulated CPU devices. Its `model_class` must be a class.

    Raises:
        ConfigError: the layout does not match the number of devices or the model, or the model does not run on CPUs.
    """
    config = run.model.model_config
    if isinstance(config, SubModelConfig) and (problems := [*config.platform_rules("cpu")]):
        raise ConfigError(problem.at("model") for problem in problems)
    simulate_devices(num_devices)
    mesh = build_mesh(run.parallel, jax.devices()[:num_devices], run.distributed.device_order)
    return compile_program(build_program(run, mesh))


def compile_program(program: Program) -> Compiled:
    """Compile the training step of a program, and return the compiler's figures."""
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
    """Return the bytes of a tree of arrays on each device. Arrays that the step does not read have no sharding."""
    placed = jax.tree.leaves(shardings, is_leaf=lambda sharding: sharding is None)
    return sum(
        math.prod(sharding.shard_shape(array.shape)) * array.dtype.itemsize
        for array, sharding in zip(jax.tree.leaves(arrays), placed, strict=True)
        if sharding is not None
    )


def compare(plan: Plan, compiled: Compiled) -> Iterator[Comparison]:
    """Yield the plan's figures and the compiler's, in pairs."""
    held = sum(placement.bytes_per_device for placement in plan.placements)
    yield Comparison("parameters", "bytes", held, compiled.parameters)
    yield Comparison("gradients", "bytes", held, compiled.gradients)
    yield Comparison("optimizer state", "bytes", plan.memory.optimizer, compiled.optimizer)
    yield Comparison("batch", "bytes", plan.memory.batch, compiled.batch)
    types = widened_types(plan.counts)
    note = f"not comparable: on CPU, XLA computes {' and '.join(types)} in float32" if types else ""
    yield Comparison("all memory", "bytes", plan.memory.total, compiled.total, note)
    note = "loop bodies are counted once, as in XLA's cost analysis; the optimizer is excluded"
    yield Comparison("operations", "operations", plan.counts.flops_once, compiled.flops_once, note)
    planned, found = planned_collectives(plan.counts.exchanges, plan.sizes), lowered_collectives(compiled.collectives)
    for kind in sorted({kind[:3] for kind in planned | found}):
        what = "{} of {} over {} devices".format(*kind)
        planned_of, found_of = (
            [(size, times) for (*of, size), times in each.items() if tuple(of) == kind] for each in (planned, found)
        )
        yield Comparison(what, "times", sum(n for _, n in planned_of), sum(n for _, n in found_of))
        yield Comparison(what, "bytes", sum(size * n for size, n in planned_of), sum(size * n for size, n in found_of))


def widened_types(counts: Counts) -> list[str]:
    """Return the dtypes of matrix products and collectives that XLA widens to float32 on CPU."""
    types = {*counts.product_flops, *(each.dtype for each in counts.exchanges)}
    return sorted(types & {"bfloat16", "float16"})


def planned_collectives(exchanges: Iterable[Exchange], sizes: Mapping[str, int]) -> Counter[Kind]:
    """Count the planned collectives of a step by kind."""
    found = Counter[Kind]()
    for each in exchanges:
        devices = math.prod(sizes[axis] for axis in each.axes)
        found[each.operation, each.dtype, devices, each.bytes] += each.count
    return found


def lowered_collectives(collectives: Iterable[Collective]) -> Counter[Kind]:
    """Count the collectives in a lowered program by kind."""
    found = Counter[Kind]()
    for each in collectives:
        found[each.operation, _numpy_name(each.dtype), each.devices, each.bytes] += each.executions
    return found


def _numpy_name(dtype: str) -> str:
    """Return the NumPy name of an MLIR element type, such as float32 for f32."""
    kind = dtype.rstrip("0123456789")
    names = {"f": "float", "bf": "bfloat", "i": "int", "ui": "uint"}
    return "bool" if dtype == "i1" else names[kind] + dtype[len(kind) :]
