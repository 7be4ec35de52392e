"""The layout and the plan of a run on the devices that it has. With `parallel=auto` the layout is chosen here. The plan
is made before anything is compiled, refused where it does not fit, kept in the run folder, and compared with what was
measured. A run of which no plan can be made runs without one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax

from xlstm_hydra._logging import log
from xlstm_hydra._table import in_bytes, in_ms
from xlstm_hydra.checkpoint import to_json
from xlstm_hydra.configs import DeviceConfig, RunConfig
from xlstm_hydra.devices import device_here, is_first, peak_memory
from xlstm_hydra.plan import (
    FEW,
    PLAN_FILE,
    SEARCH_FILE,
    Plan,
    PlanError,
    Search,
    missing,
    plan_sharded_loss,
    search,
    summary,
    to_dict,
    too_large,
)
from xlstm_hydra.problems import ConfigError
from xlstm_hydra.runs import replace_file, write_layout
from xlstm_hydra.step import CompilationStats, Program

from ._log import Stopwatch


@dataclass(frozen=True)
class Measured:
    """What the steps of a run took."""

    step_seconds: float | None
    """Of a step: the median over the lines of the log, without the first step, validation and saving. None: there was
    no other step."""

    peak_bytes: int | None
    """Memory of the device of this process that needed most. None: not reported by JAX, or an earlier
    run of this process needed more."""

    programs: int
    """Programs that the run has compiled or got from the cache of compiled programs."""

    programs_from_cache: int
    """Those of them that came from the cache."""

    compile_seconds: float
    """What compiling them, or getting them from the cache, took."""


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run on the devices that it has."""

    plan: Plan | None
    """None: no plan can be made."""
    earlier_peak: int | None
    """What a device has needed before the run, in the same process."""
    missing_because: str = ""
    """Why there is no plan."""

    def log_prediction(self) -> None:
        """Log what is predicted."""
        for line in () if self.plan is None else summary(self.plan):
            log.info("%s", line)

    def keep(self, folder: Path, measured: Measured | None = None) -> None:
        """Write the plan into the run folder, and beside it what was measured."""
        if is_first():
            content = missing(self.missing_because) if self.plan is None else to_dict(self.plan)
            content |= {"measured": None if measured is None else asdict(measured)}
            replace_file(folder / PLAN_FILE, to_json(content))

    def compare(self, folder: Path, stopwatch: Stopwatch, programs: CompilationStats) -> None:
        """Log what was measured beside what was predicted, and keep it in the run folder."""
        peak = peak_memory()
        measured = Measured(
            step_seconds=stopwatch.seconds_per_step,
            peak_bytes=None if peak == self.earlier_peak else peak,
            programs=programs.total,
            programs_from_cache=programs.from_cache,
            compile_seconds=round(programs.seconds, 3),
        )
        self.keep(folder, measured)
        log.info("measured: %s", self._text(measured))
        log.info("%s", programs)

    def _text(self, measured: Measured) -> str:
        time, parts = None if self.plan is None else self.plan.time, []
        if measured.step_seconds is not None:
            predicted = "" if time is None else f" (predicted: {in_ms(time.seconds)} or more)"
            parts.append(f"{in_ms(measured.step_seconds)} per step{predicted}")
        if measured.peak_bytes is not None:
            predicted = "" if self.plan is None else f" (predicted: {in_bytes(self.plan.memory.total)})"
            parts.append(f"{in_bytes(measured.peak_bytes)} on a device{predicted}")
        elif self.earlier_peak is None:
            parts.append(f"peak memory: not reported on {jax.default_backend().upper()}")
        else:
            parts.append("an earlier run of this process needed more memory")
        return ", ".join(parts)


def plan_program(program: Program) -> RunPlan:
    """Plan a run on the devices that it has. If no plan can be made, this is logged, and the run continues without one.

    Raises:
        ConfigError: a step needs more memory than they have, and `trainer.ignore_plan` is not set.
    """
    peak, device = peak_memory(), device_here(program.run.device)
    try:
        plan = _plan(program, device)
        refusal = None if plan.fits else too_large(plan)
    except PlanError as error:
        return _without_plan(error, peak)
    planned = RunPlan(plan, peak)
    if refusal is None:
        return planned
    if program.run.trainer.ignore_plan:
        if is_first():
            log.warning("%s", refusal)
        return planned
    if is_first():
        planned.log_prediction()
    raise ConfigError([refusal])


def _plan(program: Program, device: DeviceConfig) -> Plan:
    """The plan of a program, unless one that has it in common has made it."""
    plan = program.shared_cache.get("plan")
    if plan is None or plan.device != device:
        plan = program.shared_cache["plan"] = plan_sharded_loss(program.sharded_loss, device)
    return replace(plan, run=program.run)


def _without_plan(error: PlanError, peak: int | None) -> RunPlan:
    if is_first():
        log.warning("no plan can be made, and the run continues without one: %s", error.reason)
        log.debug("where planning failed:", exc_info=error)
    return RunPlan(None, peak, error.reason)


@dataclass(frozen=True)
class Choice:
    """A run with its layout, and how that was chosen."""

    run: RunConfig
    search: Search | None
    """None: the layout was given."""

    def keep(self, folder: Path) -> None:
        """Write what was chosen into the run's config, and what it was chosen from beside it."""
        if self.search is not None and is_first():
            replace_file(folder / SEARCH_FILE, to_json(self.search.to_dict()))
            write_layout(folder, self.run)


def choose_layout(run: RunConfig) -> Choice:
    """The run with a layout for the devices that there are. All processes choose the same one.

    Raises:
        ConfigError: the layout is to be chosen, and none is allowed or none fits.
    """
    if not run.parallel.is_open():
        return Choice(run, None)
    found = search(run, jax.device_count(), device_here(run.device), best=FEW)
    chosen = found.chosen
    if is_first():
        log.info("parallel=auto: %s", found.why())
    return Choice(chosen, found)
