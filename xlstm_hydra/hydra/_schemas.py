"""Schemas of all options in `conf/`, including the sweeper and the launchers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra import configs
from xlstm_hydra.conf_dir import conf_dir
from xlstm_hydra.configs import PLUGIN_CLASSES, ModelNode
from xlstm_hydra.configs import OnInvalid as OnInvalid
from xlstm_hydra.configs import SweeperConfig as SweeperConfig

from ._omegaconf import REPLACE, structured

GROUP = "xlstm_hydra/schema"
"""Config group of the schemas. Schemas have a separate group so that `parallel=glob(*)` only matches layouts."""


def _model_node(config_class: type) -> type:
    """Make the flat schema of a `model` node: the fields of the model's config class, and those of `ModelNode`."""
    node = type(f"{config_class.__name__}Node", (ModelNode, config_class), {})
    globals()[node.__name__] = node  # pickle looks it up here in job processes
    return dataclass(kw_only=True, init=False, repr=False, eq=False)(node)  # OmegaConf only needs the fields


def _launcher_node(config_class: type) -> type:
    """Make the schema of a launcher: the fields of its config class, and `_target_`."""
    launcher = config_class.__name__.removesuffix("Config")
    target = field(default=f"hydra_plugins.xlstm_hydra_plugin.launcher.{launcher}")
    node = type(f"{launcher}Node", (config_class,), {"__annotations__": {"_target_": str}, "_target_": target})
    return dataclass(kw_only=True, init=False, repr=False, eq=False)(node)


SCHEMAS: dict[str, type] = {
    name: _model_node(cls) if issubclass(cls, configs.SubModelConfig) else cls for name, cls in configs.OPTIONS.items()
}
"""Schemas of the options in `conf/`, by the name used in defaults lists (`/xlstm_hydra/schema/NAME@_here_`)."""


PLUGINS: dict[str, type] = {
    **PLUGIN_CLASSES["hydra/sweeper"],
    **{name: _launcher_node(cls) for name, cls in PLUGIN_CLASSES["hydra/launcher"].items()},
}
"""Schemas of the options in `conf/hydra/`, by the name used in defaults lists."""


def schema_node(name: str) -> DictConfig | None:
    """Return the config node of a schema, given its name in `xlstm_hydra/schema`; None if the name is unknown."""
    schema = SCHEMAS.get(name) or PLUGINS.get(name)
    return None if schema is None else structured(schema)


@contextmanager
def own_options() -> Iterator[None]:
    """Inside the `with` block, replace options of Hydra plugins, such as `hydra/sweeper=optuna`, with options of the
    same name in `conf/hydra/`. Only `xlstm-hydra` does so; in other apps, the plugins' options are used."""
    Plugins.instance()  # registers the plugins' options
    store, replaced = ConfigStore.instance(), {}
    for file in (conf_dir() / "hydra").glob("*/*.yaml"):
        path = file.relative_to(conf_dir()).as_posix()
        if store.get_type(path) == ObjectType.CONFIG:
            replaced[path] = store.load(path)
            group, _, name = path.removesuffix(".yaml").rpartition("/")
            store.store(group=group, name=name, node=OmegaConf.load(file), provider="xlstm-hydra", **REPLACE)
    try:
        yield
    finally:
        for node in replaced.values():
            store.store(group=node.group, name=node.name, node=node.node, provider=node.provider, **REPLACE)
