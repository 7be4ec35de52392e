"""Whether the points of a sweep fit the devices that their jobs will have, told before the first one starts."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from xlstm_hydra.configs import DeviceConfig, RunConfig, TrainTaskConfig
from xlstm_hydra.problems import ConfigError, Problem

log = logging.getLogger(__name__)

HERE = ("BasicLauncher", "JoblibLauncher", "LocalLauncher", "RayLauncher")
"""Classes of launchers whose jobs run on this machine."""


MOST_WAYS_OUT = 3
"""So many plans that do not fit are told with what would fit."""


class _Devices(NamedTuple):
    """What the job of a point has."""

    number: int
    device: DeviceConfig


def is_planned(run: RunConfig) -> bool:
    """Whether a run is refused where it does not fit."""
    return isinstance(run.task, TrainTaskConfig) and not run.trainer.ignore_plan


def plan_points(runs: Mapping[int, RunConfig], launcher: DictConfig) -> dict[int, list[Problem]]:
    """Plan the runs of points, those with the same plan once.

    Args:
        runs: by the numbers of the points.
        launcher: the config of what will run them.

    Returns:
        What is wrong with those that cannot run, by their numbers.
    """
    if not runs:
        return {}
    from xlstm_hydra.plan import PlanError, planning
    from xlstm_hydra.step import plan_key  # JAX wakes up here

    find = _Finder(launcher)
    devices = {number: found for number, run in runs.items() if (found := find.devices(run)) is not None}
    _tell_unplanned(runs, devices)
    keys = {number: (plan_key(runs[number]), repr(found)) for number, found in devices.items()}
    if (plans := len(set(keys.values()))) > 1:
        log.info("planning %d points, which have %d different plans", len(keys), plans)
    problems: dict[Any, list[Problem]] = {}
    failures: dict[Any, str] = {}
    for number, key in keys.items():
        if key not in problems:
            ways_out = sum(map(bool, problems.values())) < MOST_WAYS_OUT
            try:
                with planning():  # nor does a failure of the user's model in it stop the sweep
                    problems[key] = _problems(runs[number], devices[number], ways_out)
            except PlanError as error:
                problems[key], failures[key] = [], error.reason
    _report_failures({number: failures[key] for number, key in keys.items() if key in failures})
    return {number: problems[key] for number, key in keys.items() if problems[key]}


def _report_failures(reasons: Mapping[int, str]) -> None:
    """Warn of jobs that are launched without a plan, once for each reason."""
    for reason in dict.fromkeys(reasons.values()):
        numbers = [number for number, other in reasons.items() if other == reason]
        jobs = f"job{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"
        log.warning("%s cannot be planned, and will be launched without a plan: %s", jobs, reason)


def _tell_unplanned(runs: Mapping[int, RunConfig], devices: Mapping[int, _Devices]) -> None:
    if left := len(runs) - len(devices):
        which = "the points are" if left == len(runs) else f"{left} of {len(runs)} points are"
        fix = "device=h100_80gb (or another) says what the cluster has, hydra.launcher.gpus_per_node how many of them"
        log.info("%s not planned: the devices of their jobs are not known here; %s", which, fix)


def _problems(run: RunConfig, devices: _Devices, ways_out: bool) -> list[Problem]:
    """Why a run cannot be started on those devices."""
    from xlstm_hydra.configs import resolve_classes
    from xlstm_hydra.devices import no_accelerator
    from xlstm_hydra.plan import FEW, make_plan, search, too_large

    number, device = devices
    try:
        run = replace(run, model=resolve_classes(run.model))
        if problems := [*run.device_rules(number), *run.platform_rules(device.platform)]:
            return problems
        with no_accelerator():
            if run.parallel.is_open():
                search(run, number, device, best=FEW).chosen  # noqa: B018
                return []
            plan = make_plan(run, number, device)
            return [] if plan.fits else [too_large(plan, ways_out)]
    except ConfigError as error:
        return error.problems


# ---- devices


class _Finder:
    """Says what devices jobs have, for those that ask for the same once."""

    def __init__(self, launcher: DictConfig) -> None:
        self.is_here = str(launcher._target_).rpartition(".")[2] in HERE
        self.requested, self.per_job = _requested(launcher), OmegaConf.select(launcher, "gpus_per_job") or None
        self.known: dict[Any, _Devices | None] = {}

    def devices(self, run: RunConfig) -> _Devices | None:
        """What the job of a run has; None where that is not known here."""
        key = (run.trainer.simulated_devices, repr(run.device), None if self.is_here else run.known_devices())
        if key not in self.known:
            self.known[key] = self._here(run) if self.is_here else self._on_cluster(run)
        return self.known[key]

    def _here(self, run: RunConfig) -> _Devices:
        from xlstm_hydra.devices import device_of

        from ._here import devices_here

        found = devices_here(run.trainer.simulated_devices)
        if self.per_job is not None and found.platform == "gpu":
            found = replace(found, number=self.per_job, per_host=self.per_job)
        return _Devices(found.number, device_of(found, run.device))

    def _on_cluster(self, run: RunConfig) -> _Devices | None:
        number = self.requested or run.known_devices()
        if run.device is None or run.trainer.simulated_devices is not None or number is None:
            return None
        return _Devices(number, run.device)


def _requested(launcher: DictConfig) -> int | None:
    """GPUs that a launcher asks a cluster for, for each job."""
    asked: Any = {key: OmegaConf.select(launcher, key) for key in ("nodes", "tasks_per_node", "gpus_per_node", "gres")}
    nodes, tasks = asked["nodes"] or 1, asked["tasks_per_node"] or 1
    of_task = OmegaConf.select(launcher, "gpus_per_task") or 0
    named = re.search(r"gpu(?::\w+)?:(\d+)", asked["gres"] or "")
    on_node = asked["gpus_per_node"] or tasks * of_task or (int(named[1]) if named else 0)
    return nodes * on_node or None
