"""The schema of every option in `conf/`, and the resolvers that they use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra import configs
from xlstm_hydra._conf_dir import conf_dir

from ._schema import structured
from ._sweeper import SweeperConfig
from ._versions import REPLACE, register_resolver

GROUP = "xlstm_hydra/schema"
"""Where the schemas are in Hydra's tree: apart from the groups, so that `parallel=glob(*)` finds layouts only."""


@dataclass(kw_only=True)
class ModelNode:
    """What the node of a model has beside the fields of its config."""

    _target_: str = "xlstm_hydra.hydra.make_model_config"
    """What `hydra.utils.instantiate` calls."""

    model_class: str
    """Dotted path of the Flax class."""

    config_class: str | None = None
    """Dotted path of the config that the class takes. null: what its field `config` is annotated with."""

    parallel: Any = None
    """The layout. null: one device, or as many as there are data-parallel."""

    _checkpoint_: str | None = None
    """The checkpoint that a saved run's config came from, whose parameters the other tasks use. null: from none."""


def _model_node(config_class: type) -> type:
    """A flat schema: the fields of a model's config and of its node side by side."""
    node = type(f"{config_class.__name__}Node", (ModelNode, config_class), {})
    globals()[node.__name__] = node  # where pickle looks for it, in the process of a job
    return dataclass(kw_only=True, init=False, repr=False, eq=False)(node)  # its fields are all that OmegaConf wants


def _launcher_node(config_class: type, launcher: str) -> type:
    """The schema of what a launcher of ours is made with."""
    target = field(default=f"hydra_plugins.xlstm_hydra_plugin.launcher.{launcher}")
    node = type(f"{launcher}Node", (config_class,), {"__annotations__": {"_target_": str}, "_target_": target})
    return dataclass(kw_only=True, init=False, repr=False, eq=False)(node)


SCHEMAS: dict[str, type] = {
    name: _model_node(cls) if issubclass(cls, configs.SubModelConfig) else cls for name, cls in configs.OPTIONS.items()
}
"""The schema of every option in `conf/`, by the name that its defaults list uses."""


PLUGINS: dict[str, type] = {
    "sweeper": SweeperConfig,
    "slurm": _launcher_node(configs.SlurmLauncherConfig, "SlurmLauncher"),
    "local": _launcher_node(configs.LocalLauncherConfig, "LocalLauncher"),
}
"""The schemas of Hydra's own groups that we have options for."""


def register() -> None:
    """Put our dataclasses in Hydra's ConfigStore, as `xlstm_hydra/schema/*`. Calling it twice is harmless.

    Composing our options needs no call: the plugin gives the schemas to whoever uses one of our groups, and leaves the
    ConfigStore of an app that uses none as it is. This is for configs of your own that build on a schema.
    """
    register_resolvers()
    store = ConfigStore.instance()
    for name, schema in {**SCHEMAS, **PLUGINS}.items():
        store.store(group=GROUP, name=name, node=structured(schema), provider="xlstm-hydra", **REPLACE)


def schema_node(name: str) -> DictConfig | None:
    """The node of a schema in `xlstm_hydra/schema`; None where there is none of that name."""
    schema = SCHEMAS.get(name) or PLUGINS.get(name)
    return None if schema is None else structured(schema)


@contextmanager
def own_options() -> Iterator[None]:
    """Inside, our options of Hydra's own groups are in the place of those that plugins have registered under the same
    names, such as `hydra/sweeper=optuna`. For our command only: other apps keep theirs."""
    Plugins.instance()  # which registers them
    store, replaced = ConfigStore.instance(), {}
    for file in (conf_dir() / "hydra").glob("*/*.yaml"):
        place = file.relative_to(conf_dir()).as_posix()
        if store.get_type(place) == ObjectType.CONFIG:
            replaced[place] = store.load(place)
            group, _, name = place.removesuffix(".yaml").rpartition("/")
            store.store(group=group, name=name, node=OmegaConf.load(file), provider="xlstm-hydra", **REPLACE)
    try:
        yield
    finally:
        for node in replaced.values():
            store.store(group=node.group, name=node.name, node=node.node, provider=node.provider, **REPLACE)


def register_resolvers() -> None:
    """Teach OmegaConf the resolvers that our YAML files use: `xlstm_rest`, `xlstm_blocks`, `xlstm_checkpoint` and
    `xlstm_batch`. Calling it twice is harmless."""
    register_resolver("xlstm_rest", _rest, replace=True)
    register_resolver("xlstm_blocks", _blocks, replace=True)
    register_resolver("xlstm_checkpoint", _checkpoint, replace=True)
    register_resolver("xlstm_batch", _batch, replace=True)


def _rest(*sizes: int) -> int:
    """The size of the data axis beside others: what they leave (-1), or 1 where one of them takes all that is left."""
    return 1 if -1 in sizes else -1


def _blocks(*others: str, _root_: Any) -> list[str]:
    """Class names of the model's blocks, after `others`: what a layout shards and recomputes."""
    from ._load import block_classes  # it imports this module

    return [*others, *block_classes(_root_)]


def _checkpoint(*, _root_: Any) -> str:
    """The checkpoint that the model's config came from; missing where it came from none."""
    return OmegaConf.select(_root_, "model._checkpoint_") or "???"


def _batch(*, _root_: Any) -> int:
    """The batch where none is typed: that of the dataclass, or for a plan, one that its layout can use."""
    from ._load import default_batch  # it imports this module

    return default_batch(_root_)
