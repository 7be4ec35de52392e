"""Why a run that does not fit is refused."""

from __future__ import annotations

from xlstm_hydra.problems import Problem

from ._changes import changes_that_fit
from ._error import PlanError
from ._plan import Plan
from ._units import in_bytes


def too_large(plan: Plan, ways_out: bool = True) -> Problem:
    """What a step needs, what there is, and, in `ways_out`, what would fit, which takes 2 s to find."""
    ignore, number = plan.run.trainer.ignore_plan, plan.num_devices
    here = f"each of the {number} devices" if number > 1 else "the device"
    share = ", its share of the memory here" if plan.device.platform == "cpu" else ""
    needed, there = in_bytes(plan.memory.total), in_bytes(plan.device.memory_bytes)
    rule = f"a step needs {needed} on a device, and {here} ({plan.device.name}) has {there}{share}"
    fix = "" if ignore else f"{_ways_out(plan) if ways_out else ''}{{trainer.ignore_plan}}=true tries it all the same."
    return Problem({"trainer.ignore_plan": ignore}, rule, fix)


def _ways_out(plan: Plan) -> str:
    try:
        ways = [" ".join(change.overrides) for change in changes_that_fit(plan)]
    except PlanError:  # that of the run is known, and counts
        return ""
    if ways:
        return f"It fits with {', or with '.join(ways)}. "
    return "No other layout or batch is enough; xlstm-hydra task=plan with task.num_devices=... tells what would be. "
