"""The config values that a plan and a compiled step depend on."""

from __future__ import annotations

from typing import Any

from xlstm_hydra.configs import ConfigDict, RunConfig, effects_of


def plan_key(run: RunConfig) -> str:
    """Return a string that is equal for runs with the same plan and the same compiled step on the same devices.

    Fields without metadata are included, so new fields are included by default.
    """
    return repr(sorted((group, kept) for group, config in run.groups().items() if (kept := _compiled_in(config))))


def _compiled_in(config: ConfigDict) -> dict[str, Any]:
    """Return the values that the compiled step depends on. A value that is passed to the step as an argument is
    replaced by its truth value, which turns a feature on or off."""
    effects = effects_of(type(config)).items()
    kept = {name: effect for name, effect in effects if effect.compiled or effect.traced}
    values = config.to_dict() if kept else {}
    return {name: bool(values[name]) if effect.traced else values[name] for name, effect in kept.items()}
