"""The parameters of a checkpoint, alone, onto any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import SingleDeviceSharding

from xlstm_hydra.configs import ModelConfig
from xlstm_hydra.models import list_parameters

from ._saved import refuse_other_shapes


def load_params(checkpoint: Path, model: ModelConfig, shardings: Any = None) -> Any:
    """The parameter tree of a checkpoint: float32 arrays of natural global shape.

    Args:
        checkpoint: its folder, as `find_checkpoint` gives it.
        model: what the parameters are for, with the class itself as its `model_class`.
        shardings: tree of a sharding per parameter. None: whole on the first device.

    Raises:
        ConfigError: the checkpoint's parameters have other names or shapes than the model's.
    """
    shapes = {parameter.path: parameter.shape for parameter in list_parameters(model)}
    one = SingleDeviceSharding(jax.local_devices()[0])
    where = dict.fromkeys(shapes, one) if shardings is None else traverse_util.flatten_dict(shardings, sep=".")
    wanted = {path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where[path]) for path, shape in shapes.items()}
    target = traverse_util.unflatten_dict(wanted, sep=".")
    refuse_other_shapes(checkpoint, "params", target)
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(checkpoint / "params", target)
