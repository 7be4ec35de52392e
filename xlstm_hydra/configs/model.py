"""Which model is trained: its Flax class, that class's own config, and the layout it runs on."""

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
    """Base of the config that a model class takes as its `config`.

    A config of your own is a subclass with at least the fields `vocab_size` and `context_length`, from which the data
    takes its shape. Where a field does not say what another value of it changes, in metadata from `affects`, it counts
    as one that changes the parameters and the compiled step.
    """

    flax_class: ClassVar[str] = ""
    """Dotted path of the model class of ours that the config is for. Empty: a class of yours."""

    def module_classes(self) -> tuple[str, ...] | None:
        """Class names of the modules inside the model, which `remat` and `fsdp_modules` can name. None: not known
        before the model is built, so the names are checked then."""
        return None

    def block_classes(self) -> tuple[str, ...] | None:
        """Class names of the blocks that the model is a stack of, which the layouts in `conf/parallel` shard and
        recompute. None: not known."""
        return None

    def unused_rules(self) -> Iterator[Problem]:
        """Every value that has no effect as the other fields are. A run must have none, but a record may: where one is
        read into a run they are left at what `Problem.unused` says."""
        yield from ()

    def platform_rules(self, platform: str) -> Iterator[Problem]:
        """Every broken rule between this model and the kind of the devices that it computes examples on: cpu, gpu or
        tpu. Where it continues a prompt, none of them is asked for."""
        del platform
        yield from ()

    def layout_rules(self, tensor_parallel: int) -> Iterator[Problem]:
        """Every broken rule between this model and the number of tensor-parallel devices
        (`parallel.model_axis_size`)."""
        del tensor_parallel
        yield from ()

    def pipeline_rules(self, stages: int) -> Iterator[Problem]:
        """Every broken rule between this model and the number of pipeline stages (`parallel.pipeline_axis_size`)."""
        if stages > 1:
            text = f"a model with a {type(self).__name__} does not say how its blocks are cut into stages"
            fix = "Set {/parallel.pipeline_axis_size} to 1, or build the model on xlstm_hydra.models.LanguageModel."
            yield Problem({"/parallel.pipeline_axis_size": stages}, text, fix)

    def generation_rules(self, prompt_length: int, max_new_tokens: int) -> Iterator[Problem]:
        """Every broken rule between this model and a continuation by up to `max_new_tokens`. Keys are those of the
        task; those of the model are `/model.*`."""
        del prompt_length, max_new_tokens
        yield from ()


@dataclass(eq=False, repr=False)
class ModelConfig(ConfigDict):
    """A model class with its config and its layout."""

    model_class: Any = field(metadata=affects(PARAMETERS))
    """The Flax class, or its dotted path as long as it has not been instantiated."""

    parallel: ParallelConfig = field(default_factory=ParallelConfig, metadata=affects(LAYOUT))
    """How the model is laid out over devices."""

    model_config: ConfigDict | None = field(default=None, metadata=affects(PARAMETERS))
    """The config that `model_class` takes as `config`. null: the class takes none."""

    def rules(self) -> Iterator[Problem]:
        """The model class is one, or the dotted path of one, and its config is not that of another group."""
        if not isinstance(self.model_class, type) and not _is_path(self.model_class):
            text = f"expected a class or its dotted path, got {show(self.model_class)}"
            yield Problem.about("model_class", text, "For example my_package.MyModel.")
        if _is_of_another_group(self.model_config):
            text = f"must be the config of a model, not a {type(self.model_config).__name__}"
            yield Problem.about("model_config", text, "A config of your own is a subclass of SubModelConfig.")

    def class_path(self) -> str:
        """The dotted path of the model class."""
        return self.model_class if isinstance(self.model_class, str) else dotted(self.model_class)

    @staticmethod
    def from_metadata(metadata_content: str) -> ModelConfig:
        """Read the config from the metadata text beside a checkpoint, of ours or of xlstm-jax.

        Nothing that the text names is imported. A model class of your own has to be allowed first, by
        `xlstm_hydra.metadata.register_model_class` or `allow_modules`.

        A value is that which was in effect. xlstm-jax recorded `tie_weights`, `add_post_blocks_norm` and
        `weight_decay_on_embedding` but had no use for them, so they are false, true and false whatever its file says;
        `xlstm_hydra.metadata.read_record` has a note where it says something else.

        Raises:
            MetadataError: the text is not metadata that this version can read, with the path of the field.
        """
        from xlstm_hydra.formats import log_ignored

        from ._reading import read_configs

        recorded = read_configs(metadata_content)
        log_ignored("metadata", recorded.unset, recorded.unknown)
        model = recorded.groups["model"]
        assert isinstance(model, ModelConfig)
        return model


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


def _is_path(text: Any) -> bool:
    """True for names joined by dots, also those of a class that a function has defined."""
    return isinstance(text, str) and all(part.isidentifier() or part == "<locals>" for part in text.split("."))


def _is_of_another_group(config: Any) -> bool:
    """True for the config of one of our groups that is not a model."""
    package = __name__.rpartition(".")[0]
    own = [base for base in type(config).__mro__ if base.__module__.startswith(f"{package}.")]
    return not isinstance(config, SubModelConfig) and any(base is not ConfigDict for base in own)
