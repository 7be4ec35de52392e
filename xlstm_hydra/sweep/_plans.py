"""Plan the points of a sweep before any job starts, for the devices that the jobs will use, and compare the plans."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from xlstm_hydra._logging import log
from xlstm_hydra._printable import printable
from xlstm_hydra.configs import DeviceConfig, RunConfig, TrainTaskConfig
from xlstm_hydra.formats import parse
from xlstm_hydra.hydra import differing
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import open_new, replace_file

from ._jobs import job_folder
from ._outcomes import FAILED, INVALID, Outcome
from ._plots import PlanRow, plot_plans

if TYPE_CHECKING:
    from xlstm_hydra.devices import DetectedDevices

HERE = ("BasicLauncher", "JoblibLauncher", "LocalLauncher", "RayLauncher")
"""Names of the launcher classes that run jobs on this machine."""

MAX_WAYS_OUT = 3
"""Maximum number of plans that do not fit for which changes are suggested."""

_FIND_DEVICES = """
import json, sys
from dataclasses import asdict
from xlstm_hydra.devices import detect_devices
print("\\n" + json.dumps(asdict(detect_devices())))
"""
"""Program that prints the devices detected by JAX, as JSON."""


_Devices = tuple[int, DeviceConfig]
"""Number of devices of a job, and the config of the devices."""


def is_planned(run: RunConfig) -> bool:
    """True if a plan is made before the run starts, and the run is rejected when the plan does not fit."""
    return isinstance(run.task, TrainTaskConfig) and not run.trainer.ignore_plan


def plan_points(runs: Mapping[int, RunConfig], launcher: DictConfig) -> dict[int, list[Problem]]:
    """Plan the runs of a sweep. Runs that would have the same plan are planned only once.

    Args:
        runs: the runs, by point number.
        launcher: the config of the launcher.

    Returns:
        The problems of the runs that cannot start, by point number.
    """
    if not runs:
        return {}
    from xlstm_hydra.plan import PlanError, planning
    from xlstm_hydra.step import plan_key  # loads JAX

    find = _Finder(launcher)
    devices = {number: found for number, run in runs.items() if (found := find.devices(run)) is not None}
    _log_unplanned(runs, devices)
    keys = {number: (plan_key(runs[number]), repr(found)) for number, found in devices.items()}
    if (plans := len(set(keys.values()))) > 1:
        log.info("planning %d points, which need %d different plans", len(keys), plans)
    problems: dict[Any, list[Problem]] = {}
    failures: dict[Any, str] = {}
    for number, key in keys.items():
        if key not in problems:
            ways_out = sum(map(bool, problems.values())) < MAX_WAYS_OUT
            try:
                with planning():  # a failure in the user's model does not stop the sweep
                    problems[key] = _problems(runs[number], devices[number], ways_out)
            except PlanError as error:
                problems[key], failures[key] = [], error.reason
    _report_failures({number: failures[key] for number, key in keys.items() if key in failures})
    return {number: problems[key] for number, key in keys.items() if problems[key]}


def _report_failures(reasons: Mapping[int, str]) -> None:
    """Warn about jobs that are launched without a plan, once per reason."""
    for reason in dict.fromkeys(reasons.values()):
        numbers = [number for number, other in reasons.items() if other == reason]
        jobs = f"job{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"
        log.warning("%s cannot be planned and will be launched without a plan: %s", jobs, reason)


def _log_unplanned(runs: Mapping[int, RunConfig], devices: Mapping[int, _Devices]) -> None:
    if left := len(runs) - len(devices):
        which = "the points are" if left == len(runs) else f"{left} of {len(runs)} points are"
        fix = "Set device, such as device=h100_80gb, and hydra.launcher.gpus_per_node."
        log.info("%s not planned: the devices of their jobs are not known here. %s", which, fix)


def _problems(run: RunConfig, devices: _Devices, ways_out: bool) -> list[Problem]:
    """Return the problems that prevent a run from starting on its devices. If `ways_out`, suggest changes that would
    make a plan fit."""
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


def write_refusal(error: ConfigError, folder: Path) -> None:
    """Write the problems of a config that cannot be planned to the plan file in the job folder."""
    from xlstm_hydra.plan import FORMAT, PLAN_FILE, VERSION  # loads JAX

    content = {"format": FORMAT, "version": VERSION, "problems": [str(problem) for problem in error.problems]}
    replace_file(folder / PLAN_FILE, json.dumps(content, indent=2))


# ---- devices


class _Finder:
    """Finds the devices of jobs, once for all jobs that request the same devices."""

    def __init__(self, launcher: DictConfig) -> None:
        self.is_here = str(launcher._target_).rpartition(".")[2] in HERE
        self.requested, self.per_job = _requested(launcher), OmegaConf.select(launcher, "gpus_per_job") or None
        self.known: dict[Any, _Devices | None] = {}

    def devices(self, run: RunConfig) -> _Devices | None:
        """Return the devices that a run's job will use; None if they are not known on this machine."""
        key = (run.trainer.simulated_devices, repr(run.device), None if self.is_here else run.known_devices())
        if key not in self.known:
            self.known[key] = self._here(run) if self.is_here else self._on_cluster(run)
        return self.known[key]

    def _here(self, run: RunConfig) -> _Devices:
        from xlstm_hydra.devices import device_of

        found = local_devices(run.trainer.simulated_devices)
        if self.per_job is not None and found.platform == "gpu":
            found = replace(found, number=self.per_job, per_host=self.per_job)
        return found.number, device_of(found, run.device)

    def _on_cluster(self, run: RunConfig) -> _Devices | None:
        number = self.requested or run.known_devices()
        if run.device is None or run.trainer.simulated_devices is not None or number is None:
            return None
        return number, run.device


