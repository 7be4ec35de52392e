"""The task `plan`: say what training would cost on devices that need not be there."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from jax.extend.backend import clear_backends

from xlstm_hydra.configs import PlanTaskConfig, RunConfig
from xlstm_hydra.hydra import load_device, resolve_classes
from xlstm_hydra.plan import Plan, make_plan, report, summary, to_dict, verdict

PLAN_FILE = "plan.json"
"""All of a plan, in the run folder."""


def plan(run: RunConfig, folder: Path | str = ".", overrides: list[str] | None = None) -> float:
    """Plan a run, print the plan, and write it into `folder`.

    Returns:
        The lower bound of the time of a step in seconds, for sweepers that minimise it: 0 where the device's speeds are
        not known, infinite where the run does not fit.

    Raises:
        ConfigError: the layout does not fit the devices or the model.
    """
    del overrides
    run = dataclasses.replace(run, model=resolve_classes(run.model))
    with _no_accelerator():
        found = _plan(run)
    file = Path(folder) / PLAN_FILE
    file.write_text(json.dumps(to_dict(found), indent=1) + "\n", encoding="utf-8")
    _tell(found, file)
    if not found.fits:
        return math.inf
    return 0.0 if found.time is None else found.time.seconds


def _plan(run: RunConfig) -> Plan:
    device, number = run.device or load_device(), run.known_devices()
    return make_plan(run, device.devices_per_host if number is None else number, device)


@contextmanager
def _no_accelerator() -> Iterator[None]:
    """Keep JAX, which makes a few constants while it traces, from taking the memory of a GPU for them."""
    before = jax.config.values["jax_platforms"]
    if before == "cpu":
        yield
        return
    jax.config.update("jax_platforms", "cpu")
    try:
        yield
    finally:
        jax.config.update("jax_platforms", before)
        clear_backends()  # another job of the same sweep may train


def _tell(found: Plan, file: Path) -> None:
    """Print it all, or where it is one plan of a sweep, a few lines."""
    task = found.run.task
    assert isinstance(task, PlanTaskConfig)
    job = HydraConfig.get() if HydraConfig.initialized() else None
    if job is not None and job.mode == RunMode.MULTIRUN:
        print("\n".join(summary(found)))
        return
    if job is not None and task.device is None and job.runtime.choices.get("device") is None:
        print(f"no device is chosen, so these are {found.device.name}; task.device=... takes others\n")
    print(report(found, task.parameters))
    print(f"\n{verdict(found)}\n\nwritten: {file}")
