"""A checkpoint without the training."""

from types import SimpleNamespace

import jax

from xlstm_hydra.checkpoint import Checkpoints, TrainState
from xlstm_hydra.configs import CheckpointConfig
from xlstm_hydra.metadata import write_metadata
from xlstm_hydra.models import build_model, init_model


def save_untrained(run, folder, step=2, params=None):
    """Parameters, the initial ones unless given, as a checkpoint in `folder`. Returns them."""
    if params is None:
        params = jax.jit(lambda: init_model(build_model(run.model), jax.random.key(1)))()
    checkpoints = Checkpoints(folder, CheckpointConfig(async_save=False))
    nothing = jax.numpy.zeros(())
    state = TrainState(params, {"count": nothing}, jax.numpy.asarray(step), nothing)
    checkpoints.save(state, SimpleNamespace(position=0), write_metadata(run), None)  # pyright: ignore[reportArgumentType]
    checkpoints.close()
    return params
