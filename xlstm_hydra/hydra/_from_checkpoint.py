"""Config options from a saved run: one for each group in its metadata, and `from` for all groups at once."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from xlstm_hydra._printable import printable
from xlstm_hydra.codec import dotted
from xlstm_hydra.configs import ConfigDict, ModelConfig
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import (
    RESTORE,
    attributed_to,
    checkpoints_of_run,
    find_checkpoint,
    record_of,
    refuse_to_continue,
    refused,
    run_of,
    saved_checkpoints,
    starting_groups,
    step_of,
)

from ._hydra_part import SEARCH_PATH
from ._omegaconf import structured
from ._quote import as_override, literal
from ._schemas import SCHEMAS, ModelNode

ALL = "from"
"""Group whose options select the saved option of every other group."""

NAME = "ckpt"
"""Option of the checkpoint that the source names. For other steps of the run it is `ckpt@STEP`."""

_DEFAULT = "from@_global_"
"""Entry for `from` in the defaults list of the primary config. Recipes come later and override its values."""

_RESUME = "resume"
_SIMULATED = "trainer.simulated_devices"
_LENIENT = "?lenient"
"""Suffix of a checkpoint address: unknown fields of its metadata are ignored."""


class SavedOptions:
    """Config options from the checkpoints of a run, by paths such as `model/ckpt`."""

    def __init__(self, source: str, key: str, *, lenient: bool = False) -> None:
        """Find the checkpoints, and read the metadata of the one that is named.

        Args:
            source: `RUN`, `RUN@STEP`, or the folder of a checkpoint.
            key: of the argument that names it, for messages.
            lenient: ignore unknown fields of the metadata, with a warning.

        Raises:
            ConfigError: the checkpoint does not exist or cannot be read.
        """
        self._key, self._lenient = key, lenient
        if not source:
            raise refused(source, "the run folder is missing", "Write ckpt://RUN.", key)
        self.checkpoint = find_checkpoint(source, key)
        if any("\ud800" <= letter <= "\udfff" for letter in str(self.checkpoint)):
            text = "its path is not valid UTF-8, so it cannot be saved in the config of a run"
            raise refused(str(self.checkpoint), text, "Rename the folder, or create a symbolic link to it.", key)
        run = run_of(self.checkpoint)
        saved = {} if run is None else saved_checkpoints(run)
        self._checkpoints = {NAME: self.checkpoint} | {f"{NAME}@{step}": path for step, path in saved.items()}
        self._read: dict[str, tuple[dict[str, DictConfig], list[str], str]] = {}
        groups = [ALL, *self._options(NAME)]
        self.paths = tuple(f"{group}/{name}" for group in groups for name in self._checkpoints)

    @classmethod
    def at(cls, address: str, key: str) -> SavedOptions:
        """Find the checkpoints of an address without its scheme: a saved run, and `?lenient` to ignore unknown
        fields."""
        return cls(address.removesuffix(_LENIENT), key, lenient=address.endswith(_LENIENT))

    @property
    def address(self) -> str:
        """Search path of the named checkpoint, valid in any folder and after further checkpoints have been saved."""
        return f"{NAME}://{self.checkpoint}{_LENIENT if self._lenient else ''}"

    @property
    def notes(self) -> list[str]:
        """Parts of the metadata that the options of the named checkpoint leave out, with the reasons."""
        return self._read[NAME][1]

    @property
    def writer(self) -> str:
        """Program that wrote the named checkpoint: see `Record.writer`."""
        return self._read[NAME][2]

    def load(self, path: str) -> tuple[DictConfig, str | None]:
        """Return the config of an option, and the package of its header.

        Raises:
            ConfigError: its checkpoint cannot be read, or its metadata lacks the group.
        """
        group, _, name = path.partition("/")
        options = self._options(name)
        if group == ALL:
            return OmegaConf.create({"defaults": [{f"override /{other}": name} for other in options]}), "_global_"
        if group not in options:
            rule = f"its metadata has no group {group}"
            raise refused(str(self._checkpoints[name]), rule, "Choose another step.", self._key)
        return copy.deepcopy(options[group]), None

    def _options(self, name: str) -> dict[str, DictConfig]:
        """Config of each group in the metadata of a checkpoint."""
        if name not in self._read:
            checkpoint = self._checkpoints[name]
            record = record_of(checkpoint, self._key, lenient=self._lenient)
            with attributed_to(self._key, checkpoint):
                groups, notes = starting_groups(record)
                nodes = {group: _node(config, checkpoint) for group, config in groups.items()}
            self._read[name] = nodes, notes, record.writer
        return self._read[name][0]


def overrides_of(key: str, source: str, others: list[str], searched: list[Any], *, lenient: bool) -> list[str]:
    """Return the overrides that replace `--from RUN` or `resume=RUN`, followed by the others. Parts of the saved config
    that are left out are reported on stderr.

    Args:
        key: `--from` or `resume`.
        source: the saved run: `RUN`, `RUN@STEP`, or the folder of a checkpoint.
        others: the other overrides.
        searched: other entries of `hydra.searchpath`.
        lenient: ignore unknown fields of the metadata.

    Raises:
        ConfigError: the checkpoint does not exist, or cannot be read or continued.
    """
    saved = SavedOptions(source, key, lenient=lenient)
    for note in saved.notes:
        print(printable(f"xlstm-hydra: {key} {source}: {note}"), file=sys.stderr)
    others = [_in_defaults_list(text) for text in others]
    chosen = [] if any(text.startswith(f"{_DEFAULT}=") for text in others) else [f"{_DEFAULT}={NAME}"]
    continued = _planned(others)
    if key == _RESUME:
        refuse_to_continue(saved.writer, source, key)
        continued = _continued(saved.checkpoint, others, names_run=bool(checkpoints_of_run(source, key)))
        continued += [as_override("checkpoint.lenient", True)] if lenient else []
    return [as_override(SEARCH_PATH, [*searched, saved.address]), *chosen, *continued, *others]


def _continued(checkpoint: Path, others: list[str], names_run: bool) -> list[str]:
    """Return the overrides that continue a saved run, besides its config. Hydra's record of the first start is kept.

    If no step was named, the run continues from its newest checkpoint that is intact.
    """
    typed = {text.lstrip("+").partition("=")[0] for text in others}
    if RESTORE in typed:
        fix = f"Remove one of them. Only {_RESUME} also restores the config of the run."
        raise ConfigError([Problem.about(f"{_RESUME} and {RESTORE}", "cannot be given together", fix)])
    run = run_of(checkpoint)
    source = checkpoint if run is None or not names_run else run
    settings: dict[str, Any] = {RESTORE: str(source), "checkpoint.init_from": None}
    if "hydra.run.dir" not in typed:
        if run is None:
            text = f"{checkpoint} is not inside a run folder, so there is no folder to continue in"
            fix = "Set one with hydra.run.dir=DIR."
            raise ConfigError([Problem.about(_RESUME, text, fix)])
        settings["hydra.run.dir"] = str(run)
        settings["hydra.output_subdir"] = f".hydra/resumed_at_{step_of(checkpoint, _RESUME)}"
    return [as_override(key, value) for key, value in settings.items()]


def _planned(others: list[str]) -> list[str]:
    """Return the overrides for the plan of a saved run: it does not use the simulated devices of that run."""
    keys = {text.partition("=")[0] for text in others}
    is_left = "task=plan" in others and _SIMULATED not in keys
    return [f"{_SIMULATED}=null"] if is_left else []


def _in_defaults_list(text: str) -> str:
    """Rewrite `from=...`, such as for another step, to the entry in the defaults list."""
    key, equals, value = text.partition("=")
    return f"{_DEFAULT}={value}" if equals and key in ("from", "+from") else text


def _node(config: ConfigDict, checkpoint: Path) -> DictConfig:
    """Node of a config, merged into its schema if it is one of ours."""
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
    """Recorded values with escaped interpolations. A `_target_` is rejected: a checkpoint must not call anything."""
    fields = literal(config.to_dict())
    if called := [key for key, value in fields.items() if _has_target(value)]:
        text = "contains a _target_, which is not allowed in a checkpoint"
        raise ConfigError([Problem.about(called[0], text)])
    return fields


def _has_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_has_target, value.values()))
    return isinstance(value, list) and any(map(_has_target, value))


def _on_schema(config_class: type, values: dict[str, Any]) -> DictConfig:
    schema = next((node for node in SCHEMAS.values() if config_class in (node, *node.__bases__)), None)
    return OmegaConf.create(values) if schema is None else cast(DictConfig, OmegaConf.merge(structured(schema), values))
