"""A plan as JSON values: what the run folder keeps of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from xlstm_hydra.parallel import Placement

from ._changes import Change
from ._plan import Plan
from ._time import step_traffic
from ._whole import split_with

FORMAT, VERSION = "xlstm_hydra_plan", 1

PLAN_FILE, SEARCH_FILE = "plan.json", "search.json"
"""What a run folder keeps: all of a plan, and all layouts of a search."""


def to_dict(plan: Plan, changes: Sequence[Change] = ()) -> dict[str, Any]:
    """All of a plan as values that JSON has. Sizes are in bytes, times in seconds.

    Args:
        plan: what is told.
        changes: with which it fits.
    """
    config = plan.run.model.model_config
    return {
        "format": FORMAT,
        "version": VERSION,
        "fits": plan.fits,
        "headroom": plan.headroom,
        "num_devices": plan.num_devices,
        "num_hosts": plan.num_hosts,
        "device": plan.device.to_dict() | {"memory_bytes": plan.device.memory_bytes},
        "mesh": dict(plan.sizes),
        "across_hosts": dict(plan.across_hosts),
        "model": {"model_class": plan.run.model.class_path(), **({} if config is None else config.to_dict())},
        "parallel": plan.run.parallel.to_dict(),
        "optimizer": plan.run.optimizer.to_dict(),
        "trainer": plan.run.trainer.to_dict(),
        "tokens": plan.tokens,
        "parameters": {
            "elements": plan.num_parameters,
            "bytes": sum(math.prod(each.parameter.shape) * each.parameter.itemsize for each in plan.placements),
            "bytes_per_device": sum(each.bytes_per_device for each in plan.placements),
            "arrays": [_array(plan, placement) for placement in plan.placements],
        },
        "memory": asdict(plan.memory) | {"total": plan.memory.total},
        "work": {
            "product_flops": dict(plan.counts.product_flops),
            "other_flops": plan.counts.other_flops,
            "transcendentals": plan.counts.transcendentals,
            "traffic_bytes": plan.counts.traffic,
            "open_loops": plan.counts.open_loops,
            "unknown_primitives": list(plan.counts.unknown),
        },
        "communication": list(_exchanges(plan)),
        "bubble": plan.bubble,
        "time": _time(plan),
        "changes": [
            {"overrides": list(change.overrides), "num_devices": change.num_devices, "memory": change.needed}
            for change in changes
        ],
    }


def missing(reason: str) -> dict[str, Any]:
    """What a run folder keeps in place of a plan if none can be made."""
    return {"format": FORMAT, "version": VERSION, "no_plan": reason}


def _array(plan: Plan, placement: Placement) -> dict[str, Any]:
    parameter = placement.parameter
    whole = placement.fsdp_axis is None
    return {
        "path": parameter.path,
        "shape": list(parameter.shape),
        "dtype": parameter.dtype,
        "spec": list(placement.spec),
        "shards": placement.shards,
        "bytes_per_device": placement.bytes_per_device,
        "whole_because": placement.whole_because,
        "split_with": split_with(placement, plan.run.parallel, plan.sizes) if whole else None,
    }


def _exchanges(plan: Plan) -> Iterator[dict[str, Any]]:
    for row in step_traffic(plan.counts, plan.sizes, plan.across_hosts, plan.device):
        yield asdict(row) | {"axes": list(row.axes)}


def _time(plan: Plan) -> dict[str, Any] | None:
    time = plan.time
    if time is None:
        return None
    own = {"compute": time.compute, "memory": time.memory, "network": dict(time.network)}
    return own | {"seconds": time.seconds, "bound_by": time.bound_by, "tokens_per_second": plan.tokens_per_second}
