"""Config group options from the metadata of a saved run: `GROUP=ckpt` for one group, `from=ckpt` for all groups."""

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
"""Config group whose options select the saved config of every other group."""

NAME = "ckpt"
"""Name of the options from the checkpoint that the user named. Options from other steps of the run: `ckpt@STEP`."""

_DEFAULT = "from@_global_"
"""Key of the group `from` in the defaults list of the primary config. Later entries, such as `experiment`, override its
values."""

_RESUME = "resume"
_SIMULATED = "trainer.simulated_devices"
_LENIENT = "?lenient"
"""Suffix of a `ckpt://` address that ignores unknown fields in the metadata."""


class SavedOptions:
    """Config group options from the checkpoints of a run, with paths such as `model/ckpt` and `model/ckpt@200`."""

    def __init__(self, source: str, key: str, *, lenient: bool = False) -> None:
        """Find the checkpoints of a run, and read the metadata of the checkpoint named by `source`.

        Args:
            source: `RUN`, `RUN@STEP`, or a checkpoint folder.
            key: key or flag whose value is `source`, for messages.
            lenient: ignore unknown fields in the metadata, with a warning.

        Raises:
            ConfigError: the checkpoint does not exist or cannot be read.
        """
        self._key, self._lenient = key, lenient
        if not source:
            raise refused(source, "expected a run folder after ckpt://", "Write ckpt://RUN.", key)
        self.checkpoint = find_checkpoint(source, key)
        if any("\ud800" <= letter <= "\udfff" for letter in str(self.checkpoint)):
            text = "the path is not valid UTF-8, so it cannot be saved in the config of a run"
            raise refused(str(self.checkpoint), text, "Rename the folder, or create a symbolic link to it.", key)
        run = run_of(self.checkpoint)
        saved = {} if run is None else saved_checkpoints(run)
        self._checkpoints = {NAME: self.checkpoint} | {f"{NAME}@{step}": path for step, path in saved.items()}
        self._read: dict[str, tuple[dict[str, DictConfig], list[str], str]] = {}
        groups = [ALL, *self._options(NAME)]
        self.paths = tuple(f"{group}/{name}" for group in groups for name in self._checkpoints)

    @classmethod
    def at(cls, address: str, key: str) -> SavedOptions:
        """Find the checkpoints of a `ckpt://` address.

        Args:
            address: the address without `ckpt://`: a saved run, optionally followed by `?lenient`.
            key: key whose value contains the address, for messages.
        """
        return cls(address.removesuffix(_LENIENT), key, lenient=address.endswith(_LENIENT))

    @property
    def address(self) -> str:
        """`ckpt://` address of the named checkpoint. Its path is absolute and includes the step, so it remains valid in
        another current folder and when the run saves more checkpoints."""
        return f"{NAME}://{self.checkpoint}{_LENIENT if self._lenient else ''}"

    @property
    def notes(self) -> list[str]:
        """Parts of the named checkpoint's metadata that its options do not include, with the reasons."""
        return self._read[NAME][1]

    @property
    def writer(self) -> str:
        """Program that wrote the named checkpoint. See `Record.writer`."""
        return self._read[NAME][2]

    def load(self, path: str) -> tuple[DictConfig, str | None]:
        """Return the config of an option, and its package (None: the default package).

        Args:
            path: path of the option, such as `model/ckpt`.

        Raises:
            ConfigError: the checkpoint cannot be read, or its metadata does not have the group.
        """
        group, _, name = path.partition("/")
        options = self._options(name)
        if group == ALL:
            return OmegaConf.create({"defaults": [{f"override /{other}": name} for other in options]}), "_global_"
        if group not in options:
            rule = f"the metadata of this checkpoint has no group {group}"
            raise refused(str(self._checkpoints[name]), rule, "Choose another step.", self._key)
        return copy.deepcopy(options[group]), None

    def _options(self, name: str) -> dict[str, DictConfig]:
        """Return the config of each group in a checkpoint's metadata, given the option name (`ckpt` or `ckpt@STEP`)."""
        if name not in self._read:
            checkpoint = self._checkpoints[name]
            record = record_of(checkpoint, self._key, lenient=self._lenient)
            with attributed_to(self._key, checkpoint):
                groups, notes = starting_groups(record)
                nodes = {group: _node(config, checkpoint) for group, config in groups.items()}
            self._read[name] = nodes, notes, record.writer
        return self._read[name][0]


def overrides_of(key: str, source: str, others: list[str], searched: list[Any], *, lenient: bool) -> list[str]:
    """Return the overrides that are equivalent to `--from RUN` or `resume=RUN`, followed by the other overrides. Parts
    of the saved config that are not used are reported on stderr.

    Args:
        key: `--from` or `resume`.
        source: the saved run: `RUN`, `RUN@STEP`, or a checkpoint folder.
        others: the other command-line overrides.
        searched: other entries of `hydra.searchpath`.
        lenient: ignore unknown fields in the metadata.

    Raises:
        ConfigError: the checkpoint does not exist or cannot be read, or the run cannot be resumed.
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
    """Return the overrides for `resume`, except those that restore the config. `hydra.output_subdir` is changed, so the
    `.hydra` folder of the original start is kept.

    Args:
        checkpoint: the checkpoint to continue from.
        others: the other command-line overrides.
        names_run: True if the user named a run without a step. The run then continues from its newest intact
            checkpoint, which may be older than `checkpoint`.
    """
    typed = {text.lstrip("+").partition("=")[0] for text in others}
    if RESTORE in typed:
        fix = f"Remove one of them. Unlike checkpoint.restore, {_RESUME} also restores the config of the run."
        raise ConfigError([Problem.about(f"{_RESUME} and {RESTORE}", "cannot be given together", fix)])
    run = run_of(checkpoint)
    source = checkpoint if run is None or not names_run else run
    settings: dict[str, Any] = {RESTORE: str(source), "checkpoint.init_from": None}
    if "hydra.run.dir" not in typed:
        if run is None:
            text = f"the checkpoint {checkpoint} is not inside a run folder, so the run folder is unknown"
            fix = "Set the run folder with hydra.run.dir=DIR."
            raise ConfigError([Problem.about(_RESUME, text, fix)])
        settings["hydra.run.dir"] = str(run)
        settings["hydra.output_subdir"] = f".hydra/resumed_at_{step_of(checkpoint, _RESUME)}"
    return [as_override(key, value) for key, value in settings.items()]


def _planned(others: list[str]) -> list[str]:
    """Return the overrides that a plan of a saved run needs: simulated devices of that run are not used, unless the
    command line sets them."""
    keys = {text.partition("=")[0] for text in others}
    is_left = "task=plan" in others and _SIMULATED not in keys
    return [f"{_SIMULATED}=null"] if is_left else []


def _in_defaults_list(text: str) -> str:
    """Rewrite `from=OPTION` and `+from=OPTION` to `from@_global_=OPTION`, the key in the primary config."""
    key, equals, value = text.partition("=")
    return f"{_DEFAULT}={value}" if equals and key in ("from", "+from") else text


def _node(config: ConfigDict, checkpoint: Path) -> DictConfig:
    """Return the node of a group's config, merged into its schema if its class has one in `SCHEMAS`."""
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
    """Return the saved values, with escaped interpolations.

    Raises:
        ConfigError: a value contains a `_target_`. A checkpoint must not make Hydra call functions.
    """
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
