"""Read the parameters of a checkpoint written by this package, by xlstm-jax or by Hugging Face."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Sharding, SingleDeviceSharding

from xlstm_hydra.configs import LlamaConfig, ModelConfig, ParallelConfig, resolve_classes
from xlstm_hydra.models import build_model, list_parameters, param_shardings
from xlstm_hydra.parallel import build_mesh
from xlstm_hydra.runs import RESTORE, attributed_to, find_checkpoint, record_of, refuse_links_out, verification

from ._faults import reading
from ._from_xlstm_jax import is_xlstm_jax_tree, xlstm_jax_parts
from ._hugging_face import hugging_face_parts, is_hugging_face, read_config
from ._integrity import verified
from ._leaves import Leaves, OrbaxLeaves, SafetensorsLeaves, Shape
from ._parts import assemble, differing, own_parts, parameters_of, refuse_misfits

_KEY = "checkpoint"
"""Name of the argument of `load_checkpoint`, for messages."""


def load_params(checkpoint: Path, model: ModelConfig, shardings: Any = None, key: str = RESTORE) -> Any:
    """Load the parameters of a checkpoint in any supported format for a model.

    The blocks may be scanned in the checkpoint and not in the model, or vice versa. If no conversion is needed, each
    process reads only its own shards. Otherwise, each process reads whole arrays, a few at a time.

    Args:
        checkpoint: checkpoint path as returned by `find_weights`.
        model: config of the model for which the parameters are loaded; `model_class` must be the class itself.
        shardings: tree with the sharding of each parameter. None: whole arrays on the first local device.
        key: name of the option or argument with the checkpoint, for messages.

    Returns:
        The tree of parameters: float32 arrays with their global shapes.

    Raises:
        ConfigError: the parameters cannot be read or belong to another model. The error lists the first arrays that
        differ.
    """
    shapes = {parameter.path: parameter.shape for parameter in parameters_of(model)}
    one = SingleDeviceSharding(jax.local_devices()[0])
    where: Any = dict.fromkeys(shapes, one) if shardings is None else traverse_util.flatten_dict(shardings, sep=".")
    with verified(checkpoint, key, "params", "metadata"), attributed_to(key, checkpoint):
        leaves = open_leaves(checkpoint)
        if leaves.shapes == shapes:
            return _restore(checkpoint / "params", shapes, where)
        arrays = {path: _to_devices(array, where[path]) for path, array in convert(leaves, model, shapes)}
    return traverse_util.unflatten_dict(arrays, sep=".")


def open_leaves(checkpoint: Path) -> Leaves:
    """Open the parameters of a checkpoint in the format in which they are stored.

    Raises:
        ConfigError: the parameters cannot be read.
    """
    return SafetensorsLeaves(checkpoint) if is_hugging_face(checkpoint) else OrbaxLeaves(checkpoint / "params")


def convert(leaves: Leaves, model: ModelConfig, wanted: Container[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Convert stored parameters in any supported format to the parameters of `model`, one at a time.

    Args:
        leaves: the parameters on disk.
        model: config of the model for which the parameters are loaded.
        wanted: paths of the parameters to return. They determine whether blocks are returned stacked or separate.

    Yields:
        The path and the float32 array of each parameter.

    Raises:
        ConfigError: the parameters belong to another model.
    """
    if isinstance(leaves, SafetensorsLeaves):
        parts = hugging_face_parts(model)
    else:
        make_parts = xlstm_jax_parts if is_xlstm_jax_tree(leaves.shapes) else own_parts
        parts = make_parts(model, leaves.shapes)
    refuse_misfits(parts, leaves)
    return assemble(parts, leaves, wanted)


def _restore(folder: Path, shapes: Mapping[str, Shape], where: Mapping[str, Sharding]) -> Any:
    """Read arrays that need no conversion directly into device memory."""
    wanted = {path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where[path]) for path, shape in shapes.items()}
    with reading("parameters", folder), ocp.StandardCheckpointer() as reader:
        return reader.restore(folder, traverse_util.unflatten_dict(wanted, sep="."))


