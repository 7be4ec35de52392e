"""The schema of every option in `conf/`, and of the sweeper and the launchers that they choose."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra import configs
from xlstm_hydra.conf_dir import conf_dir
from xlstm_hydra.problems import ConfigError, Problem, nearest

from ._omegaconf import REPLACE, structured

GROUP = "xlstm_hydra/schema"
"""Where the schemas are in Hydra's tree: apart from the groups, so that `parallel=glob(*)` finds layouts only."""


class OnInvalid(enum.Enum):
    """What becomes of a sweep some of whose points are invalid."""

    stop = "stop"
    skip = "skip"


@dataclass(kw_only=True)
class SweeperConfig:
    """The option `hydra/sweeper=xlstm`."""

    _target_: str = "hydra_plugins.xlstm_hydra_plugin.sweeper.XlstmSweeper"

    max_batch_size: int | None = None
    """The most jobs that a launcher gets at once; the next ones follow when those have ended. null: all."""

    max_jobs: int | None = 10_000
    """The most jobs that a sweep may have. They are counted before any is made; a sweep with more is refused.
    null: no limit."""

    params: dict[str, str] | None = field(default_factory=dict)
    """Overrides that come before those of the command line, which replace them."""

    on_invalid: OnInvalid = OnInvalid.stop
    """What becomes of the sweep where points break a rule or do not fit their devices: no job starts, or they are
    skipped."""

    num_samples: int | None = None
    """How many values are drawn of the intervals, together, each with all combinations of the other values."""

    seed: int = 0
    """Of what is drawn or shuffled."""

    resume: bool = False
    """Whether to go on with the sweep that is in `hydra.sweep.dir`, with what is missing or failed."""

    @staticmethod
    def of(settings: Mapping[str, Any]) -> SweeperConfig:
        """The settings that the sweeper got.

        Raises:
            ConfigError: there is none of some name.
        """
        known = [each.name for each in fields(SweeperConfig) if each.name != "_target_"]
        if unknown := [key for key in settings if key not in known]:
            raise ConfigError(
                [Problem.about(f"hydra.sweeper.{key}", "no such key", nearest(key, known)) for key in unknown]
            )
        return SweeperConfig(**settings)

    def rules(self) -> Iterator[Problem]:
        """Every broken rule."""
        for key in ("max_batch_size", "max_jobs", "num_samples"):
            value = getattr(self, key)
            if value is not None and value < 1:
                yield Problem({f"hydra.sweeper.{key}": value}, "must be 1 or more, or null")


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
