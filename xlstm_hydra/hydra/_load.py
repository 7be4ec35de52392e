"""Convert a composed Hydra config to a checked `RunConfig`. All commands use this module to do so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from xlstm_hydra._hooks import hooks
from xlstm_hydra.configs import ModelConfig, ParallelConfig, RunConfig, resolve_classes
from xlstm_hydra.problems import ConfigError, Problem, placed

from ._overrides import shortest_layout
from ._read import (
    collect_field,
    collect_layout,
    config_class_of,
    config_fields,
    config_of,
    cross_rules,
    fields_of,
    read_groups,
)
from ._resolvers import register_resolvers


def load(cfg: DictConfig | Mapping[str, Any]) -> RunConfig:
    """Convert a composed config to a checked `RunConfig`.

    Raises:
        ConfigError: the config breaks rules. The error lists all of them.
    """
    run, problems = read(cfg)
    if problems:
        raise ConfigError(problems)
    return run


def validate(cfg: DictConfig | Mapping[str, Any]) -> None:
    """Check all rules for a composed config, without loading JAX.

    Raises:
        ConfigError: the config breaks rules. The error lists all of them, with keys as the user types them.
    """
    load(cfg)


def read(cfg: DictConfig | Mapping[str, Any]) -> tuple[RunConfig, list[Problem]]:
    """Return the run, without the values that cannot be read, and a `Problem` for every broken rule."""
    register_resolvers()
    problems: list[Problem] = []
    run = read_groups(cfg if isinstance(cfg, DictConfig) else config_of(cfg), problems)
    problems = placed(problems, fields_of(run))
    return run, problems + cross_rules(run, problems)


def make_model_config(
    *, model_class: Any, config_class: str | None = None, parallel: Any = None, _checkpoint_: Any = None, **fields: Any
) -> ModelConfig:
    """Make a `ModelConfig` from the composed `model` node. The node's `_target_` names this function, so that
    `hydra.utils.instantiate(cfg.model)` calls it.

    Args:
        model_class: dotted path of the Flax class.
        config_class: dotted path of the config dataclass. None: the annotation of the Flax class's field `config`.
        parallel: the layout.
        _checkpoint_: ignored here; read by tasks.
        **fields: fields of the config dataclass.

    Raises:
        ConfigError: a class cannot be imported, or a field breaks a rule.
    """
    del _checkpoint_
    node = {"model_class": model_class, "config_class": config_class, **_plain(fields)}
    problems: list[Problem] = []
    config_type = config_class_of(node, problems)
    layout = parallel if isinstance(parallel, ParallelConfig) else _plain(parallel) or {}
    layout = collect_layout(layout, "parallel", problems)
    config = None if config_type is None else collect_field(config_type, config_fields(node), "model", problems)
    if problems:
        raise ConfigError(problems)
    return resolve_classes(ModelConfig(model_class, layout, config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


hooks.shortest_layout = shortest_layout