def _to_devices(array: np.ndarray, sharding: Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


class Loaded(NamedTuple):
    """Model with its parameters, as returned by `load_checkpoint`."""

    model: nn.Module
    """The Flax module, for `model.apply({"params": params}, tokens)`. If the devices do not support the recorded
    `attention_backend`, the module uses the backend `xla`, which computes the same function."""

    params: Any
    """The tree of parameters, as float32 arrays on all devices."""

    config: ModelConfig
    """The recorded model class, its config, and the layout that the model was trained with."""


def load_checkpoint(
    checkpoint: str | Path, parallel: ParallelConfig | None = None, *, lenient: bool = False, verify: bool = True
) -> Loaded:
    """Load a model with its parameters from a checkpoint of this package or of xlstm-jax, or from a Hugging Face xLSTM.

    Args:
        checkpoint: a run folder (its latest step), a run folder with `@STEP` appended, or a Hugging Face folder.
        parallel: the layout over all devices. None: parameters are replicated on every device.
        lenient: ignore unknown fields of the metadata, with a warning.
        verify: compare the files with the manifest of the checkpoint, if it has one.

    Raises:
        ConfigError: the checkpoint does not exist, is damaged or cannot be read, or the layout does not fit the model
            or the devices.
    """
    with verification(verify):
        folder = find_weights(str(checkpoint), _KEY)
        config = resolve_classes(recorded_model(folder, _KEY, lenient=lenient))
        layout = parallel or ParallelConfig()
        shardings = param_shardings(replace(config, parallel=layout), build_mesh(layout))
        params = load_params(folder, config, shardings, _KEY)
    return Loaded(build_model(_computable(config)), params, config)


def _computable(config: ModelConfig) -> ModelConfig:
    """Return the config with the attention backend `xla` if the devices do not support the configured backend."""
    model = config.model_config
    if isinstance(model, LlamaConfig) and any(model.platform_rules(jax.default_backend())):
        return replace(config, model_config=replace(model, attention_backend="xla"))
    return config


def find_weights(source: str, key: str) -> Path:
    """Return the checkpoint path for `RUN`, `RUN@STEP`, or a Hugging Face folder.

    Args:
        source: the text that the user typed.
        key: name of the option or argument with this text, for messages.

    Raises:
        ConfigError: there is no checkpoint.
    """
    folder = Path(source).expanduser()
    if not is_hugging_face(folder):
        return find_checkpoint(source, key)
    folder = folder.absolute()
    is_cached = folder.parent.name == "snapshots"  # its files link to the folder `blobs` beside `snapshots`
    refuse_links_out(folder.parents[1] if is_cached else folder, [folder], {key: source}, "Copy the target instead.")
    return folder


def recorded_model(folder: Path, key: str, *, lenient: bool = False) -> ModelConfig:
    """Read the model config of a checkpoint, with the class as a dotted path. Classes named in the metadata are not
    imported.

    Args:
        folder: checkpoint path as returned by `find_weights`.
        key: name of the option or argument with the checkpoint, for messages.
        lenient: ignore unknown fields of the metadata, with a warning.

    Raises:
        ConfigError: the metadata cannot be read.
    """
    if is_hugging_face(folder):
        return read_config(folder, lenient=lenient)
    return record_of(folder, key, lenient=lenient).model


class Misfit(NamedTuple):
    """Array on disk that is missing, unexpected, or of another shape."""

    leaf: str
    """Path of the array on disk."""

    expected: Shape | None
    """Expected shape; None if the array is unexpected."""

    found: Shape | None
    """Shape on disk; None if the array is missing."""

    source: str
    """Source of the expected shape: `model` for the model config, `parameters` for the list in the metadata."""


def check_params(
    checkpoint: Path, model: ModelConfig, recorded: Mapping[str, Any] | None = None, key: str = "RUN"
) -> list[Misfit]:
    """Compare the parameters of a checkpoint of this package or of xlstm-jax with its metadata.

    Args:
        checkpoint: the checkpoint path.
        model: the recorded model; `model_class` must be the class itself.
        recorded: the recorded list of parameters, if there is one: for each path, `{"shape": [...]}`.
        key: name of the option or argument with the checkpoint, for messages.

    Returns:
        The arrays whose shapes differ.

    Raises:
        ConfigError: the parameters cannot be read, or are an xlstm-jax tree with an unknown structure.
    """
    with attributed_to(key, checkpoint):
        leaves = OrbaxLeaves(checkpoint / "params")
        if is_xlstm_jax_tree(leaves.shapes):
            parts = xlstm_jax_parts(model, leaves.shapes)
            wanted = {path: shape for part in parts for path, shape in part.leaves.items()}
        else:
            wanted = {parameter.path: parameter.shape for parameter in list_parameters(model)}
    misfits = _misfits(leaves, wanted, "model")
    if recorded is not None:
        listed = {path: tuple(entry["shape"]) for path, entry in recorded.items()}
        misfits += _misfits(leaves, listed, "parameters")
    return misfits


def _misfits(leaves: OrbaxLeaves, wanted: Mapping[str, Shape], source: str) -> list[Misfit]:
    found = leaves.shapes
    return [Misfit(leaves.name(path), wanted.get(path), found.get(path), source) for path in differing(wanted, found)]
