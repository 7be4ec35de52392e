"""The layout and the plan of a run on its devices.

With `parallel=auto`, the layout is chosen here. The run is planned before it is compiled, and rejected if it does not
fit the devices. The plan is saved in the run folder and compared with the measurements at the end. If no plan can be
made, the run
continues without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax

from xlstm_hydra._logging import log, log_fact
from xlstm_hydra._status import status
from xlstm_hydra._table import in_bytes, in_ms
from xlstm_hydra.checkpoint import to_json
from xlstm_hydra.configs import DeviceConfig, RunConfig
from xlstm_hydra.devices import device_here, is_first, peak_memory
from xlstm_hydra.plan import (
    FEW,
    PLAN_FILE,
    PLAN_TEXT_FILE,
    SEARCH_FILE,
    Plan,
    PlanError,
    Search,
    facts,
    full_report,
    missing,
    plan_sharded_loss,
    search,
    to_dict,
    too_large,
    unknown_note,
)
from xlstm_hydra.problems import ConfigError
from xlstm_hydra.runs import replace_file, write_layout
from xlstm_hydra.step import CompilationStats, Program

from ._log import Stopwatch


@dataclass(frozen=True)
class Measured:
    """Time, memory and compilation measured in a run."""

    step_seconds: float | None
    """Median time per step over the lines of metrics, in seconds, excluding the first step, validation and saving. None
    if the run has only one step."""

    peak_bytes: int | None
    """Highest peak memory among the devices of this process, in bytes. None if JAX does not report it, or if an earlier
    run in this process used more memory."""

    programs: int
    """Number of programs that were compiled or loaded from the compilation cache."""

    programs_from_cache: int
    """Number of programs that were loaded from the compilation cache."""

    compile_seconds: float
    """Time spent on compiling programs and on loading them from the cache, in seconds."""


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run on its devices."""

    plan: Plan | None
    """The plan; None if no plan can be made."""
    earlier_peak: int | None
    """Peak memory of the devices before the run, in bytes; None if JAX does not report it."""
    missing_because: str = ""
    """Reason why there is no plan."""

    def log_prediction(self, done: int = 0) -> None:
        """Log the predicted memory, and the predicted time of the steps that follow the first `done` steps."""
        for key, text in () if self.plan is None else facts(self.plan, done):
            log_fact(key, text)

    def log_details(self, is_verbose: bool) -> None:
        """Log the full plan if `is_verbose`, otherwise only the primitives that the planner does not know."""
        if self.plan is not None:
            for line in full_report(self.plan).splitlines() if is_verbose else unknown_note(self.plan):
                log.info("%s", line, extra={"indent": 4})

    def keep(self, folder: Path, measured: Measured | None = None) -> None:
        """Write the plan and the measurements to the run folder."""
        if is_first():
            content = missing(self.missing_because) if self.plan is None else to_dict(self.plan)
            content |= {"measured": None if measured is None else asdict(measured)}
            replace_file(folder / PLAN_FILE, to_json(content))
            if self.plan is None:
                (folder / PLAN_TEXT_FILE).unlink(missing_ok=True)  # written by an earlier start
            elif measured is None:
                replace_file(folder / PLAN_TEXT_FILE, full_report(self.plan) + "\n")

    def compare(self, folder: Path, stopwatch: Stopwatch, programs: CompilationStats) -> None:
        """Log the measurements next to the predictions, and write the measurements to the run folder."""
        peak = peak_memory()
        measured = Measured(
            step_seconds=stopwatch.seconds_per_step,
            peak_bytes=None if peak == self.earlier_peak else peak,
            programs=programs.total,
            programs_from_cache=programs.from_cache,
            compile_seconds=round(programs.seconds, 3),
        )
        self.keep(folder, measured)
        for key, text in zip(("measured", ""), self._texts(measured), strict=False):
            log_fact(key, text)
        log_fact("compiled", str(programs))

    def _texts(self, measured: Measured) -> Iterator[str]:
        time = None if self.plan is None else self.plan.time
        if measured.step_seconds is not None:
            predicted = "" if time is None else f" (predicted: at least {in_ms(time.seconds)})"
            yield f"{in_ms(measured.step_seconds)} per step{predicted}"
        if measured.peak_bytes is not None:
            predicted = "" if self.plan is None else f" (predicted: {in_bytes(self.plan.memory.total)})"
            yield f"peak memory {in_bytes(measured.peak_bytes)} per device{predicted}"
        elif self.earlier_peak is None:
            yield f"peak memory: not reported on {jax.default_backend().upper()}"
        else:
            yield "peak memory: not measured, because an earlier run in this process used more"


def plan_program(program: Program) -> RunPlan:
    """Plan a run on its devices. If no plan can be made, log the reason and continue without one.

    Raises:
        ConfigError: a step needs more memory than the devices have, and `trainer.ignore_plan` is false.
    """
    peak, device = peak_memory(), device_here(program.run.device)
    try:
        with status("planning the training step"):
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
    """Return the plan of a program. Programs with the same `shared_cache` are planned once."""
    plan = program.shared_cache.get("plan")
    if plan is None or plan.device != device:
        plan = program.shared_cache["plan"] = plan_sharded_loss(program.sharded_loss, device)
    return replace(plan, run=program.run)


def _without_plan(error: PlanError, peak: int | None) -> RunPlan:
    if is_first():
        log.warning("no plan can be made, and the run continues without one: %s", error.reason)
        log.debug("traceback of the planner:", exc_info=error)
    return RunPlan(None, peak, error.reason)


@dataclass(frozen=True)
class Choice:
    """Run with a chosen layout, and the search that found the layout."""

    run: RunConfig
    search: Search | None
    """The search; None if the config specifies the layout."""

    def keep(self, folder: Path) -> None:
        """Write the chosen layout to the config in the run folder, and the candidates to a separate file."""
        if self.search is not None and is_first():
            replace_file(folder / SEARCH_FILE, to_json(self.search.to_dict()))
            write_layout(folder, self.run)


def choose_layout(run: RunConfig) -> Choice:
    """Return the run with a layout. With `parallel=auto`, search for the best layout on the available devices; all
    processes find the same layout.

    Raises:
        ConfigError: no layout is allowed by the config, or none fits the devices.
    """
    if not run.parallel.is_open():
        return Choice(run, None)
    with status("searching for a layout"):
        found = search(run, jax.device_count(), device_here(run.device), best=FEW)
    chosen = found.chosen
    if is_first():
        log_fact("layout", found.why())
    return Choice(chosen, found)
