"""Register schemas with Hydra, and the resolvers used in `conf/` with OmegaConf."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra.codec import unchecked
from xlstm_hydra.configs import PlanTaskConfig, SubModelConfig, TrainerConfig

from ._omegaconf import REPLACE, register_resolver, structured
from ._schemas import GROUP, PLUGINS, SCHEMAS

_BLOCKS = ("mLSTMBlock",)


def register() -> None:
    """Store the config dataclasses of this package in Hydra's ConfigStore, as `xlstm_hydra/schema/*`. Idempotent.

    Only required if your own configs refer to a schema. The options of this package get their schemas from its Hydra
    plugin, which does not modify the ConfigStore.
    """
    register_resolvers()
    store = ConfigStore.instance()
    for name, schema in {**SCHEMAS, **PLUGINS}.items():
        store.store(group=GROUP, name=name, node=structured(schema), provider="xlstm-hydra", **REPLACE)


def register_resolvers() -> None:
    """Register the OmegaConf resolvers used in `conf/`: `xlstm_rest`, `xlstm_blocks`, `xlstm_checkpoint` and
    `xlstm_batch`. Idempotent."""
    if OmegaConf.has_resolver("xlstm_batch"):
        return
    register_resolver("xlstm_rest", _rest)
    register_resolver("xlstm_blocks", _blocks)
    register_resolver("xlstm_checkpoint", _checkpoint)
    register_resolver("xlstm_batch", _batch)


def _rest(*sizes: int) -> int:
    """Return the size of the data mesh axis: -1 (all remaining devices), or 1 if the size of another mesh axis is -1.

    Args:
        *sizes: sizes of the other mesh axes.
    """
    return 1 if -1 in sizes else -1


def _blocks(*others: str, _root_: Any) -> list[str]:
    """Return `others`, followed by the class names of the model's blocks. A layout uses the list to select the modules
    to shard or to rematerialize."""
    return [*others, *_block_classes(_root_)]


def _checkpoint(*, _root_: Any) -> str:
    """Return the path of the checkpoint that the model's config was read from; `???` (missing) if there is none."""
    return OmegaConf.select(_root_, "model._checkpoint_") or "???"


def _block_classes(cfg: Any) -> tuple[str, ...]:
    """Return the class names of the blocks in the model of a composed config. If they are unknown, return `mLSTMBlock`,
    so that a layout composes without a model."""
    model = cfg.get("model") if isinstance(cfg, DictConfig) else None
    if not isinstance(model, DictConfig):
        return _BLOCKS
    from ._read import config_class_of, config_fields, to_plain  # takes 10 ms, so not imported for `--cfg job`

    node = to_plain(model, [], "model", without=("model.parallel",))  # the layout refers to this resolver
    config_class = config_class_of(node, []) if "model_class" in node else None
    if config_class is None or not issubclass(config_class, SubModelConfig):
        return _BLOCKS
    try:
        return unchecked(config_class, config_fields(node)).block_classes() or _BLOCKS
    except (AttributeError, TypeError):
        return _BLOCKS  # a value is missing or wrong, which is reported when the model is read


def _batch(*, _root_: Any) -> int:
    """Return the default batch size: 8, or for a plan the smallest valid batch size >= 8 for its layout, so that a plan
    works with any number of devices."""
    default = TrainerConfig().batch_size
    if OmegaConf.select(_root_, "task.name") != PlanTaskConfig.name:
        return default
    from ._read import read_groups

    run = read_groups(_root_, [], without=("hydra", "trainer.batch_size"))
    try:
        return run.fitting_batch()
    except (AttributeError, TypeError, ZeroDivisionError):
        return default  # a group is missing or wrong, which is reported when it is read
