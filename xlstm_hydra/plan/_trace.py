"""The program of a step, as JAX traces it on a mesh without devices."""

from __future__ import annotations

from typing import Any

import jax

from xlstm_hydra.models import Objective

from ._cudnn import as_if_there


def trace(objective: Objective) -> Any:
    """Loss and gradients as a closed jaxpr: one `shard_map` whose body is what each device does."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    with as_if_there():
        return jax.make_jaxpr(objective.loss_and_gradients)(objective.abstract_params, objective.abstract_batch, key)
