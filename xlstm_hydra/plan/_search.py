"""The layouts of a run, from the fastest to the slowest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xlstm_hydra._hooks import hooks
from xlstm_hydra._table import in_bytes, in_ms
from xlstm_hydra.configs import DeviceConfig, ParallelConfig, PlanTaskConfig, RunConfig
from xlstm_hydra.models import list_parameters
from xlstm_hydra.parallel import Parameter, abstract_mesh, mesh_axes
from xlstm_hydra.problems import ConfigError, Problem, show
from xlstm_hydra.step import unused_settings

from ._estimate import LayoutEstimator
from ._layouts import Refusal, layouts
from ._own_costs import own_costs
from ._plan import Estimate, Plan, make_plan, planning

SEARCH_VERSION = 1
"""Format of what `Search.to_dict` gives."""

FEW = 3
"""How many of the best are planned where one of them is to be chosen."""

_TRIES = 3
"""Of so many times the plans that are wanted, those that fit are taken."""


@dataclass(frozen=True)
class Search:
    """The layouts of a run on so many devices. `search` makes one."""

    run: RunConfig
    num_devices: int
    device: DeviceConfig
    limit: int
    """Bytes of a device's memory that a layout may need."""
    best: tuple[Plan, ...]
    """Plans of the best layouts that fit, the fastest first."""
    fitting: tuple[Estimate, ...]
    """All that are estimated to fit, the fastest first."""
    dropped: tuple[Estimate, ...]
    """Those that do not, from the one that needs least memory."""
    refused: tuple[Refusal, ...]
    """Those that the rules of the config do not allow."""
    traced: int
    """Programs that all estimates come from."""

    @property
    def chosen(self) -> RunConfig:
        """The run with the best layout.

        Raises:
            ConfigError: no layout is allowed, or none fits, or the device's speeds are not known.
        """
        if not self.device.has_speeds:
            text = f"the fastest layout is not known without the speeds of the devices, {self.device.name}"
            raise ConfigError([Problem({"parallel.name": "auto"}, text, "Choose device=..., or a layout.")])
        if not self.tried:
            raise ConfigError(min((refusal.problems for refusal in self.refused), key=len))
        if not self.best:
            raise ConfigError([_nothing_fits(self)])
        return self.best[0].run

    def why(self) -> str:
        """The best layout, and what it was the best of."""
        plan = self.best[0]
        text = " ".join(layout_overrides(plan.run, self.run))
        time = f", {in_ms(plan.time.seconds)} a step or more ({plan.time.bound_by})" if plan.time else ""
        counts = f"of {self.tried:,} layouts {len(self.fitting):,} fit in {in_bytes(self.limit)} on a device"
        return f"{counts}; the fastest is {text}: {in_bytes(plan.memory.total)}{time}"

    @property
    def tried(self) -> int:
        """Layouts that the rules allow."""
        return len(self.fitting) + len(self.dropped)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as plain JSON values."""
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
    """Compare the layouts that a run could have on so many devices; see `layouts`.

    All are estimated by arithmetic. The best are then planned one by one, so that their figures are those
    of `make_plan`.

    Args:
        run: whose `model_class` is a class.
        num_devices: how many there are.
        device: what they are.
        best: how many of the best are planned.

    Raises:
        PlanError: as `make_plan`.
    """
    fix = "Layouts are compared by their plans, so parallel=auto needs them; choose a layout, such as parallel=fsdp."
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
    plans = list(_planned(fitting, num_devices, device, parameters, limit, best))
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
    """The refusal of a layout with a setting that applies to no parameter of the model; None if there is none."""
    mesh = abstract_mesh(run.parallel, estimator.num_devices)
    problems = tuple(unused_settings(run, mesh_axes(run.parallel, mesh), estimator.placements(run)))
    data, fsdp, pipeline, tensor = mesh.shape.values()
    return Refusal((data, fsdp, pipeline, tensor), problems) if problems else None


def _nothing_fits(found: Search) -> Problem:
    nearest = min((*found.dropped, *found.fitting), key=lambda one: one.memory.total)
    needed, limit = in_bytes(nearest.memory.total), in_bytes(found.limit)
    texts = " ".join(layout_overrides(nearest.run, found.run))
    text = (
        f"of {found.tried} layouts on {found.num_devices} devices ({found.device.name}) none fits in the {limit} of a "
        f"device's memory that may be used. The one that needs the least, {texts}, needs {needed}"
    )
    given = {"parallel.name": "auto", "trainer.batch_size": found.run.trainer.batch_size}
    fix = "Use more devices, a smaller trainer.batch_size or model.context_length, or a lower parallel.headroom."
    return Problem(given, text, fix)


def speed(one: Estimate) -> tuple[Any, ...]:
    """What layouts are sorted by: the predicted time of a step, where that is equal the time of all its parts, and then
    the memory."""
    time, memory = one.time, one.memory.total
    sizes = tuple(one.sizes.values())
    if time is None:
        return (0.0, 0.0, memory, sizes)
    return (_rounded(time.seconds), _rounded(time.compute + time.memory + sum(time.network.values())), memory, sizes)


def layout_overrides(run: RunConfig, typed: RunConfig, *, brief: bool = True) -> tuple[str, ...]:
    """What selects the layout of `run` when it is typed instead of the `parallel=...` of the run `typed`, behind all
    else that was typed there.

    Args:
        run: with the layout.
        typed: the run that differs from it in its layout only.
        brief: as few characters as the options of the group allow, for which Hydra composes them (50 ms). Otherwise,
            and without Hydra, field by field.
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
    """The batch of a run, where perhaps it was not typed, and would be another one with the layout of `run`."""
    is_open = isinstance(typed.task, PlanTaskConfig)  # of other tasks the default is the same for all layouts
    is_another = is_open and run.trainer.batch_size == typed.fitting_batch() != run.fitting_batch()
    return {"trainer.batch_size": run.trainer.batch_size} if is_another else {}


def typed_text(value: Any) -> str:
    """A value as it is typed: `[a,b]`, without spaces and quotes."""
    if isinstance(value, list):
        return f"[{','.join(map(typed_text, value))}]"
    return value if isinstance(value, str) else show(value)


def _planned(
    fitting: Sequence[Estimate],
    num_devices: int,
    device: DeviceConfig,
    parameters: Sequence[Parameter],
    limit: int,
    best: int,
) -> Iterator[Plan]:
    """Plans of the first that fit. Where estimates were too low, others are tried, but not without end."""
    found = 0
    for estimate in fitting[: _TRIES * best]:
        plan = make_plan(estimate.run, num_devices, device, parameters)
        if plan.memory.total <= limit:
            found += 1
            yield plan
        if found == best:
            return


def _row(typed: RunConfig, one: Estimate, *, brief: bool = False) -> dict[str, Any]:
    """A layout with its numbers, as plain values."""
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


def _rounded(seconds: float) -> float:
    """Without the digits that are rounding errors, which would order what is equal."""
    return float(f"{seconds:.6g}")
