"""The options that a saved run gives: each group that its checkpoints recorded, and `from` for all of them at once."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xlstm_hydra.codec import dotted, unchecked
from xlstm_hydra.configs import AUTO, CheckpointConfig, ConfigDict, DistributedConfig, ModelConfig, RunConfig
from xlstm_hydra.problems import ConfigError, Problem, show
from xlstm_hydra.runs import (
    Record,
    find_checkpoint,
    known_step,
    record_of,
    refused,
    run_of,
    sibling_checkpoints,
    told_under,
)

from ._quote import literal
from ._register import SCHEMAS, ModelNode
from ._schema import structured

ALL = "from"
"""The group whose options choose that of every other group."""

NAME = "ckpt"
"""The option of the checkpoint that the place names; that of another step is `ckpt@STEP`."""

_CACHE = "trainer.compilation_cache_dir"
_LENIENT = "?lenient"
"""What stands behind the address of a checkpoint whose record may have unknown fields."""

_LEFT_OUT = ("task", "device")
"""Groups that a run from a checkpoint has of its own: what it does, and on what, is not what the saved run did."""


class SavedOptions:
    """The options that the checkpoints of a run give, by paths such as `model/ckpt`."""

    def __init__(self, place: str, key: str, *, lenient: bool = False) -> None:
        """Find the checkpoints, and read the metadata of the one that is named.

        Args:
            place: `RUN`, `RUN@STEP`, or the folder of a checkpoint.
            key: where the user typed it, for messages.
            lenient: ignore fields of the records that are unknown, with a warning.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        self._key, self._lenient = key, lenient
        if not place:
            raise refused(place, "names no run", "Write ckpt:// and the folder of a run behind it.", key)
        self.checkpoint = find_checkpoint(place, key)
        if any("\ud800" <= letter <= "\udfff" for letter in str(self.checkpoint)):
            text = "its path is not valid UTF-8, and the config of a run is saved as UTF-8 text"
            raise refused(str(self.checkpoint), text, "Rename it, or link to the folder that has that name.", key)
        self._checkpoints = {NAME: self.checkpoint} | {
            f"{NAME}@{step}": checkpoint for step, checkpoint in sibling_checkpoints(self.checkpoint).items()
        }
        self._read: dict[str, tuple[dict[str, DictConfig], list[str], str]] = {}
        groups = [ALL, *self._options(NAME)]
        self.paths = tuple(f"{group}/{name}" for group in groups for name in self._checkpoints)

    @classmethod
    def at(cls, address: str, key: str) -> SavedOptions:
        """Find the checkpoints of an address without its scheme: a place, and `?lenient` behind it if its record may
        have unknown fields."""
        return cls(address.removesuffix(_LENIENT), key, lenient=address.endswith(_LENIENT))

    @property
    def address(self) -> str:
        """The search path that leads to the same checkpoint from any folder, also when later ones have been saved."""
        return f"{NAME}://{self.checkpoint}{_LENIENT if self._lenient else ''}"

    @property
    def notes(self) -> list[str]:
        """What the options of the named checkpoint leave out of what it recorded, and why."""
        return self._read[NAME][1]

    @property
    def writer(self) -> str:
        """Which program wrote the named checkpoint: see `Record.writer`."""
        return self._read[NAME][2]

    def load(self, path: str) -> tuple[DictConfig, str | None]:
        """The config of an option, and the package that its header would name.

        Raises:
            ConfigError: its checkpoint cannot be read, or recorded no such group.
        """
        group, _, name = path.partition("/")
        options = self._options(name)
        if group == ALL:
            return OmegaConf.create({"defaults": [{f"override /{other}": name} for other in options]}), "_global_"
        if group not in options:
            raise refused(str(self._checkpoints[name]), f"recorded no {group}", "Choose another step.", self._key)
        return copy.deepcopy(options[group]), None

    def _options(self, name: str) -> dict[str, DictConfig]:
        """What a checkpoint recorded, as the option of each group."""
        if name not in self._read:
            checkpoint = self._checkpoints[name]
            record = record_of(checkpoint, self._key, lenient=self._lenient)
            with told_under(self._key, checkpoint):
                groups, notes = starting_groups(record)
                nodes = {group: _node(config, checkpoint) for group, config in groups.items()}
            self._read[name] = nodes, notes, record.writer
        return self._read[name][0]


