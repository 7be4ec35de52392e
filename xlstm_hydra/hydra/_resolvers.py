"""What is registered with Hydra and OmegaConf: our schemas, and the resolvers that our YAML files use."""

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

    Composing our options needs no call: the plugin gives the schemas to whoever uses one of our groups, and leaves the
    ConfigStore of an app that uses none as it is. This is for configs of your own that build on a schema.
    """
    register_resolvers()
    store = ConfigStore.instance()
    for name, schema in {**SCHEMAS, **PLUGINS}.items():
        store.store(group=GROUP, name=name, node=structured(schema), provider="xlstm-hydra", **REPLACE)


def register_resolvers() -> None:
    """Teach OmegaConf the resolvers that our YAML files use: `xlstm_rest`, `xlstm_blocks`, `xlstm_checkpoint` and
    `xlstm_batch`. Calling it twice is harmless."""
    if OmegaConf.has_resolver("xlstm_batch"):
        return
    register_resolver("xlstm_rest", _rest)
    register_resolver("xlstm_blocks", _blocks)
    register_resolver("xlstm_checkpoint", _checkpoint)
    register_resolver("xlstm_batch", _batch)


def _rest(*sizes: int) -> int:
    """The size of the data axis beside others: what they leave (-1), or 1 where one of them takes all that is left."""
    return 1 if -1 in sizes else -1


def _blocks(*others: str, _root_: Any) -> list[str]:
    """Class names of the model's blocks, after `others`: what a layout shards and recomputes."""
    return [*others, *_block_classes(_root_)]


def _checkpoint(*, _root_: Any) -> str:
    """The checkpoint that the model's config came from; missing where it came from none."""
    return OmegaConf.select(_root_, "model._checkpoint_") or "???"


def _block_classes(cfg: Any) -> tuple[str, ...]:
    """Class names of the blocks of the model in a composed config. Where there is no model, or it does not say, those
    of our mLSTM models, so that a layout composes without a model."""
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
    """The batch where none is typed: 8, or of a plan the least multiple of what its layout needs from 8 on, so that any
    number of devices can be planned."""
    default = TrainerConfig().batch_size
    if OmegaConf.select(_root_, "task.name") != PlanTaskConfig.name:
        return default
    from ._read import read_groups

    run = read_groups(_root_, [], without=("hydra", "trainer.batch_size"))
    try:
        return run.fitting_batch()
    except (AttributeError, TypeError, ZeroDivisionError):
        return default  # a group is missing or wrong, which is reported when it is read
