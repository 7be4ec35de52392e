"""The task `plan`: say what training would cost on devices that need not be there."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from xlstm_hydra._printable import printable_lines
from xlstm_hydra._table import table
from xlstm_hydra.configs import PlanTaskConfig, RunConfig, resolve_classes
from xlstm_hydra.devices import no_accelerator
from xlstm_hydra.hydra import load_device
from xlstm_hydra.plan import (
    FEW,
    PLAN_FILE,
    SEARCH_FILE,
    Change,
    Plan,
    PlanError,
    Search,
    changes_report,
    changes_that_fit,
    make_plan,
    report,
    search,
    search_report,
    summary,
    to_dict,
    verdict,
)
from xlstm_hydra.runs import replace_file

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
    device = run.device or load_device()
    number = run.known_devices() or device.devices_per_host
    with no_accelerator():
        is_searched = task.search or run.parallel.is_open()
        layouts = search(run, number, device, best=10 if task.search else FEW) if is_searched else None
        found = make_plan(run if layouts is None else _laid_out(layouts), number, device)
        changes = _changes(found)
    content = to_dict(found, changes)
    is_short = task.search or _is_sweep()
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
    if not _is_sweep():
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
    from xlstm_hydra.plan import compare, compile_step  # 2 s, for this alone

    compared = list(compare(found, compile_step(found.run, found.num_devices)))
    head = (f"compiled for {found.num_devices} simulated devices", "", "plan", "compiler", "ratio", "")
    rows = [
        (row.what, row.unit, f"{row.plan:,.0f}", f"{row.compiler:,.0f}", f"{row.ratio:.4g}", row.note)
        for row in compared
    ]
    print("\n".join(["", *table([head, *rows], left=(0, 1, 5))]))
    return [dataclasses.asdict(row) for row in compared]


def _is_sweep() -> bool:
    """Whether this is one of several plans, of which each is told in short."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _note(found: Plan) -> list[str]:
    """Of what devices the figures are, where none were chosen."""
    task = found.run.task
    assert isinstance(task, PlanTaskConfig)
    is_chosen = task.device is not None or not HydraConfig.initialized()
    if is_chosen or HydraConfig.get().runtime.choices.get("device") is not None:
        return []
    return [f"no device is chosen, so these are {found.device.name}; task.device=... takes others", ""]


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps(content, indent=1, allow_nan=False) + "\n")
