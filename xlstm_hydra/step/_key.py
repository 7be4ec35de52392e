"""What a plan depends on, and what it does not."""

from __future__ import annotations

from typing import Any

from xlstm_hydra.configs import RunConfig

IDLE_GROUPS = ("task", "data", "scheduler", "checkpoint", "logger", "device")
"""Groups that change no step. The device of a plan is given to it apart from the run."""

IDLE = {
    "trainer": (
        *("max_steps", "seed", "eval_every_n_steps", "eval_batches"),
        *("simulated_devices", "compilation_cache_dir", "ignore_plan", "check_for_nan", "debug_nans"),
    ),
    "optimizer": ("eps",),
}
"""Fields of other groups that change no step."""

SWITCHES = ("lr", "beta1", "beta2", "momentum", "weight_decay", "grad_clip_norm", "grad_clip_value")
"""Fields of the optimizer of which only matters whether they are 0 or null."""


def plan_key(run: RunConfig) -> str:
    """A text that is the same for runs whose plans are the same on the same devices.

    What is not known to be idle is in it, so that a field that is new counts.
    """
    groups = {name: config.to_dict() for name, config in run.groups().items() if name not in IDLE_GROUPS}
    groups["distributed"] = {"device_order": groups["distributed"]["device_order"]}
    kept = {name: _kept(name, fields) for name, fields in groups.items()}
    return repr(sorted(kept.items()))


def _kept(group: str, fields: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in fields.items() if name not in IDLE.get(group, ())}
    if group == "optimizer":
        kept |= {name: bool(kept[name]) for name in SWITCHES if name in kept}
    return kept
