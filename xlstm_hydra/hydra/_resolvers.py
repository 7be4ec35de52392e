"""Register our schemas with Hydra, and the resolvers of our YAML files with OmegaConf."""

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
    """Put our dataclasses in Hydra's ConfigStore, as `xlstm_hydra/schema/*`. Calling it twice is harmless.

    Only configs of your own that build on a schema need this call. For our options, the plugin provides the schemas
    when an app uses one of our groups, and does not change the ConfigStore.
    """
    register_resolvers()
    store = ConfigStore.instance()
    for name, schema in {**SCHEMAS, **PLUGINS}.items():
        store.store(group=GROUP, name=name, node=structured(schema), provider="xlstm-hydra", **REPLACE)


def register_resolvers() -> None:
    """Register the resolvers that our YAML files use: `xlstm_rest`, `xlstm_blocks`, `xlstm_checkpoint` and
    `xlstm_batch`. Calling it twice is harmless."""
    if OmegaConf.has_resolver("xlstm_batch"):
        return
    register_resolver("xlstm_rest", _rest)
    register_resolver("xlstm_blocks", _blocks)
    register_resolver("xlstm_checkpoint", _checkpoint)
    register_resolver("xlstm_batch", _batch)


def _rest(*sizes: int) -> int:
    """Size of the data mesh axis: all remaining devices (-1), or 1 if another mesh axis already takes those."""
    return 1 if -1 in sizes else -1


def _blocks(*others: str, _root_: Any) -> list[str]:
    """Class names in `others` and of the model's blocks, which a layout shards and recomputes."""
    return [*others, *_block_classes(_root_)]


def _checkpoint(*, _root_: Any) -> str:
    """Checkpoint that the model's config was taken from; missing (`???`) if there is none."""
    return OmegaConf.select(_root_, "model._checkpoint_") or "???"


def _block_classes(cfg: Any) -> tuple[str, ...]:
    """Class names of the blocks of the model in a composed config. If they are unknown, those of our mLSTM models, so
    that a layout composes without a model."""
    model = cfg.get("model") if isinstance(cfg, DictConfig) else None
    if not isinstance(model, DictConfig):
        return _BLOCKS
    from ._read import config_class_of, config_fields, to_plain  # 10 ms, not for `--cfg job`

    node = to_plain(model, [], "model", without=("model.parallel",))  # the layout is what asks
    config_class = config_class_of(node, []) if "model_class" in node else None
    if config_class is None or not issubclass(config_class, SubModelConfig):
        return _BLOCKS
    try:
        return unchecked(config_class, config_fields(node)).block_classes() or _BLOCKS
    except (AttributeError, TypeError):
        return _BLOCKS  # a value is missing or wrong, which is reported when the model is read


def _batch(*, _root_: Any) -> int:
    """Default batch size: 8, or for a plan the smallest valid batch size of its layout from 8 on, so that any number of
    devices can be planned."""
    default = TrainerConfig().batch_size
    if OmegaConf.select(_root_, "task.name") != PlanTaskConfig.name:
        return default
    from ._read import read_groups

    run = read_groups(_root_, [], without=("hydra", "trainer.batch_size"))
    try:
        return run.fitting_batch()
    except (AttributeError, TypeError, ZeroDivisionError):
        return default  # a group is missing or wrong, which is reported when it is read
