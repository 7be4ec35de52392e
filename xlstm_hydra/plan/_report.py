"""Plans, layouts and changes as text: what `task=plan` prints, and the few lines that a training run begins with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from xlstm_hydra._table import gib, in_bytes, in_ms, milliseconds, table, tera
from xlstm_hydra.parallel import Placement, split_with

from ._changes import Change
from ._plan import Plan, product_rate, step_traffic
from ._search import Search, layout_overrides

MEMORY_KINDS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "kept for the backward pass",
    "gathered": "gathered weights in flight",
    "logits": "logits and loss",
    "working": "intermediate results",
    "batch": "batch",
}
"""What memory is needed for, as `Memory` names it, and in words."""

_WHOLE_LINES = 6


def report(plan: Plan, parameters: str = "modules") -> str:
    """The whole plan, but for the verdict.

    Args:
        plan: the plan.
        parameters: whether the table of parameters has a line for each of the `modules`, or `all`, or `none` is shown.
    """
    parts = [_head(plan), _parameters(plan, parameters), _memory(plan), _work(plan), _communication(plan), _time(plan)]
    texts = ("\n".join(lines) for lines in parts)
    return "\n\n".join(text for text in texts if text)


def summary(plan: Plan) -> list[str]:
    """The plan in two lines, and a note on what it does not know."""
    memory, device = plan.memory, plan.device
    largest = sorted(MEMORY_KINDS, key=lambda kind: -getattr(memory, kind))[:3]
    parts = ", ".join(f"{MEMORY_KINDS[kind]} {in_bytes(getattr(memory, kind))}" for kind in largest)
    there = f"{in_bytes(memory.total)} on a device that has {in_bytes(device.memory_bytes)} ({device.name})"
    lines = [
        f"memory: {there}, most in {memory.moment} ({parts}, ...): {'fits' if plan.fits else 'does not fit'}",
    ]
    if plan.time is not None:
        lines.append(f"time: {_bound(plan)}")
    return [*lines, *_unknown(plan)]


def verdict(plan: Plan) -> str:
    """Whether it fits, and by how much."""
    capacity, share = plan.device.memory_bytes, abs(plan.headroom) / plan.device.memory_bytes
    usable = f"the {in_bytes(capacity)} that a program can use ({plan.device.name})"
    if plan.fits:
        return f"fits: {in_bytes(plan.headroom)} ({share:.0%}) of {usable} stay free"
    return f"does not fit: needs {in_bytes(-plan.headroom)} ({share:.0%}) more than {usable}"


def _head(plan: Plan) -> Iterator[str]:
    run, device, sizes = plan.run, plan.device, plan.sizes
    name = run.model.class_path().rpartition(".")[2]
    optimizer, trainer = run.optimizer.name, run.trainer
    yield f"plan of {name} with {plan.num_parameters:,} parameters, {optimizer}"
    host = _host_name(plan)
    hosts = f"{plan.num_hosts} {host}{'s' if plan.num_hosts > 1 else ''}"
    across = f"{' and '.join(plan.across_hosts) or 'no axis'} cross{'' if len(plan.across_hosts) > 1 else 'es'} {host}s"
    yield f"devices  {plan.num_devices} x {device.name}, {device.devices_per_host} to a {host}: {hosts}"
    yield f"mesh     {' '.join(f'{axis}={size}' for axis, size in sizes.items())}; {across}"
    data, fsdp, pipeline, _ = sizes.values()
    rows = trainer.batch_size // (data * fsdp)
    parts = f" in {trainer.gradient_accumulate_steps} parts" if trainer.gradient_accumulate_steps > 1 else ""
    parts += (
        ", the fewest that the layout can use" if trainer.batch_size == trainer.batch_unit(data, fsdp, pipeline) else ""
    )
    yield (
        f"batch    {trainer.batch_size:,} x {plan.tokens // trainer.batch_size:,} tokens = {plan.tokens:,} in a step; "
        f"{rows} {'row' if rows == 1 else 'rows'} on a device{parts}"
    )
    parallel = run.parallel
    if parallel.remat:
        kept = "" if trainer.remat_policy == "nothing" else f", which keep {trainer.remat_policy}"
        yield f"remat    {', '.join(parallel.remat)}{kept}"
    if pipeline > 1:
        count = run.trainer.microbatches(data, fsdp, pipeline)
        yield f"pipeline {pipeline} stages, {count} microbatches; a stage is idle for {plan.bubble:.1%} of the time"


# ---- parameters


@dataclass
class _Rows:
    """Parameters that share a line."""

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


def _parameters(plan: Plan, detail: str) -> Iterator[str]:
    if detail == "none":
        return
    if detail == "all":
        head = ("parameter", "shape", "spec", "GiB/device", "")
        rows = [
            (
                each.parameter.path,
                "x".join(map(str, each.parameter.shape)) or "scalar",
                _spec(each),
                gib(each.bytes_per_device),
                "" if each.fsdp_axis is not None else f"whole: {'; '.join(_why_whole(plan, each))}",
            )
            for each in plan.placements
        ]
        yield from table([head, *rows], left=(0, 1, 2, 4))
        return
    groups: dict[tuple[str, str], _Rows] = {}
    for placement in plan.placements:
        groups.setdefault(_module(placement), _Rows()).placements.append(placement)
    rows = [
        (path, module, str(len(group.placements)), f"{group.elements:,}", gib(group.bytes), group.specs)
        for (path, module), group in groups.items()
    ]
    every = _Rows(list(plan.placements))
    total = ("total", "", str(len(every.placements)), f"{every.elements:,}", gib(every.bytes), "")
    head = ("parameters", "module class", "arrays", "elements", "GiB/device", "split over")
    yield from table([head, *rows, total], left=(0, 1, 5))
    yield from _whole(plan)


def _module(placement: Placement) -> tuple[str, str]:
    """The path and the class of the module whose line a parameter is on: the outermost two are told apart."""
    parts, classes = placement.parameter.path.split("."), placement.parameter.modules
    depth = min(2, max(len(parts) - 1, 1))
    return ".".join(parts[:depth]), classes[depth - 1] if len(classes) >= depth else ""


def _whole(plan: Plan) -> Iterator[str]:
    """Why parameters are whole, those with the same reason together, the largest first."""
    if plan.sizes[plan.run.parallel.fsdp_axis_name] == 1:
        yield "FSDP splits none of them: parallel.fsdp_axis_size is 1 on this mesh, and 2 or more would"
        return
    reasons: dict[tuple[str, str], _Rows] = {}
    for placement in plan.placements:
        if placement.fsdp_axis is None:
            reasons.setdefault(_why_whole(plan, placement), _Rows()).placements.append(placement)
    ordered = sorted(reasons.items(), key=lambda item: -item[1].bytes)
    for reason, group in ordered[:_WHOLE_LINES]:
        many = f"{len(group.placements)} arrays" if len(group.placements) > 1 else group.placements[0].parameter.path
        yield f"whole: {many}, {in_bytes(group.bytes)}: {reason[0]}"
        yield f"       {reason[1]}"
    if rest := ordered[_WHOLE_LINES:]:
        arrays = sum(len(group.placements) for _, group in rest)
        yield f"whole: {arrays} more arrays, {in_bytes(sum(group.bytes for _, group in rest))}: see task.parameters=all"


def _why_whole(plan: Plan, placement: Placement) -> tuple[str, str]:
    """Why a parameter is whole, and what would change that."""
    way = split_with(placement, plan.run.parallel, plan.sizes)
    return placement.whole_because or "", f"split with {way}" if way else "nothing splits it"


def _spec(placement: Placement) -> str:
    return f"({','.join(str(axis or '-') for axis in placement.spec)})"


# ---- what a step needs


def _memory(plan: Plan) -> Iterator[str]:
    memory, capacity = plan.memory, plan.device.memory_bytes
    rows = [
        (words, gib(getattr(memory, kind)), _bar(getattr(memory, kind), max(capacity, memory.total)))
        for kind, words in MEMORY_KINDS.items()
    ]
    usable = (
        "" if plan.device.memory_fraction == 1 else f"{plan.device.memory_fraction:.0%} of {plan.device.memory_gib:g}"
    )
    last = [("total", gib(memory.total), ""), ("usable", gib(capacity), usable)]
    yield from table([("memory of a device", "GiB", f"most is needed in {memory.moment}"), *rows, *last], left=(0, 2))


def _bar(size: int, whole: int) -> str:
    return "#" * round(40 * size / whole)


def _work(plan: Plan) -> Iterator[str]:
    counts = plan.counts
    parts = [f"{tera(flops)} in {dtype} products" for dtype, flops in counts.product_flops.items()]
    parts.append(f"{tera(counts.other_flops)} beside products")
    yield f"work of a device in a step: {tera(counts.flops)} TFLOP ({', '.join(parts)})"
    if counts.open_loops:
        yield f"  loops that end by a condition, of each of which one round is counted: {counts.open_loops}"
    yield from (f"  {line}" for line in _unknown(plan))


def _unknown(plan: Plan) -> Iterator[str]:
    """A note on primitives that the planner does not know."""
    if names := plan.counts.unknown:
        yield f"primitives not known to the planner, counted as one operation per element: {', '.join(names)}"


def _communication(plan: Plan) -> Iterator[str]:
    rows = [
        (
            "+".join(row.axes),
            row.operation,
            row.dtype,
            f"{row.count:,}",
            gib(row.bytes),
            gib(row.within_hosts),
            gib(row.across_hosts),
            "" if row.seconds is None else milliseconds(row.seconds),
        )
        for row in step_traffic(plan.counts, plan.sizes, plan.across_hosts, plan.device)
    ]
    if not rows:
        return
    host = _host_name(plan)
    sent = (f"sent in {host}", f"to other {host}s")
    yield from table([("communication in GiB", "operation", "type", "times", "in all", *sent, "ms"), *rows], (0, 1, 2))


def _time(plan: Plan) -> Iterator[str]:
    time = plan.time
    if time is None:
        yield f"the speeds of {plan.device.name} are not known, so no time is told"
        return
    parts = ", ".join(f"{axes} {in_ms(seconds)}" for axes, seconds in time.network.items())
    network = in_ms(sum(time.network.values())) + (f" ({parts})" if len(time.network) > 1 else "")
    yield _bound(plan)
    yield f"  each alone: products {in_ms(time.compute)}, memory {in_ms(time.memory)}, network {network}"
    config = plan.run.model.model_config
    dtype = str(config.get("dtype", "float32")) if config is not None else "float32"
    model = 6 * plan.num_parameters * plan.tokens / plan.num_devices / product_rate(plan.device, dtype)
    share = f"model FLOPs utilization (MFU) is at most {model / time.seconds:.0%}"
    yield f"  6 FLOP per parameter and token, at the rate of {dtype}: {in_ms(model)}; {share}"


def _bound(plan: Plan) -> str:
    """The lower bound of the time of a step, in a line."""
    assert plan.time is not None and plan.tokens_per_second is not None
    return (
        f"a step takes {in_ms(plan.time.seconds)} or more, bound by {plan.time.bound_by}: "
        f"at most {plan.tokens_per_second:,.0f} tokens/s, {plan.tokens_per_second / plan.num_devices:,.0f} per device"
    )


def _host_name(plan: Plan) -> str:
    """What the fast links connect."""
    return {"tpu": "slice"}.get(plan.device.platform, "host")


# ---- layouts and changes


def search_report(found: Search) -> str:
    """The best layouts, each with what selects it."""
    tried = (
        f"{found.tried:,} layouts of {found.num_devices} x {found.device.name}, {len(found.refused):,} more are invalid"
    )
    fit = f"{len(found.fitting):,} fit in {in_bytes(found.limit)}"
    head = ("", "GiB", "ms", "bound by", "typed instead of the layout")
    rows = [
        (
            str(number),
            gib(plan.memory.total),
            "" if plan.time is None else milliseconds(plan.time.seconds),
            "" if plan.time is None else plan.time.bound_by,
            " ".join(layout_overrides(plan.run, found.run)) or "what is the default",
        )
        for number, plan in enumerate(found.best, 1)
    ]
    lines = [f"{tried}; {fit}"]
    if rows:
        lines += [f"the fastest {len(rows)}:", *table([head, *rows], left=(3, 4))]
    return "\n".join(lines)


def changes_report(changes: Sequence[Change]) -> Iterator[str]:
    """What to type behind what was typed, so that the run fits."""
    if not changes:
        return
    yield "it fits with one of:"
    rows = []
    for change in changes:
        time = change.cost.time
        speed = "" if time is None else f"{in_ms(time.seconds)} a step"
        rows.append((f"  {' '.join(change.overrides)}", in_bytes(change.needed), speed))
    yield from table(rows, left=(0,))
