"""Search for the fastest layout of a run, and the overrides that select a layout."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from xlstm_hydra._hooks import hooks
from xlstm_hydra._table import in_bytes, in_ms
from xlstm_hydra.configs import DeviceConfig, ParallelConfig, PlanTaskConfig, RunConfig
from xlstm_hydra.models import list_parameters
from xlstm_hydra.parallel import abstract_mesh, mesh_axes
from xlstm_hydra.problems import ConfigError, Problem, show
from xlstm_hydra.step import unused_settings

from ._estimate import LayoutEstimator
from ._layouts import Refusal, layouts
from ._own_costs import own_costs
from ._plan import Estimate, Plan, make_plan, planning

SEARCH_VERSION = 1
"""Version of the format of `Search.to_dict`."""

FEW = 3
"""Number of layouts that are planned if only the best one is needed."""

_TRIES = 3
"""Maximum number of layouts planned per requested layout. A planned layout may not fit although its estimate does."""


@dataclass(frozen=True)
class Search:
    """Result of `search`: the layouts of a run on a given number of devices."""

    run: RunConfig
    num_devices: int
    device: DeviceConfig
    limit: int
    """Bytes of device memory that a layout may use."""
    best: tuple[Plan, ...]
    """Plans of the fastest layouts that fit, fastest first."""
    fitting: tuple[Estimate, ...]
    """Estimates of the layouts that fit, fastest first."""
    dropped: tuple[Estimate, ...]
    """Estimates of the layouts that do not fit, smallest memory first."""
    refused: tuple[Refusal, ...]
    """Layouts that break a rule of the config."""
    traced: int
    """Number of programs that were traced for the estimates."""

    @property
    def chosen(self) -> RunConfig:
        """The run with the fastest layout that fits.

        Raises:
            ConfigError: no layout is valid, no layout fits, or the device's speeds are not known.
        """
        if not self.device.has_speeds:
            text = f"layouts cannot be compared, because no speeds are known for {self.device.name}"
            raise ConfigError([Problem({"parallel.name": "auto"}, text, "Set device=NAME, or choose a layout.")])
        if not self.tried:
            raise ConfigError(min((refusal.problems for refusal in self.refused), key=len))
        if not self.best:
            raise ConfigError([_nothing_fits(self)])
        return self.best[0].run

    def why(self) -> str:
        """Return a sentence about the fastest layout and the number of layouts compared."""
        plan = self.best[0]
        text = " ".join(layout_overrides(plan.run, self.run))
        time = f", at least {in_ms(plan.time.seconds)} per step, bound by {plan.time.bound_by}" if plan.time else ""
        counts = f"{len(self.fitting):,} of {self.tried:,} layouts fit in {in_bytes(self.limit)} per device"
        return f"{counts}; the fastest is {text} ({in_bytes(plan.memory.total)}{time})"

    @property
    def tried(self) -> int:
        """Number of valid layouts. All of them are compared."""
        return len(self.fitting) + len(self.dropped)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `search.json`."""
        return {
            "version": SEARCH_VERSION,
            "num_devices": self.num_devices,
            "device": self.device.to_dict(),
            "memory_limit": self.limit,
            "traced": self.traced,
            "best": [_row(self.run, plan, brief=True) for plan in self.best],
            "candidates": [_row(self.run, one) for one in self.fitting],
            "dropped": [
                _row(self.run, one) | {"because": f"needs {one.memory.total} of {self.limit} bytes"}
                for one in self.dropped
            ],
            "refused": [
                {"sizes": list(refusal.sizes), "because": [str(problem) for problem in refusal.problems]}
                for refusal in self.refused
            ],
        }


def search(run: RunConfig, num_devices: int, device: DeviceConfig, *, best: int = 10) -> Search:
    """Compare the layouts of a run on a given number of devices; see `layouts`.

    The costs of all layouts are estimated first. The fastest layouts are then planned one by one with `make_plan`.

    Args:
        run: the config. Its `model_class` must be a class.
        num_devices: number of devices.
        device: properties of each device.
        best: maximum number of plans in the result.

    Raises:
        PlanError: see `make_plan`.
    """
    fix = "parallel=auto needs plans to compare layouts. Choose a layout instead, such as parallel=fsdp."
    with planning(fix if run.parallel.is_open() else ""):
        return _search(run, num_devices, device, best)


def _search(run: RunConfig, num_devices: int, device: DeviceConfig, best: int) -> Search:
    limit = int(device.memory_bytes * (1 - run.parallel.get("headroom", 0.0)))
    costs = own_costs(run)
    parameters = list_parameters(run.model) if costs is None else costs.parameters()
    found = list(layouts(run, num_devices, parameters))
    refused = [one for one in found if isinstance(one, Refusal)]
    runs = [one for one in found if isinstance(one, RunConfig)]
    traced = 0
    if costs is None and runs:
        estimator = LayoutEstimator(runs, num_devices, device, parameters)
        unused = [_unused_settings(estimator, one) for one in runs]
        refused += [one for one in unused if one is not None]
        runs = [one for one, refusal in zip(runs, unused, strict=True) if refusal is None]
        estimates: list[Estimate] = [estimator.estimate(one) for one in runs]
        traced = estimator.traced
    else:
        estimates = [make_plan(one, num_devices, device) for one in runs]
    fitting = sorted((one for one in estimates if one.memory.total <= limit), key=speed)
    dropped = sorted((one for one in estimates if one.memory.total > limit), key=lambda one: one.memory.total)
    planned = (make_plan(one.run, num_devices, device, parameters) for one in fitting[: _TRIES * best])
    plans = itertools.islice((plan for plan in planned if plan.memory.total <= limit), best)
    return Search(
        run=run,
        num_devices=num_devices,
        device=device,
        limit=limit,
        best=tuple(sorted(plans, key=speed)),
        fitting=tuple(fitting),
        dropped=tuple(dropped),
        refused=tuple(refused),
        traced=traced,
    )