def _requested(launcher: DictConfig) -> int | None:
    """Return the number of GPUs that a launcher requests from the cluster for each job; None if it requests none."""
    asked: Any = {key: OmegaConf.select(launcher, key) for key in ("nodes", "tasks_per_node", "gpus_per_node", "gres")}
    nodes, tasks = asked["nodes"] or 1, asked["tasks_per_node"] or 1
    of_task = OmegaConf.select(launcher, "gpus_per_task") or 0
    named = re.search(r"gpu(?::\w+)?:(\d+)", asked["gres"] or "")
    on_node = asked["gpus_per_node"] or tasks * of_task or (int(named[1]) if named else 0)
    return nodes * on_node or None


def local_devices(simulated: int | None) -> DetectedDevices:
    """Return the devices that JAX would detect in a job on this machine, or the given number of simulated devices.

    Raises:
        ConfigError: JAX detects no devices.
    """
    from xlstm_hydra.devices import DetectedDevices

    if simulated is not None:
        return DetectedDevices.simulated(simulated)
    return DetectedDevices.simulated(_cpu_devices(os.environ)) if has_cpu_alone() else _devices_in_subprocess()


def has_cpu_alone() -> bool:
    """True if JAX can only use CPU devices: JAX_PLATFORMS selects the CPU, or no plugin for other devices is
    installed."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def _cpu_devices(environ: os._Environ[str]) -> int:
    """Return the number of CPU devices that JAX creates with these environment variables."""
    forced = re.search(r"--xla_force_host_platform_device_count=(\d+)", environ.get("XLA_FLAGS", ""))
    return int(environ.get("JAX_NUM_CPU_DEVICES") or (forced[1] if forced else 1))


@cache
def _devices_in_subprocess() -> DetectedDevices:
    """Detect the devices in a subprocess, so that they stay available to jobs. This takes about 3 seconds."""
    from xlstm_hydra.devices import DetectedDevices

    done = subprocess.run([sys.executable, "-c", _FIND_DEVICES], capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise ConfigError([Problem({}, f"JAX detects no devices on this machine: {reason}")])
    return DetectedDevices(**json.loads(done.stdout.strip().rpartition("\n")[2]))


# ---- comparison of the plans

HEAD = (
    *("job", "overrides", "verdict", "memory", "free", "step", "tokens/s", "bound by"),
    *("params", "grads", "optim", "kept", "gathered", "logits", "working", "batch"),
)
"""Header of the table. The columns from `params` on are kinds of memory, with shortened names."""

FITS, TOO_LARGE = "fits", "does not fit"


def compare_plans(folder: Path, plans: Sequence[Outcome]) -> bool:
    """Print the plans of a sweep as one table, and write them to the sweep folder as CSV, JSON and a plot.

    Args:
        folder: the sweep folder.
        plans: the outcomes of the planning jobs.

    Returns:
        True if at least one plan fits.
    """
    from xlstm_hydra.plan import MEMORY_KINDS  # loads JAX

    rows = list(_rows(folder, plans, MEMORY_KINDS))
    print("", *_lines(rows), sep="\n")
    _write_csv(rows, MEMORY_KINDS, folder / "plans.csv")
    replace_file(folder / "plans.json", json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    written = ["plans.csv", "plans.json", *plot_plans(folder, list(MEMORY_KINDS.values()), rows)]
    print(f"written: {', '.join(written)} in {folder}")
    return any(row.verdict == FITS for row in rows)


def _rows(folder: Path, plans: Sequence[Outcome], kinds: Iterable[str]) -> Iterator[PlanRow]:
    from xlstm_hydra.plan import PLAN_FILE

    for one, own in zip(plans, differing([one.overrides for one in plans]), strict=True):
        overrides, file = " ".join(own), job_folder(folder, one) / PLAN_FILE
        try:
            yield _row(one.job, overrides, parse(file.read_bytes(), "a plan", fix=""), kinds)
        except OSError:
            yield PlanRow(one.job, overrides, FAILED, one.reason or one.status)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            yield PlanRow(one.job, overrides, FAILED, f"{file} cannot be read: {error}")


def _row(job: int, overrides: str, content: dict[str, Any], kinds: Iterable[str]) -> PlanRow:
    if "problems" in content:
        return PlanRow(job, overrides, INVALID, "; ".join(content["problems"]))
    memory, time = content["memory"], content["time"]
    row = PlanRow(
        job,
        overrides,
        FITS if content["fits"] else TOO_LARGE,
        memory={kind: memory[kind] for kind in kinds},
        total=memory["total"],
        headroom=content["headroom"],
        device=content["device"]["name"],
        device_memory=content["device"]["memory_bytes"],
        num_devices=content["num_devices"],
        step_seconds=None if time is None else time["seconds"],
        tokens_per_second=None if time is None else time["tokens_per_second"],
        bound_by=None if time is None else time["bound_by"],
    )
    numbers = [*(row.memory or {}).values(), row.total, row.headroom, row.device_memory, row.num_devices]
    numbers += [] if time is None else [row.step_seconds, row.tokens_per_second]
    if not all(type(number) in (int, float) for number in numbers):
        raise TypeError("expected numbers for memory, devices and time")
    if not all(isinstance(text, str) for text in (row.device, "" if time is None else row.bound_by)):
        raise TypeError("expected strings for device.name and time.bound_by")
    return row


# ---- text


def _lines(rows: Sequence[PlanRow]) -> Iterator[str]:
    """Yield the lines of the table, followed by the reason for each job without a plan."""
    from xlstm_hydra._table import fitting, gib, table

    kinds = dict.fromkeys((row.device, row.device_memory) for row in rows if row.device_memory is not None)
    devices = " or ".join(f"{name} with {gib(size)} GiB" for name, size in kinds)
    yield printable(f"memory per device in GiB{f' ({devices})' if devices else ''}:")
    lines = fitting([HEAD, *map(_cells, rows)])
    yield from table(lines, left=[HEAD.index(name) for name in ("overrides", "verdict", "bound by")])
    yield from (printable(f"job {row.job} {_ENDS[row.verdict]}: {row.reason}") for row in rows if row.reason)


_ENDS = {INVALID: "is invalid", FAILED: "failed"}


def _cells(row: PlanRow) -> tuple[str, ...]:
    from xlstm_hydra._table import gib, in_ms

    total, free, kinds = "", "", [""] * (len(HEAD) - HEAD.index("params"))
    if row.memory is not None:
        headroom, kinds = row.headroom or 0, list(map(gib, row.memory.values()))
        total, free = gib(row.total or 0), f"{'-' if headroom < 0 else ''}{gib(abs(headroom))}"
    step = "" if row.step_seconds is None else in_ms(row.step_seconds)
    rate = "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"
    return (str(row.job), row.overrides, row.verdict, total, free, step, rate, row.bound_by or "", *kinds)


def _write_csv(rows: Sequence[PlanRow], kinds: Iterable[str], file: Path) -> None:
    sizes = [f"{kind}_bytes" for kind in (*kinds, "total", "headroom", "device_memory")]
    names = ["job", "overrides", "verdict", "reason", "num_devices", "device", *sizes]
    names += ["step_seconds", "tokens_per_second", "bound_by"]
    with open_new(file, newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        for row in rows:
            flat = asdict(row) | (row.memory or {})
            del flat["memory"]
            writer.writerow({name: flat.get(name.removesuffix("_bytes")) for name in names})