def starting_groups(record: Record) -> tuple[dict[str, ConfigDict], list[str]]:
    """What a new run starts from: the recorded groups without what belonged to the saved run alone, and what was left
    out of them because it has no effect or names weights elsewhere."""
    groups = {name: config for name, config in record.groups.items() if name not in _LEFT_OUT}
    if isinstance(place := groups.get("distributed"), DistributedConfig):
        groups["distributed"] = DistributedConfig(name="auto", device_order=place.device_order)
    notes: list[str] = []
    if isinstance(saved := groups.get("checkpoint"), CheckpointConfig):
        groups["checkpoint"] = dataclasses.replace(saved, restore=None, lenient=False, init_from=None)
        if saved.init_from is not None:
            text = "is left out: weights are not read from a place that was recorded. To start from them, type it"
            notes.append(f"checkpoint.init_from={show(saved.init_from)} {text}")
    groups, others = without_idle(groups)
    return groups, [*notes, *others]


def without_idle(recorded: Mapping[str, ConfigDict]) -> tuple[dict[str, ConfigDict], list[str]]:
    """The same groups with every value that has no effect at one that says so, as the rules between groups ask for, and
    a note about each. Records of other programs have such values.

    A folder of compiled programs that was recorded is left out too: they would run here, and whoever wrote the record
    may have made them."""
    groups, notes = dict(recorded), []
    if (folder := _recorded_cache(groups)) is not None:
        _set(groups, _CACHE, AUTO)
        rule = "compiled programs are not loaded from a folder that was recorded"
        notes.append(f"{_CACHE}={show(folder)} is left at {AUTO}: {rule}")
    while idle := _idle_values(groups):
        for key, (value, rule) in idle.items():
            notes.append(f"{key}={show(_get(groups, key))} is left at {show(value)}: {rule}")
            _set(groups, key, value)
    return groups, notes


def recorded_origin(file: Path) -> str | None:
    """Return the checkpoint that the model in a file of a resolved config was composed from (`--from`), as RUN@STEP if
    it lies in a run; None if there is none."""
    try:
        plain: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        place = plain["model"]["_checkpoint_"]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError, OmegaConfBaseException):
        return None
    if not isinstance(place, str):
        return None
    run, step = run_of(Path(place)), known_step(Path(place))
    return place if run is None or step is None else f"{run}@{step}"


def _recorded_cache(groups: Mapping[str, ConfigDict]) -> str | None:
    folder = _get(groups, _CACHE) if "trainer" in groups else None
    return None if folder == AUTO else folder


def _idle_values(groups: Mapping[str, ConfigDict]) -> dict[str, tuple[Any, str]]:
    """What has no effect, by its whole key: the value that says so, and the rule that asks for it."""
    run = unchecked(RunConfig, {name: config for name, config in groups.items() if name != "parallel"})
    problems = [problem for problem in run.rules() if problem.idle_keys]
    return {
        key: (value, problem.with_full_keys(problem.rule))
        for problem in problems[:1]
        for key, value in problem.idle_keys.items()
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


def _node(config: ConfigDict, checkpoint: Path) -> DictConfig:
    """A config as an option holds it: on its schema, where it has one of ours."""
    if not isinstance(config, ModelConfig):
        return _on_schema(type(config), _literal_fields(config))
    own = config.model_config
    node = {
        "_target_": ModelNode._target_,
        "model_class": config.class_path(),
        "config_class": None if own is None else dotted(type(own)),
        "parallel": "${oc.select:parallel,null}",
        "_checkpoint_": literal(str(checkpoint)),
    }
    return _on_schema(type(own), node | ({} if own is None else _literal_fields(own)))


def _literal_fields(config: ConfigDict) -> dict[str, Any]:
    """Recorded values, which nothing resolves or calls."""
    fields = literal(config.to_dict())
    if called := [key for key, value in fields.items() if _has_target(value)]:
        text = "holds a _target_, which names what is called, and a checkpoint calls nothing"
        raise ConfigError([Problem.about(called[0], text)])
    return fields


def _has_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_has_target, value.values()))
    return isinstance(value, list) and any(map(_has_target, value))


def _on_schema(config_class: type, values: dict[str, Any]) -> DictConfig:
    schema = next((node for node in SCHEMAS.values() if config_class in (node, *node.__bases__)), None)
    return OmegaConf.create(values) if schema is None else cast(DictConfig, OmegaConf.merge(structured(schema), values))
