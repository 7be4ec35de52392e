"""The parameters of any checkpoint, of ours or of others: read onto any layout, checked, or as a model with them."""

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
"""What names the checkpoint of `load_checkpoint`, for messages."""


def load_params(checkpoint: Path, model: ModelConfig, shardings: Any = None, key: str = RESTORE) -> Any:
    """The parameters of a checkpoint, of ours or of others: a tree of float32 arrays of natural global shape.

    The blocks may be scanned in the one and not in the other. Each process reads what it needs of our checkpoints, and
    of the others a few whole arrays after the other.

    Args:
        checkpoint: its folder, as `find_checkpoint` gives it, or a folder of Hugging Face.
        model: what the parameters are for, with the class itself as its `model_class`.
        shardings: tree of a sharding per parameter. None: whole on the first device.
        key: where the user named the checkpoint, for messages.

    Raises:
        ConfigError: the parameters on disk cannot be read, or are not those of the model, naming the first that differ.
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
    """The parameters of a checkpoint as they are on disk.

    Raises:
        ConfigError: they cannot be read.
    """
    return SafetensorsLeaves(checkpoint) if is_hugging_face(checkpoint) else OrbaxLeaves(checkpoint / "params")


def convert(leaves: Leaves, model: ModelConfig, wanted: Container[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters of ours by path, one after the other, from those of any checkpoint.

    Args:
        leaves: the parameters on disk.
        model: what they are for.
        wanted: paths of our parameters, which say whether the blocks are one stack.

    Raises:
        ConfigError: they are not those of the model.
    """
    if isinstance(leaves, SafetensorsLeaves):
        parts = hugging_face_parts(model)
    else:
        make_parts = xlstm_jax_parts if is_xlstm_jax_tree(leaves.shapes) else own_parts
        parts = make_parts(model, leaves.shapes)
    refuse_misfits(parts, leaves)
    return assemble(parts, leaves, wanted)


def _restore(folder: Path, shapes: Mapping[str, Shape], where: Mapping[str, Sharding]) -> Any:
    """Arrays that need no conversion, straight to where they shall be."""
    wanted = {path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where[path]) for path, shape in shapes.items()}
    with reading("parameters", folder), ocp.StandardCheckpointer() as reader:
        return reader.restore(folder, traverse_util.unflatten_dict(wanted, sep="."))


def _to_devices(array: np.ndarray, sharding: Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


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


def find_weights(source: str, key: str) -> Path:
    """The folder of the checkpoint that a source names: `RUN`, `RUN@STEP`, or a folder of Hugging Face.

    Args:
        source: what the user typed.
        key: where, for messages.

    Raises:
        ConfigError: there is none.
    """
    folder = Path(source).expanduser()
    if not is_hugging_face(folder):
        return find_checkpoint(source, key)
    folder = folder.absolute()
    is_cached = folder.parent.name == "snapshots"  # its files are links into the folder `blobs` beside that one
    refuse_links_out(folder.parents[1] if is_cached else folder, [folder], {key: source}, "Copy what it leads to.")
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


class Misfit(NamedTuple):
    """An array whose shape on disk is another one than it should have."""

    leaf: str
    """Its path as it stands on disk."""

    expected: Shape | None
    """The shape that it should have. None: it should not be there."""

    found: Shape | None
    """The shape that it has. None: it is not there."""

    source: str
    """What says so: `model`, or `parameters`, the list in the metadata."""


def check_params(
    checkpoint: Path, model: ModelConfig, recorded: Mapping[str, Any] | None = None, key: str = "RUN"
) -> list[Misfit]:
    """Compare the parameters of a checkpoint, of ours or of xlstm-jax, with what its metadata says.

    Args:
        checkpoint: its folder.
        model: the recorded model, with the class itself as its `model_class`.
        recorded: the recorded list of parameters, if there is one: for each path, `{"shape": [...]}`.
        key: where the user named the checkpoint, for messages.

    Raises:
        ConfigError: the parameters cannot be read, or are a tree of xlstm-jax whose order is not known.
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
