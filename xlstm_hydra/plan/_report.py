"""Plans, layout searches and suggested changes as text: the output of `task=plan`, and the summary at the start of a
training run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from xlstm_hydra._logging import FACT_INDENT
from xlstm_hydra._table import duration, gib, in_bytes, in_ms, milliseconds, table, tera
from xlstm_hydra.parallel import Placement, split_with

from ._changes import Change
from ._plan import Plan, product_rate, step_traffic
from ._search import Search, layout_overrides

MEMORY_KINDS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "saved for the backward pass",
    "gathered": "gathered parameters",
    "logits": "logits and loss",
    "working": "intermediate results",
    "batch": "batch",
}
"""Labels of the `Memory` fields, by field name."""

_WHOLE_LINES = 6


def report(plan: Plan, parameters: str = "modules") -> str:
    """Return all sections of a plan as text, except the verdict.

    Args:
        plan: the plan.
        parameters: rows of the parameter table: one per module (`modules`), one per array (`all`) or `none`.
    """
    parts = [_head(plan), _parameters(plan, parameters), _memory(plan), _work(plan), _communication(plan), _time(plan)]
    texts = ("\n".join(lines) for lines in parts)
    return "\n\n".join(text for text in texts if text)


def full_report(plan: Plan) -> str:
    """Return all sections of a plan as text, including the verdict."""
    return f"{report(plan)}\n\n{verdict(plan)}"


def facts(plan: Plan, done: int = 0) -> Iterator[tuple[str, str]]:
    """Yield the device, memory and time of a plan as pairs of a label and a line; see `log_fact`.

    A line with an empty label continues the previous line.

    Args:
        plan: the plan.
        done: number of completed steps. The expected time of the run excludes them.
    """
    memory, device = plan.memory, plan.device
    largest = max(MEMORY_KINDS, key=lambda kind: getattr(memory, kind))
    yield "device", device.name
    used = f"{in_bytes(memory.total)} of {in_bytes(device.memory_bytes)} on each device"
    yield "memory", f"{used}: {'fits' if plan.fits else 'does not fit'}"
    yield "", f"largest part: {MEMORY_KINDS[largest]} ({in_bytes(getattr(memory, largest))})"
    if plan.time is None or plan.tokens_per_second is None:
        yield "time", "unknown: no speeds are known for this device"
        return
    steps = plan.run.trainer.max_steps - done
    total = f"{duration(steps * plan.time.seconds)} for {steps:,} step{'' if steps == 1 else 's'}"
    yield "time", f"at least {in_ms(plan.time.seconds)} per step, bound by {plan.time.bound_by}"
    yield "", f"{total}, at most {plan.tokens_per_second:,.0f} tokens/s"


def summary(plan: Plan) -> list[str]:
    """Return `facts` as lines, followed by a note on unknown primitives if there are any."""
    return [*(f"{key:<{FACT_INDENT}}{text}" for key, text in facts(plan)), *unknown_note(plan)]


def verdict(plan: Plan) -> str:
    """Return a line that states whether the run fits, and how much memory is free or missing."""
    capacity, share = plan.device.memory_bytes, abs(plan.headroom) / plan.device.memory_bytes
    available = f"the available {in_bytes(capacity)} ({plan.device.name})"
    if plan.fits:
        return f"fits: {in_bytes(plan.headroom)} ({share:.0%}) free of {available}"
    return f"does not fit: needs {in_bytes(-plan.headroom)} ({share:.0%}) more than {available}"


def _head(plan: Plan) -> Iterator[str]:
    run, device, sizes = plan.run, plan.device, plan.sizes
    trainer, host = run.trainer, _host_name(plan)
    data, fsdp, stages, _ = sizes.values()
    name = run.model.class_path().rpartition(".")[2]
    yield f"plan of {name} with {plan.num_parameters:,} parameters, {run.optimizer.name}"
    hosts = f"{plan.num_hosts} {host}{'s' if plan.num_hosts > 1 else ''}"
    yield f"devices  {plan.num_devices} x {device.name}, {device.devices_per_host} per {host}: {hosts}"
    across = f"{' and '.join(plan.across_hosts) or 'no axis'} cross{'' if len(plan.across_hosts) > 1 else 'es'} {host}s"
    yield f"mesh     {' '.join(f'{axis}={size}' for axis, size in sizes.items())}; {across}"
    yield f"batch    {trainer.batch_size:,} x {plan.tokens // trainer.batch_size:,} tokens = {plan.tokens:,} per step"
    rows, parts = trainer.batch_size // (data * fsdp), trainer.gradient_accumulate_steps
    text = f"{rows} row{'' if rows == 1 else 's'} per device"
    text += f", accumulated over {parts} parts" if parts > 1 else ""
    is_least = trainer.batch_size == trainer.batch_unit(data, fsdp, stages)
    yield f"         {text}{', the minimum for this layout' if is_least else ''}"
    if run.parallel.remat:
        policy = "" if trainer.remat_policy == "nothing" else f" (policy: {trainer.remat_policy})"
        yield f"remat    {', '.join(run.parallel.remat)}{policy}"
    if stages > 1:
        count = trainer.microbatches(data, fsdp, stages)
        yield f"pipeline {stages} stages, {count} microbatches; each stage is idle {plan.bubble:.1%} of the time"


# ---- parameters


@dataclass
class _Rows:
    """Parameters in the same table row."""

    placements: list[Placement] = field(default_factory=list)

    @property
    def elements(self) -> int:
        return sum(math.prod(each.parameter.shape) for each in self.placements)

    @property
    def bytes(self) -> int:
        return sum(each.bytes_per_device for each in self.placements)

    @property
    def specs(self) -> str:
        specs = list(dict.fromkeys(_spec(each) for each in self.placements))
        return " ".join([*specs[:4], *(["..."] if len(specs) > 4 else [])])

    def row(self, name: str, text: str) -> tuple[str, ...]:
        return name, str(len(self.placements)), f"{self.elements:,}", gib(self.bytes), text


def _parameters(plan: Plan, detail: str) -> Iterator[str]:
    if detail == "none":
        return
    if detail == "all":
        rows = [("parameter", "shape", "GiB/device", "partition spec")]
        for each in plan.placements:
            reason = "" if each.fsdp_axis is not None else f" not sharded by FSDP: {'; '.join(_why_whole(plan, each))}"
            shape = "x".join(map(str, each.parameter.shape)) or "scalar"
            rows.append((each.parameter.path, shape, gib(each.bytes_per_device), f"{_spec(each)}{reason}"))
        yield from table(rows, left=(0, 1, 3))
        return
    groups: dict[tuple[str, str], _Rows] = {}
    for placement in plan.placements:
        groups.setdefault(_module(placement), _Rows()).placements.append(placement)
    rows = [group.row(path, f"{module} {group.specs}") for (path, module), group in groups.items()]
    head = ("parameters", "arrays", "elements", "GiB/device", "module class and partition specs")
    yield from table([head, *rows, _Rows(list(plan.placements)).row("total", "")], left=(0, 4))
    yield from _whole(plan)


def _module(placement: Placement) -> tuple[str, str]:
    """Return the path and class of the module in whose table row a parameter is listed, at most two levels deep."""
    parts, classes = placement.parameter.path.split("."), placement.parameter.modules
    depth = min(2, max(len(parts) - 1, 1))
    return ".".join(parts[:depth]), classes[depth - 1] if len(classes) >= depth else ""


def _whole(plan: Plan) -> Iterator[str]:
    """Yield lines on the parameters that FSDP does not shard, grouped by reason, largest group first."""
    if plan.sizes[plan.run.parallel.fsdp_axis_name] == 1:
        yield "not sharded by FSDP: parallel.fsdp_axis_size is 1 on this mesh"
        return
    reasons: dict[tuple[str, str], _Rows] = {}
    for placement in plan.placements:
        if placement.fsdp_axis is None:
            reasons.setdefault(_why_whole(plan, placement), _Rows()).placements.append(placement)
    ordered = sorted(reasons.items(), key=lambda item: -item[1].bytes)
    if ordered:
        yield "not sharded by FSDP:"
    for (reason, way), group in ordered[:_WHOLE_LINES]:
        many = f"{len(group.placements)} arrays" if len(group.placements) > 1 else group.placements[0].parameter.path
        yield f"  {many} ({in_bytes(group.bytes)}): {reason}"
        yield f"    {way}"
    if rest := ordered[_WHOLE_LINES:]:
        arrays = sum(len(group.placements) for _, group in rest)
        size = in_bytes(sum(group.bytes for _, group in rest))
        yield f"  {arrays} more arrays ({size}): task.parameters=all lists them"


def _why_whole(plan: Plan, placement: Placement) -> tuple[str, str]:
    """Return the reason why FSDP does not shard a parameter, and the settings that would shard it."""
    way = split_with(placement, plan.run.parallel, plan.sizes)
    return placement.whole_because or "", f"would be sharded with {way}" if way else "cannot be sharded"


def _spec(placement: Placement) -> str:
    return f"({','.join(str(axis or '-') for axis in placement.spec)})"


# ---- cost of a step


def _memory(plan: Plan) -> Iterator[str]:
    memory, device = plan.memory, plan.device
    scale = 24 / max(device.memory_bytes, memory.total)
    sizes = [(label, getattr(memory, kind)) for kind, label in MEMORY_KINDS.items()]
    rows = [(label, gib(size), "#" * round(scale * size)) for label, size in sizes]
    share = "" if device.memory_fraction == 1 else f"{device.memory_fraction:.0%} of {device.memory_gib:g}"
    yield f"peak memory per device in GiB, during {memory.moment}:"
    last = [("total", gib(memory.total), ""), ("available", gib(device.memory_bytes), share)]
    yield from table([*rows, *last], left=(0, 2))


def _work(plan: Plan) -> Iterator[str]:
    counts = plan.counts
    yield f"work per device and step: {tera(counts.flops)} TFLOP"
    parts = [f"{tera(flops)} in {dtype} products" for dtype, flops in counts.product_flops.items()]
    yield f"  {', '.join([*parts, f'{tera(counts.other_flops)} in other operations'])}"
    if counts.open_loops:
        yield f"  while loops with an unknown number of iterations, each counted once: {counts.open_loops}"
    yield from (f"  {line}" for line in unknown_note(plan))


def unknown_note(plan: Plan) -> Iterator[str]:
    """Yield a note on primitives that the planner does not know, if there are any."""
    if names := plan.counts.unknown:
        yield f"primitives not known to the planner, counted as one operation per element: {', '.join(names)}"


def _communication(plan: Plan) -> Iterator[str]:
    rows = [
        (
            "+".join(row.axes),
            f"{row.count:,}",
            gib(row.within_hosts),
            gib(row.across_hosts),
            "" if row.seconds is None else milliseconds(row.seconds),
            f"{row.operation} of {gib(row.bytes)} GiB ({row.dtype})",
        )
        for row in step_traffic(plan.counts, plan.sizes, plan.across_hosts, plan.device)
    ]
    if rows:
        host = _host_name(plan)
        yield "communication per device and step, in GiB:"
        head = ("mesh axis", "times", f"within {host}", f"across {host}s", "ms", "operation")
        yield from table([head, *rows], left=(0, 5))


def _time(plan: Plan) -> Iterator[str]:
    time = plan.time
    if time is None:
        yield f"step time: unknown, because no speeds are known for {plan.device.name}"
        return
    parts = ", ".join(f"{axes} {in_ms(seconds)}" for axes, seconds in time.network.items())
    network = in_ms(sum(time.network.values())) + (f" ({parts})" if len(time.network) > 1 else "")
    yield _bound(plan)
    yield f"  matrix products {in_ms(time.compute)}, memory {in_ms(time.memory)}, network {network}"
    config = plan.run.model.model_config
    dtype = str(config.get("dtype", "float32")) if config is not None else "float32"
    model = 6 * plan.num_parameters * plan.tokens / plan.num_devices / product_rate(plan.device, dtype)
    yield f"  model FLOPs utilization (MFU): at most {model / time.seconds:.0%}"
    yield f"  (6 FLOP per parameter and token would take {in_ms(model)} in {dtype})"


def _bound(plan: Plan) -> str:
    """Return the lower bound of the step time as one line."""
    assert plan.time is not None and plan.tokens_per_second is not None
    return (
        f"a step takes {in_ms(plan.time.seconds)} or more, bound by {plan.time.bound_by}: "
        f"at most {plan.tokens_per_second:,.0f} tokens/s, {plan.tokens_per_second / plan.num_devices:,.0f} per device"
    )


def _host_name(plan: Plan) -> str:
    """Return the name of a group of devices with fast links: `slice` for TPUs, otherwise `host`."""
    return {"tpu": "slice"}.get(plan.device.platform, "host")


# ---- layouts and changes


def search_report(found: Search) -> str:
    """Return a table of the best layouts, with the overrides that select them."""
    tried = (
        f"{found.tried:,} valid and {len(found.refused):,} invalid layouts on {found.num_devices} x {found.device.name}"
    )
    lines = [f"{tried}; {len(found.fitting):,} fit in {in_bytes(found.limit)}"]
    head = ("", "GiB", "ms", "bound by", "overrides that select the layout")
    rows = [
        (
            str(number),
            gib(plan.memory.total),
            "" if plan.time is None else milliseconds(plan.time.seconds),
            "" if plan.time is None else plan.time.bound_by,
            " ".join(layout_overrides(plan.run, found.run)) or "(the default layout)",
        )
        for number, plan in enumerate(found.best, 1)
    ]
    if rows:
        lines += [f"the fastest {len(rows)}:", *table([head, *rows], left=(3, 4))]
    return "\n".join(lines)


def changes_report(changes: Sequence[Change]) -> Iterator[str]:
    """Yield the lines of a table of changes that would make the run fit, one change per line."""
    if not changes:
        return
    yield "the run would fit with one of these changes:"
    rows = []
    for change in changes:
        time = change.cost.time
        speed = "" if time is None else f"{in_ms(time.seconds)} per step"
        rows.append((f"  {in_bytes(change.needed)}", speed, " ".join(change.overrides)))
    yield from table(rows, left=(2,))
