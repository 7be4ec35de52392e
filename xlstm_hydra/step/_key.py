"""The parts of a config that a plan and a compiled step depend on."""

from __future__ import annotations

from typing import Any

from xlstm_hydra.configs import ConfigDict, RunConfig, effects_of


def plan_key(run: RunConfig) -> str:
    """Return a text that is equal for runs with the same plan and the same compiled step on the same devices.

    Fields without metadata are included, so new fields count by default.
    """
    return repr(sorted((group, kept) for group, config in run.groups().items() if (kept := _compiled_in(config))))


def _compiled_in(config: ConfigDict) -> dict[str, Any]:
    """Return the values that the compiled step depends on. For numbers that are arguments of the step, only True or
    False counts: the feature is on or off."""
    effects = effects_of(type(config)).items()
    kept = {name: effect for name, effect in effects if effect.compiled or effect.traced}
    values = config.to_dict() if kept else {}
    return {name: bool(values[name]) if effect.traced else values[name] for name, effect in kept.items()}
