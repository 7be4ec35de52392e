"""Smallest config changes that make a run fit into device memory, and the error message for a run that does not fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xlstm_hydra._table import in_bytes
from xlstm_hydra.configs import AutoParallelConfig, PlanTaskConfig, RunConfig, TrainerConfig
from xlstm_hydra.problems import ConfigError, Problem, divisors

from ._estimate import LayoutEstimator
from ._layouts import assembled, block_classes, shardable_classes
from ._own_costs import own_costs
from ._plan import Estimate, Plan, PlanError, make_plan, planning
from ._search import open_batch, typed_text

_SURE = 0.85
"""Fraction of device memory up to which an estimate is trusted. Above it, `make_plan` plans the changed run."""

_MOST_DEVICES = 2**16
_MOST_TENSOR_PARALLEL = 8

Fields = Mapping[str, Any]
"""Values of `parallel` and `trainer` fields by key, such as `{"trainer.batch_size": 8}`."""


@dataclass(frozen=True)
class Change:
    """Overrides that together make a run fit, and the cost of the changed run."""

    overrides: tuple[str, ...]
    """Overrides to add to the command line."""

    cost: Estimate
    """Plan of the changed run, or an estimate if it is accurate enough."""

    num_devices: int
    """Number of devices of the changed run."""

    @property
    def needed(self) -> int:
        """Peak memory per device in bytes."""
        return self.cost.memory.total

    @property
    def seconds_per_row(self) -> float:
        """Lower bound of the step time in seconds divided by the batch size; 0 if the device's speeds are not known."""
        time = self.cost.time
        return 0.0 if time is None else time.seconds / self.cost.run.trainer.batch_size


@planning()
def changes_that_fit(plan: Plan, most: int = 4) -> tuple[Change, ...]:
    """Return the smallest changes that make a run fit, fastest run first.

    Changes of one setting are tried first, then changes of two settings, of three and so on, until at least one fits.
    Tensor parallelism is tried only if no other change fits. If nothing fits and the task is `plan`, the result is a
    change to the smallest of 2, 4, 8, ... times as many devices on which the run fits.

    The cost of a changed run is estimated from the plan and one to three more traced programs. If the estimate is close
    to the device memory, or the changed run uses a pipeline or gradient accumulation, the run is planned instead. The
    result is empty for a model with its own `plan_costs`.

    Args:
        plan: the plan of a run that does not fit.
        most: maximum number of changes to return.

    Raises:
        PlanError: see `make_plan`.
    """
    if own_costs(plan.run) is not None:
        return ()
    aspects = _aspects(plan)
    tried = _Tried(plan, aspects)
    found = _fewest(tried, plan, most) or _fewest(_Tried(plan, [*aspects, _tensor_parallel(plan)]), plan, most)
    if found or not isinstance(plan.run.task, PlanTaskConfig):
        return found  # only the task `plan` can change the number of devices
    return tuple(_made_sure(tried.larger(), plan))


def _fewest(tried: _Tried, plan: Plan, most: int) -> tuple[Change, ...]:
    """Return the changes that fit and affect the fewest settings, fastest run first."""
    for number in tried.by_number:
        found = sorted(tried.fitting(number), key=lambda change: (change.seconds_per_row, change.needed))
        if sure := tuple(itertools.islice(_made_sure(found, plan), most)):
            return sure
    return ()


def _made_sure(changes: Iterable[Change], plan: Plan) -> Iterator[Change]:
    """Yield the changes with which the run fits. Runs whose estimate may be wrong are planned."""
    device, parameters = plan.device, [placement.parameter for placement in plan.placements]
    for change in changes:
        run, stages = change.cost.run, change.cost.sizes[change.cost.run.parallel.pipeline_axis_name]
        is_simple = stages == 1 and run.trainer.gradient_accumulate_steps == 1
        if not is_simple or change.needed > _SURE * device.memory_bytes:
            change = replace(change, cost=make_plan(run, change.num_devices, device, parameters))
        if change.needed <= device.memory_bytes:
            yield change


