"""Any checkpoint, of ours or of others, as a model with its parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from xlstm_hydra.configs import LlamaConfig, ModelConfig, ParallelConfig
from xlstm_hydra.hydra import resolve_classes
from xlstm_hydra.models import build_model, param_shardings
from xlstm_hydra.parallel import build_mesh
from xlstm_hydra.runs import find_checkpoint, record_of, refuse_links_out, verification

from ._hugging_face import is_hugging_face, read_config
from ._parameters import load_params

_KEY = "checkpoint"


class Loaded(NamedTuple):
    """What `load_checkpoint` gives."""

    model: nn.Module
    """The Flax module, for `model.apply({"params": params}, tokens)`. Where these devices cannot compute the recorded
    `attention_backend`, it has xla, the same function."""

    params: Any
    """The tree of its parameters, on all devices."""

    config: ModelConfig
    """The class, its config, and the layout that it was trained on, as recorded."""


def load_checkpoint(
    checkpoint: str | Path, parallel: ParallelConfig | None = None, *, lenient: bool = False, verify: bool = True
) -> Loaded:
    """A model with its parameters, from a checkpoint of ours, of xlstm-jax, or of Hugging Face's xLSTM.

    Args:
        checkpoint: a run folder, at its latest step or with `@STEP` behind it, or a folder of Hugging Face.
        parallel: the layout over all devices. None: each has all parameters.
        lenient: ignore fields of its record that are unknown, with a warning.
        verify: compare the files that are read with the manifest of the checkpoint, if it has one.

    Raises:
        ConfigError: there is no such checkpoint, it is damaged or cannot be read, or the layout does not fit it or the
            devices.
    """
    with verification(verify):
        folder = find_weights(str(checkpoint), _KEY)
        config = resolve_classes(recorded_model(folder, _KEY, lenient=lenient))
        layout = parallel or ParallelConfig()
        shardings = param_shardings(replace(config, parallel=layout), build_mesh(layout))
        params = load_params(folder, config, shardings, _KEY)
    return Loaded(build_model(_computable(config)), params, config)


def _computable(config: ModelConfig) -> ModelConfig:
    """The model with attention that these devices compute."""
    model = config.model_config
    if isinstance(model, LlamaConfig) and any(model.platform_rules(jax.default_backend())):
        return replace(config, model_config=replace(model, attention_backend="xla"))
    return config


def find_weights(place: str, key: str) -> Path:
    """The folder of the checkpoint that a place names: `RUN`, `RUN@STEP`, or a folder of Hugging Face.

    Args:
        place: what the user typed.
        key: where, for messages.

    Raises:
        ConfigError: there is none.
    """
    folder = Path(place).expanduser()
    if not is_hugging_face(folder):
        return find_checkpoint(place, key)
    folder = folder.absolute()
    is_cached = folder.parent.name == "snapshots"  # its files are links into the folder `blobs` beside that one
    refuse_links_out(folder.parents[1] if is_cached else folder, [folder], {key: place}, "Copy what it leads to.")
    return folder


def recorded_model(folder: Path, key: str, *, lenient: bool = False) -> ModelConfig:
    """The model that a checkpoint is of, with its class as a dotted path. Nothing that it names is imported.

    Args:
        folder: as `find_weights` gives it.
        key: where the user named it, for messages.
        lenient: ignore fields of its record that are unknown, with a warning.

    Raises:
        ConfigError: its record cannot be read.
    """
    if is_hugging_face(folder):
        return read_config(folder, lenient=lenient)
    return record_of(folder, key, lenient=lenient).model
