"""The parameters of a checkpoint, alone, onto any layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import Sharding, SingleDeviceSharding

from xlstm_hydra.configs import ConfigError, ModelConfig
from xlstm_hydra.metadata._places import RESTORE

from ._orbax import OrbaxLeaves
from ._parts import Shape, assemble, own_parts, parameters_of, refuse_misfits
from ._xlstm_jax import is_xlstm_jax_tree, xlstm_jax_parts


def load_params(checkpoint: Path, model: ModelConfig, shardings: Any = None, key: str = RESTORE) -> Any:
    """The parameters of a checkpoint, of ours or of xlstm-jax: a tree of float32 arrays of natural global shape.

    The blocks may be scanned in the one and not in the other. Each process reads what it needs of our checkpoints, and
    a few whole arrays after the other of xlstm-jax's.

    Args:
        checkpoint: its folder, as `find_checkpoint` gives it.
        model: what the parameters are for, with the class itself as its `model_class`.
        shardings: tree of a sharding per parameter. None: whole on the first device.
        key: where the user named the checkpoint, for messages.

    Raises:
        ConfigError: the parameters on disk are not those of the model, naming the first that differ.
    """
    shapes = {parameter.path: parameter.shape for parameter in parameters_of(model)}
    one = SingleDeviceSharding(jax.local_devices()[0])
    where: Any = dict.fromkeys(shapes, one) if shardings is None else traverse_util.flatten_dict(shardings, sep=".")
    leaves = OrbaxLeaves(checkpoint / "params")
    if leaves.shapes == shapes:
        return _restore(checkpoint / "params", shapes, where)
    make_parts = xlstm_jax_parts if is_xlstm_jax_tree(leaves.shapes) else own_parts
    try:
        parts = make_parts(model, leaves.shapes)
        refuse_misfits(parts, leaves)
        placed = {path: _place(array, where[path]) for path, array in assemble(parts, leaves, shapes)}
    except ConfigError as error:
        given = {key: str(checkpoint)}
        raise ConfigError(replace(found, given=given | dict(found.given)) for found in error.problems) from None
    return traverse_util.unflatten_dict(placed, sep=".")


def _restore(folder: Path, shapes: Mapping[str, Shape], where: Mapping[str, Sharding]) -> Any:
    """Arrays that need no conversion, straight to where they shall be."""
    wanted = {path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where[path]) for path, shape in shapes.items()}
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(folder, traverse_util.unflatten_dict(wanted, sep="."))


def _place(array: np.ndarray, sharding: Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
