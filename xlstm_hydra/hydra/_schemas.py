"""Schemas of all options in `conf/`, including the sweeper and the launchers."""

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
"""Group of the schemas, separate from the other groups so that `parallel=glob(*)` only matches layouts."""


class OnInvalid(enum.Enum):
    """Reaction of a sweep to invalid points."""

    stop = "stop"
    skip = "skip"


@dataclass(kw_only=True)
class SweeperConfig:
    """Settings of `hydra/sweeper=xlstm`."""

    _target_: str = "hydra_plugins.xlstm_hydra_plugin.sweeper.XlstmSweeper"

    max_batch_size: int | None = None
    """Maximum number of jobs given to the launcher at once; the next ones start when these have ended. null: all."""

    max_jobs: int | None = 10_000
    """Maximum number of jobs of a sweep. Jobs are counted before any is made, and a larger sweep is rejected.
    null: no limit."""

    params: dict[str, str] | None = field(default_factory=dict)
    """Overrides that are applied before those of the command line, which take precedence."""

    on_invalid: OnInvalid = OnInvalid.stop
    """Reaction to points that break a rule or do not fit their devices. stop: no job starts. skip: the other jobs
    start."""

    num_samples: int | None = None
    """Number of random draws from the intervals. Each draw runs with all combinations of the other values."""

    seed: int = 0
    """Seed of random draws and of `shuffle(...)`."""

    resume: bool = False
    """True: continue the sweep in `hydra.sweep.dir` with its missing and failed jobs."""

    @staticmethod
    def of(settings: Mapping[str, Any]) -> SweeperConfig:
        """Make the config from the settings of the sweeper.

        Raises:
            ConfigError: there is an unknown setting.
        """
        known = [each.name for each in fields(SweeperConfig) if each.name != "_target_"]
        if unknown := [key for key in settings if key not in known]:
            raise ConfigError(
                [Problem.about(f"hydra.sweeper.{key}", "no such key", nearest(key, known)) for key in unknown]
            )
        return SweeperConfig(**settings)

    def rules(self) -> Iterator[Problem]:
        """Yield every broken rule."""
        for key in ("max_batch_size", "max_jobs", "num_samples"):
            value = getattr(self, key)
            if value is not None and value < 1:
                yield Problem({f"hydra.sweeper.{key}": value}, "must be 1 or more, or null")


@dataclass(kw_only=True)
class ModelNode:
    """Keys of a model's node besides the fields of its config."""

    _target_: str = "xlstm_hydra.hydra.make_model_config"
    """Function that `hydra.utils.instantiate` calls."""

    model_class: str
    """Dotted path of the Flax class."""

    config_class: str | None = None
    """Dotted path of the model's config class. null: the annotation of the Flax class's field `config`."""

    parallel: Any = None
    """The layout. null: data parallelism over all devices."""

    _checkpoint_: str | None = None
    """Checkpoint that the config was taken from, whose parameters the other tasks use. null: none."""


def _model_node(config_class: type) -> type:
    """A flat schema: the fields of a model's config and of its node side by side."""
    node = type(f"{config_class.__name__}Node", (ModelNode, config_class), {})
    globals()[node.__name__] = node  # where pickle looks for it, in the process of a job
    return dataclass(kw_only=True, init=False, repr=False, eq=False)(node)  # OmegaConf only needs its fields


def _launcher_node(config_class: type, launcher: str) -> type:
    """Schema of the settings of one of our launchers."""
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
"""Schemas of our options in Hydra's own groups."""


def schema_node(name: str) -> DictConfig | None:
    """Return the node of a schema in `xlstm_hydra/schema`; None if the name is unknown."""
    schema = SCHEMAS.get(name) or PLUGINS.get(name)
    return None if schema is None else structured(schema)


@contextmanager
def own_options() -> Iterator[None]:
    """Replace options of plugins by ours of the same name, such as `hydra/sweeper=optuna`, inside this block. Only our
    command does so; other apps keep theirs."""
    Plugins.instance()  # registers them
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
