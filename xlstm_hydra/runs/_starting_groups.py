"""Config groups that a new run takes from the record of a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from xlstm_hydra.codec import unchecked
from xlstm_hydra.configs import AUTO, CheckpointConfig, ConfigDict, DistributedConfig, ModelConfig, RunConfig
from xlstm_hydra.problems import show

from ._record import Record

_CACHE = "trainer.compilation_cache_dir"
_LEFT_OUT = ("task", "device")
"""Groups that are not taken from a checkpoint, because the new run has its own task and device."""


def starting_groups(record: Record) -> tuple[dict[str, ConfigDict], list[str]]:
    """Return the groups that a new run starts from, and notes about dropped values. Settings that apply only to the
    saved run, values without effect, and paths of initial weights are dropped."""
    groups = {name: config for name, config in record.groups.items() if name not in _LEFT_OUT}
    if isinstance(processes := groups.get("distributed"), DistributedConfig):
        groups["distributed"] = DistributedConfig(name="auto", device_order=processes.device_order)
    notes: list[str] = []
    if isinstance(saved := groups.get("checkpoint"), CheckpointConfig):
        groups["checkpoint"] = dataclasses.replace(saved, restore=None, lenient=False, init_from=None)
        if saved.init_from is not None:
            text = "is ignored: weights are not read from a recorded path. To start from these weights, set it again"
            notes.append(f"checkpoint.init_from={show(saved.init_from)} {text}")
    groups, others = without_unused(groups)
    return groups, [*notes, *others]


def without_unused(recorded: Mapping[str, ConfigDict]) -> tuple[dict[str, ConfigDict], list[str]]:
    """Replace every value without effect with the neutral value that the rules between groups require, and return the
    groups with a note about each replaced value. Records of other programs contain values without effect.

    A recorded compilation cache folder is also dropped, because the compiled programs in it would run here and may come
    from someone else."""
    groups, notes = dict(recorded), []
    if (folder := _recorded_cache(groups)) is not None:
        _set(groups, _CACHE, AUTO)
        rule = "compiled programs are not loaded from a recorded folder"
        notes.append(f"{_CACHE}={show(folder)} is reset to {AUTO}: {rule}")
    while unused := _unused_values(groups):
        for key, (value, rule) in unused.items():
            notes.append(f"{key}={show(_get(groups, key))} is reset to {show(value)}: {rule}")
            _set(groups, key, value)
    return groups, notes


def _recorded_cache(groups: Mapping[str, ConfigDict]) -> str | None:
    folder = _get(groups, _CACHE) if "trainer" in groups else None
    return None if folder == AUTO else folder


def _unused_values(groups: Mapping[str, ConfigDict]) -> dict[str, tuple[Any, str]]:
    """Return the neutral value, and the rule that requires it, for every value without effect, by absolute key."""
    run = unchecked(RunConfig, {name: config for name, config in groups.items() if name != "parallel"})
    problems = [problem for problem in run.rules() if problem.unused_keys]
    return {
        key: (value, problem.with_full_keys(problem.rule))
        for problem in problems[:1]
        for key, value in problem.unused_keys.items()
    }


def _owner(groups: Mapping[str, ConfigDict], group: str) -> Any:
    model = groups["model"]
    assert isinstance(model, ModelConfig)
    return {"model": model.model_config, "parallel": model.parallel}.get(group) or groups[group]


def _get(groups: Mapping[str, ConfigDict], key: str) -> Any:
    group, _, name = key.partition(".")
    return getattr(_owner(groups, group), name)


def _set(groups: dict[str, ConfigDict], key: str, value: Any) -> None:
    group, _, name = key.partition(".")
    changed, model = dataclasses.replace(_owner(groups, group), **{name: value}), groups["model"]
    if group == "model":
        groups["model"] = dataclasses.replace(model, model_config=changed)
    elif group == "parallel":
        groups |= {"parallel": changed, "model": dataclasses.replace(model, parallel=changed)}
    else:
        groups[group] = changed
