"""The task `plan`, and the files that it writes."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xlstm_hydra._hooks import hooks
from xlstm_hydra._printable import printable_lines
from xlstm_hydra._table import table
from xlstm_hydra.configs import PlanTaskConfig, RunConfig, resolve_classes
from xlstm_hydra.configs.device import DEFAULT_DEVICE
from xlstm_hydra.devices import known_devices, no_accelerator
from xlstm_hydra.parallel import Placement, split_with
from xlstm_hydra.runs import replace_file

from ._changes import Change, changes_that_fit
from ._compiled import compare, compile_step
from ._plan import Plan, PlanError, make_plan
from ._report import changes_report, report, search_report, summary, verdict
from ._search import FEW, Search, search
from ._time import step_traffic

FORMAT, VERSION = "xlstm_hydra_plan", 1

PLAN_FILE, SEARCH_FILE = "plan.json", "search.json"
"""What a run folder keeps: all of a plan, and all layouts of a search."""


def to_dict(plan: Plan, changes: Sequence[Change] = ()) -> dict[str, Any]:
    """All of a plan as values that JSON has. Sizes are in bytes, times in seconds.

    Args:
        plan: the plan.
        changes: changes with which it fits.
    """
    config = plan.run.model.model_config
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
        "communication": list(_exchanges(plan)),
        "bubble": plan.bubble,
        "time": _time(plan),
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


def _exchanges(plan: Plan) -> Iterator[dict[str, Any]]:
    for row in step_traffic(plan.counts, plan.sizes, plan.across_hosts, plan.device):
        yield asdict(row) | {"axes": list(row.axes)}


def _time(plan: Plan) -> dict[str, Any] | None:
    time = plan.time
    if time is None:
        return None
    own = {"compute": time.compute, "memory": time.memory, "network": dict(time.network)}
    return own | {"seconds": time.seconds, "bound_by": time.bound_by, "tokens_per_second": plan.tokens_per_second}


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
