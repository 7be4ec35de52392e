"""Bytes on each device at the moment of a step that needs most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from xlstm_hydra.configs import RunConfig
from xlstm_hydra.models import BATCH_TYPES, Objective
from xlstm_hydra.optim import build_optimizer
from xlstm_hydra.parallel import Placement

from ._dataflow import read_jaxpr
from ._liveness import busiest_moment


@dataclass(frozen=True)
class Memory:
    """Bytes on each device at the moment of a step that needs most."""

    parameters: int
    """This device's share of the parameters."""

    gradients: int
    """Its share of their gradients, as far as they are there at that moment."""

    optimizer: int
    """Its share of the optimizer's state, and the few numbers beside it that a step needs."""

    batch: int
    """Its share of the batch."""

    activations: int
    """What is kept of the forward pass for the backward pass; `parallel.remat` and `trainer.remat_policy` say what."""

    gathered: int
    """Whole parameters that FSDP has gathered, and their gradients before these are scattered."""

    logits: int
    """Logits, loss, and their gradients."""

    working: int
    """Intermediate results of what is being computed at that moment."""

    moment: str
    """What is being computed then, in words."""

    @property
    def total(self) -> int:
        """All of it."""
        kinds = (self.parameters, self.gradients, self.optimizer, self.batch)
        return sum(kinds) + self.activations + self.gathered + self.logits + self.working


def step_memory(objective: Objective, jaxpr: Any) -> Memory:
    """The memory of a training step.

    Args:
        objective: of the run.
        jaxpr: what `trace` makes of it.
    """
    graph = read_jaxpr(jaxpr.jaxpr)
    moment = busiest_moment(graph)
    kinds = dict.fromkeys(("gradients", "activations", "gathered", "logits", "working"), 0)
    kinds["working"] = moment.bytes
    return Memory(
        **state_bytes(objective.run, objective.placements, objective.mesh.shape),
        **kinds,
        moment=str(moment.running[-1].name if moment.running else ""),
    )


def state_bytes(run: RunConfig, placements: Sequence[Placement], sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes on each device that are there all the time: parameters, optimizer and batch.

    Args:
        run: the config.
        placements: of its parameters.
        sizes: of the mesh axes.
    """
    shapes, split = {}, {}
    for placement in placements:
        parameter = placement.parameter
        shapes[parameter.path] = jax.ShapeDtypeStruct(parameter.shape, parameter.dtype)
        split[parameter.path] = placement.shards
    params, shards = (traverse_util.unflatten_dict(flat, sep=".") for flat in (shapes, split))
    optimizer = build_optimizer(run, params)
    state = jax.eval_shape(optimizer.init, params)
    parts = optax.tree.map_params(
        optimizer, lambda leaf, shards: _bytes(leaf) // shards, state, shards, transform_non_params=_bytes
    )
    step_and_key = 4 + 8
    devices = math.prod(sizes[name] for name in run.parallel.axis_names()[:2])
    assert run.model.model_config is not None
    tokens = run.trainer.batch_size // devices * run.model.model_config.get("context_length")
    return {
        "parameters": sum(placement.bytes_per_device for placement in placements),
        "optimizer": sum(jax.tree.leaves(parts)) + step_and_key,
        "batch": tokens * sum(jnp.dtype(dtype).itemsize for dtype in BATCH_TYPES.values()),
    }


def _bytes(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize


def _show(o, j):
    moment = busiest_moment(read_jaxpr(j.jaxpr))
    print([(x.name, x.backward) for x in moment.running])
    for level, bufs in enumerate(moment.buffers):
        for b in sorted(bufs, key=lambda b: -b.bytes)[:45]:
            op = b.maker.operation
            print(
                "   " * level,
                b.bytes >> 10,
                "K",
                b.value.shape,
                op.name if op else "-",
                "B" if op and op.backward else "F",
                b.start,
                b.end,
            )