def _unused_settings(estimator: LayoutEstimator, run: RunConfig) -> Refusal | None:
    """Return a refusal if one of the settings of a layout does not apply to any parameter of the model."""
    mesh = abstract_mesh(run.parallel, estimator.num_devices)
    problems = tuple(unused_settings(run, mesh_axes(run.parallel, mesh), estimator.placements(run)))
    data, fsdp, pipeline, tensor = mesh.shape.values()
    return Refusal((data, fsdp, pipeline, tensor), problems) if problems else None


def _nothing_fits(found: Search) -> Problem:
    nearest = min((*found.dropped, *found.fitting), key=lambda one: one.memory.total)
    needed, limit = in_bytes(nearest.memory.total), in_bytes(found.limit)
    texts = " ".join(layout_overrides(nearest.run, found.run))
    text = (
        f"none of {found.tried} layouts on {found.num_devices} x {found.device.name} fits in the {limit} of usable "
        f"memory per device. The smallest, {texts}, needs {needed}"
    )
    given = {"parallel.name": "auto", "trainer.batch_size": found.run.trainer.batch_size}
    fix = "Use more devices, a smaller trainer.batch_size or model.context_length, or a lower parallel.headroom."
    return Problem(given, text, fix)


def speed(one: Estimate) -> tuple[Any, ...]:
    """Return the sort key of a layout: the lower bound of the step time; then the sum of compute, memory and network
    time; then the memory."""
    time, times = one.time, (0.0, 0.0)
    if time is not None:
        times = time.seconds, time.compute + time.memory + sum(time.network.values())
    rounded = [float(f"{seconds:.6g}") for seconds in times]  # rounding errors must not decide the order
    return (*rounded, one.memory.total, tuple(one.sizes.values()))


def layout_overrides(run: RunConfig, typed: RunConfig, *, brief: bool = True) -> tuple[str, ...]:
    """Return the overrides that select the layout of `run`.

    On the command line of `typed`, they replace `parallel=...` and come after the other overrides.

    Args:
        run: the run with the layout.
        typed: the run as typed on the command line. It differs only in its layout.
        brief: if true, use the option of the config group `parallel` that gives the shortest overrides; Hydra needs
            50 ms to find it. Otherwise, and without Hydra, list the fields one by one.
    """
    if brief and hooks.shortest_layout is not None:
        texts = hooks.shortest_layout(run)
    else:
        fields, default = run.parallel.to_dict(), ParallelConfig()
        changes = {key: value for key, value in fields.items() if value != default.get(key)}
        texts = ["parallel=dp", *(f"parallel.{key}={typed_text(value)}" for key, value in changes.items())]
    trainer, before = run.trainer.to_dict(), typed.trainer.to_dict()
    changed = {f"trainer.{key}": value for key, value in trainer.items() if value != before[key]}
    texts += [f"{key}={typed_text(value)}" for key, value in {**changed, **open_batch(run, typed)}.items()]
    return tuple(texts)


def open_batch(run: RunConfig, typed: RunConfig) -> dict[str, int]:
    """Return an override that keeps the batch size, if the default batch size depends on the layout; otherwise
    empty."""
    is_open = isinstance(typed.task, PlanTaskConfig)  # in other tasks the default is the same for all layouts
    is_another = is_open and run.trainer.batch_size == typed.fitting_batch() != run.fitting_batch()
    return {"trainer.batch_size": run.trainer.batch_size} if is_another else {}


def typed_text(value: Any) -> str:
    """Return a value as typed in an override. Lists have no spaces or quotes, as in `[a,b]`."""
    if isinstance(value, list):
        return f"[{','.join(map(typed_text, value))}]"
    return value if isinstance(value, str) else show(value)


def _row(typed: RunConfig, one: Estimate, *, brief: bool = False) -> dict[str, Any]:
    """Return a layout and its costs as JSON values."""
    time = one.time
    return {
        "overrides": list(layout_overrides(one.run, typed, brief=brief)),
        "sizes": dict(one.sizes),
        "remat": one.run.parallel.remat,
        "gradient_accumulate_steps": one.run.trainer.gradient_accumulate_steps,
        "pipeline_microbatches": one.run.trainer.microbatches(*list(one.sizes.values())[:3]),
        "fsdp_gather_dtype": one.run.parallel.fsdp_gather_dtype,
        "memory_bytes": one.memory.total,
        "seconds": None if time is None else time.seconds,
        "bound_by": None if time is None else time.bound_by,
    }
