"""Config group `model`: the Flax class, its config, and the layout over devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from xlstm_hydra.codec import dotted
from xlstm_hydra.problems import Problem, show

from ._config_dict import ConfigDict, config_dataclass
from ._fields import LAYOUT, PARAMETERS, affects
from .parallel import ParallelConfig


@config_dataclass
class SubModelConfig(ConfigDict):
    """Base class for the config that a model class takes as its field `config`.

    Your own config is a subclass with at least the fields `vocab_size` and `context_length`, which determine the shape
    of the data. If the metadata of a field declares no effect (see `affects`), changing the field is assumed to change
    the parameters and to require recompilation."""

    flax_class: ClassVar[str] = ""
    """Dotted path of the xlstm_hydra model class that takes this config. Empty if the config belongs to a user's own
    model class."""

    def module_classes(self) -> tuple[str, ...] | None:
        """Return the class names of the modules inside the model, which are the allowed names in `remat` and
        `fsdp_modules`. None: unknown until the model is built, when the names are checked."""
        return None

    def block_classes(self) -> tuple[str, ...] | None:
        """Return the class names of the blocks in the model's stack, which the layouts in `conf/parallel` shard and
        recompute. None: unknown."""
        return None

    def unused_rules(self) -> Iterator[Problem]:
        """Yield a problem for every value that has no effect. In the config of a run, these problems are errors. In
        metadata they are allowed: a run that reads the metadata uses the values in `Problem.unused` instead."""
        yield from ()

    def platform_rules(self, platform: str) -> Iterator[Problem]:
        """Check the model against the platform of the devices: cpu, gpu or tpu. Not called for generation."""
        del platform
        yield from ()

    def layout_rules(self, tensor_parallel: int) -> Iterator[Problem]:
        """Check the model against the number of tensor-parallel devices (`parallel.model_axis_size`)."""
        del tensor_parallel
        yield from ()

    def pipeline_rules(self, stages: int) -> Iterator[Problem]:
        """Check the model against the number of pipeline stages (`parallel.pipeline_axis_size`)."""
        if stages > 1:
            text = f"a model with a {type(self).__name__} does not define how its blocks divide into stages"
            fix = "Set {/parallel.pipeline_axis_size}=1, or derive the model from xlstm_hydra.models.LanguageModel."
            yield Problem({"/parallel.pipeline_axis_size": stages}, text, fix)

    def generation_rules(self, prompt_length: int, max_new_tokens: int) -> Iterator[Problem]:
        """Check that the model can generate `max_new_tokens` tokens after a prompt of `prompt_length` tokens. Keys in
        problems are relative to the task; keys of the model begin with `/model.`."""
        del prompt_length, max_new_tokens
        yield from ()


@dataclass(eq=False, repr=False)
class ModelConfig(ConfigDict):
    """A model class, its config, and its layout over devices."""

    model_class: Any = field(metadata=affects(PARAMETERS))
    """The Flax class, or its dotted path before the class is imported."""

    parallel: ParallelConfig = field(default_factory=ParallelConfig, metadata=affects(LAYOUT))
    """The layout of the model over devices."""

    model_config: ConfigDict | None = field(default=None, metadata=affects(PARAMETERS))
    """The config that is passed to `model_class` as `config`. null: the class has no config."""

    def rules(self) -> Iterator[Problem]:
        """Check that `model_class` is a class or a dotted path, and that `model_config` is not the config of another
        group."""
        if not isinstance(self.model_class, type) and not _is_path(self.model_class):
            text = f"expected a class or its dotted path, got {show(self.model_class)}"
            yield Problem.about("model_class", text, "For example my_package.MyModel.")
        if _is_of_another_group(self.model_config):
            text = f"must be the config of a model, got a {type(self.model_config).__name__}"
            yield Problem.about("model_config", text, "Derive your own config from SubModelConfig.")

    def class_path(self) -> str:
        """Dotted path of the model class."""
        return self.model_class if isinstance(self.model_class, str) else dotted(self.model_class)

    @staticmethod
    def from_metadata(metadata_content: str) -> ModelConfig:
        """Read the model config from the metadata of an xlstm-hydra or xlstm-jax checkpoint.

        Metadata may only refer to classes of this package and to classes that were allowed before. To allow your own
        model class, call `xlstm_hydra.metadata.register_model_class` or `allow_modules`.

        The config contains the values that were in effect. xlstm-jax recorded `tie_weights`, `add_post_blocks_norm` and
        `weight_decay_on_embedding` but ignored them, so they are always read as false, true and false. If the recorded
        values differ from these, `xlstm_hydra.metadata.read_record` returns a note.

        Raises:
            MetadataError: the text is not metadata that this version can read. The message contains the path of the
                field."""
        from xlstm_hydra.formats import log_ignored

        from ._reading import read_configs

        recorded = read_configs(metadata_content)
        log_ignored("metadata", recorded.unset, recorded.unknown)
        model = recorded.groups["model"]
        assert isinstance(model, ModelConfig)
        return model


@dataclass(kw_only=True)
class ModelNode:
    """Keys of a `model` config node, in addition to the fields of the model's config."""

    _target_: str = "xlstm_hydra.hydra.make_model_config"
    """Function that `hydra.utils.instantiate` calls."""

    model_class: str
    """Dotted path of the Flax class."""

    config_class: str | None = None
    """Dotted path of the model's config class. null: the class that annotates the field `config` of the Flax class."""

    parallel: Any = None
    """Layout over devices. null: data parallelism over all devices."""

    _checkpoint_: str | None = None
    """Checkpoint from which the model config was read, and whose parameters are used by the tasks evaluate and
    generate. null: the config was not read from a checkpoint."""


def _is_path(text: Any) -> bool:
    """True for identifiers joined by dots. The part `<locals>` is also allowed, because it is in the path of a class
    that is defined inside a function."""
    return isinstance(text, str) and all(part.isidentifier() or part == "<locals>" for part in text.split("."))


def _is_of_another_group(config: Any) -> bool:
    """True if the config belongs to a config group of this package other than `model`."""
    package = __name__.rpartition(".")[0]
    own = [base for base in type(config).__mro__ if base.__module__.startswith(f"{package}.")]
    return not isinstance(config, SubModelConfig) and any(base is not ConfigDict for base in own)