class _Tried:
    """All valid changed runs, and an estimator of their costs."""

    def __init__(self, plan: Plan, aspects: Sequence[Sequence[Fields]]) -> None:
        self.plan, self.limit = plan, plan.device.memory_bytes
        self.parameters = [placement.parameter for placement in plan.placements]
        self.by_number: dict[int, list[list[tuple[Fields, RunConfig]]]] = {}
        for number in range(1, len(aspects) + 1):
            groups = [itertools.product(*chosen) for chosen in itertools.combinations(aspects, number)]
            merged = [[{k: v for part in parts for k, v in part.items()} for parts in group] for group in groups]
            self.by_number[number] = [
                [(fields, run) for fields in group if (run := self.valid(fields, plan.num_devices)) is not None]
                for group in merged
            ]
        runs = [run for groups in self.by_number.values() for group in groups for _, run in group]
        self.estimator = LayoutEstimator([plan.run, *runs], plan.num_devices, plan.device, self.parameters, known=plan)

    def valid(self, fields: Fields, num_devices: int) -> RunConfig | None:
        """Return the run with these field values; None if they break a rule."""
        try:
            run = changed(self.plan.run, fields)
        except ConfigError:  # for example, more accumulation steps than the smaller batch has rows
            return None
        if isinstance(run.task, PlanTaskConfig):
            run = assembled(run, task=replace(run.task, num_devices=num_devices))
        return None if [*run.rules(), *run.device_rules(num_devices)] else run

    def fitting(self, number: int) -> Iterator[Change]:
        """Yield the first change that fits for each combination of `number` settings."""
        for group in self.by_number[number]:
            for fields, run in group:
                if (change := self.change(fields, run, self.estimator)) is not None:
                    yield change
                    break

    def change(self, fields: Fields, run: RunConfig, estimator: LayoutEstimator) -> Change | None:
        """Return the change if the changed run fits; otherwise None."""
        if estimator.state_bytes(run) > self.limit:
            return None  # parameters and optimizer state alone do not fit
        cost = estimator.estimate(run)
        typed = {**fields, **open_batch(run, self.plan.run)}
        texts = tuple(f"{key}={typed_text(value)}" for key, value in typed.items())
        return Change(texts, cost, estimator.num_devices) if cost.memory.total <= self.limit else None

    def larger(self) -> Iterator[Change]:
        """Yield a change to the smallest of 2, 4, 8, ... times as many devices on which the run fits. The FSDP mesh
        axis grows by the same factor, and the blocks are recomputed."""
        plan, (data, fsdp, *_) = self.plan, self.plan.sizes.values()
        times = 2
        while plan.num_devices * times <= _MOST_DEVICES:
            number, shares = plan.num_devices * times, data * fsdp * times
            fields = _sharded(plan, fsdp * times) | _recomputed(plan)
            fields["trainer.gradient_accumulate_steps"] = 1
            if plan.run.trainer.batch_size % shares:
                fields["trainer.batch_size"] = -(-plan.run.trainer.batch_size // shares) * shares
            fields = {key: value for key, value in fields.items() if value != _value(plan.run, key)}
            run = self.valid(fields, number)
            if run is not None and (change := self.change(fields, run, self.estimator.on(number))) is not None:
                yield replace(change, overrides=(f"task.num_devices={number}", *change.overrides))
                return
            times *= 2


def changed(run: RunConfig, fields: Fields) -> RunConfig:
    """Return the run with changed `parallel` and `trainer` fields."""
    groups: dict[str, dict[str, Any]] = {"parallel": {}, "trainer": {}}
    for key, value in fields.items():
        group, _, name = key.partition(".")
        groups[group][name] = value
    model = replace(run.model, parallel=replace(run.parallel, **groups["parallel"]))
    return assembled(run, model=model, trainer=replace(run.trainer, **groups["trainer"]))


def _aspects(plan: Plan) -> list[list[Fields]]:
    """Return one list of alternative changes per setting, smallest change first."""
    run, (data, fsdp, stages, _) = plan.run, plan.sizes.values()
    parts = run.trainer.gradient_accumulate_steps
    rows = run.trainer.batch_size // (data * fsdp)
    wider = [size for size in divisors(data * fsdp) if size > fsdp]
    aspects: list[list[Fields]] = [
        [{"trainer.gradient_accumulate_steps": n} for n in divisors(rows // stages) if n > parts],
        [_sharded(plan, size) for size in wider],
        [_recomputed(plan)],
    ]
    if fsdp > 1:
        aspects.append([_sharded(plan, fsdp)])
    if run.trainer.remat_policy != TrainerConfig().remat_policy:
        aspects.append([{"trainer.remat_policy": TrainerConfig().remat_policy}])
    aspects.append([{"trainer.batch_size": run.trainer.batch_size // n} for n in divisors(rows) if n > 1])
    return [[fields for fields in values if fields] for values in aspects]


def _tensor_parallel(plan: Plan) -> list[Fields]:
    """Return changes that multiply the tensor-parallel size by 2, 4 or 8. The devices are taken from data parallelism
    and, if its size is not divisible, also from FSDP."""
    data, fsdp, stages, tensor = plan.sizes.values()
    found = []
    for times in (2, 4, 8):
        if tensor * times > _MOST_TENSOR_PARALLEL or (data * fsdp) % times:
            continue
        fewer, shares = (data // times, fsdp) if data % times == 0 else (1, data * fsdp // times)
        found.append(_sizes(plan, (fewer, shares, stages, tensor * times)))
    return found


def _sharded(plan: Plan, fsdp_size: int) -> dict[str, Any]:
    """Return the fields that shard all large parameters over `fsdp_size` devices."""
    run, (data, fsdp, stages, tensor) = plan.run, plan.sizes.values()
    parameters = [placement.parameter for placement in plan.placements]
    modules = run.parallel.fsdp_modules
    missing = [name for name in shardable_classes(run, parameters) if name not in modules]
    fields = _sizes(plan, (max(data * fsdp // fsdp_size, 1), fsdp_size, stages, tensor))
    if missing:
        smallest = min(run.parallel.fsdp_min_weight_size, AutoParallelConfig().fsdp_min_weight_size)
        fields |= {"parallel.fsdp_modules": [*modules, *missing], "parallel.fsdp_min_weight_size": smallest}
    return {key: value for key, value in fields.items() if value != _value(run, key)}


def _recomputed(plan: Plan) -> dict[str, Any]:
    """Return the field that recomputes the blocks in the backward pass; empty if this changes nothing."""
    blocks, before = block_classes(plan.run), plan.run.parallel.remat
    if not blocks or set(blocks) <= set(before):
        return {}
    return {"parallel.remat": list(blocks)}


def _sizes(plan: Plan, sizes: tuple[int, int, int, int]) -> dict[str, Any]:
    """Return the mesh axis sizes that change. Inferred sizes (-1) are omitted."""
    typed = plan.run.parallel.sizes()
    pairs = zip(typed, typed.values(), sizes, strict=True)
    return {f"parallel.{key}": size for key, before, size in pairs if before not in (-1, size)}


def _value(run: RunConfig, key: str) -> Any:
    group, _, name = key.partition(".")
    return run.groups()[group].get(name)


def too_large(plan: Plan, ways_out: bool = True) -> Problem:
    """Return the error for a run that does not fit into device memory.

    Args:
        plan: the plan of the run.
        ways_out: if true, suggest changes that make the run fit. Finding them takes about 2 s.
    """
    ignore, number = plan.run.trainer.ignore_plan, plan.num_devices
    here = f"each of the {number} devices" if number > 1 else "the device"
    share = ", its share of the host's memory" if plan.device.platform == "cpu" else ""
    needed, there = in_bytes(plan.memory.total), in_bytes(plan.device.memory_bytes)
    rule = f"a step needs {needed} per device, but {here} ({plan.device.name}) has {there}{share}"
    fix = "" if ignore else f"{_ways_out(plan) if ways_out else ''}{{trainer.ignore_plan}}=true starts the run anyway."
    return Problem({"trainer.ignore_plan": ignore}, rule, fix)


def _ways_out(plan: Plan) -> str:
    try:
        ways = [" ".join(change.overrides) for change in changes_that_fit(plan)]
    except PlanError:  # the run does not fit, with or without suggestions
        return ""
    if ways:
        return f"The run fits with {', or with '.join(ways)}. "
    way = "`xlstm-hydra task=plan task.num_devices=N` shows how many would be needed."
    return f"No layout or smaller batch fits on these devices. {way} "
