"""What a plan and a compiled step depend on."""

from __future__ import annotations

from typing import Any

from xlstm_hydra.configs import ConfigDict, RunConfig, effects_of


def plan_key(run: RunConfig) -> str:
    """Return a text that is the same for runs whose plans are the same on the same devices, which are given to a plan
    apart from the run.

    A field without metadata is in it, so that a field that is new counts.
    """
    return repr(sorted((group, kept) for group, config in run.groups().items() if (kept := _compiled_in(config))))


def _compiled_in(config: ConfigDict) -> dict[str, Any]:
    """The values that the compiled step depends on. Of a number that it has as an argument, whether it is on."""
    effects = effects_of(type(config)).items()
    kept = {name: effect for name, effect in effects if effect.compiled or effect.traced}
    values = config.to_dict() if kept else {}
    return {name: bool(values[name]) if effect.traced else values[name] for name, effect in kept.items()}
