"""The parameters of a checkpoint, alone, onto any layout."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import Sharding, SingleDeviceSharding

from xlstm_hydra.configs import ModelConfig
from xlstm_hydra.runs import RESTORE, attributed_to, reading

from ._from_xlstm_jax import is_xlstm_jax_tree, xlstm_jax_parts
from ._hugging_face import hugging_face_parts, is_hugging_face
from ._integrity import verified
from ._leaves import SafetensorsLeaves
from ._orbax import OrbaxLeaves
from ._parts import Leaves, Shape, assemble, own_parts, parameters_of, refuse_misfits


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
        placed = {path: _place(array, where[path]) for path, array in convert(leaves, model, shapes)}
    return traverse_util.unflatten_dict(placed, sep=".")


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


def _place(array: np.ndarray, sharding: Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
