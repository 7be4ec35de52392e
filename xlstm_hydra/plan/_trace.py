"""The program of a step, as JAX traces it on a mesh without devices."""

from __future__ import annotations

import jax

from xlstm_hydra._jax_internals import cudnn_assumed
from xlstm_hydra.step import ShardedLoss

from ._jaxpr import Program, trace_program


def trace(objective: ShardedLoss) -> Program:
    """Loss and gradients: one `shard_map` whose body is what each device does."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    with cudnn_assumed():
        return trace_program(objective.loss_and_gradients, objective.abstract_params, objective.abstract_batch, key)
