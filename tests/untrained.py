"""Checkpoints of untrained models."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from xlstm_hydra.checkpoint import Checkpoints
from xlstm_hydra.configs import CheckpointConfig
from xlstm_hydra.metadata import write_metadata
from xlstm_hydra.models import build_model, init_model, list_parameters
from xlstm_hydra.step import TrainState


def save_untrained(run, folder, step=2, params=None):
    """Save parameters (by default, the initial ones) as a checkpoint in `folder`. Returns them."""
    if params is None:
        params = jax.jit(lambda: init_model(build_model(run.model), jax.random.key(1)))()
    checkpoints = Checkpoints(folder, CheckpointConfig(async_save=False))
    nothing = jax.numpy.zeros(())
    state = TrainState(params, {"count": nothing}, jax.numpy.asarray(step), nothing)
    checkpoints.save(state, SimpleNamespace(position=0), write_metadata(run), None)  # pyright: ignore[reportArgumentType]
    checkpoints.close()
    return params


_shapes: dict[str, dict[str, tuple[int, ...]]] = {}


def shapes_of(model):
    """Shape of each parameter by its path. Each config is traced only once."""
    key = f"{model.class_path()} {json.dumps(model.model_config.to_dict())}"
    if key not in _shapes:
        _shapes[key] = {p.path: p.shape for p in list_parameters(model)}
    return _shapes[key]


def random_params(model, scale=0.3, dtype=jnp.float32):
    """Parameters without zeros, as a tree. Nothing is compiled."""
    rng = np.random.default_rng(0)
    flat = {path: jnp.asarray(scale * rng.normal(size=shape), dtype) for path, shape in shapes_of(model).items()}
    return traverse_util.unflatten_dict(flat, sep=".")
