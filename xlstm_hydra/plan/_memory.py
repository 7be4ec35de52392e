"""Bytes on each device at the moment of a step that needs most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax
from flax import traverse_util

from xlstm_hydra.models import Objective
from xlstm_hydra.optim import build_optimizer

from ._dataflow import Graph, Operation, read_jaxpr
from ._fusion import Buffer
from ._liveness import Moment, busiest_moment


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
    return Memory(**state_bytes(objective), **kinds, moment=str(moment.running[-1].name if moment.running else ""))


def state_bytes(objective: Objective) -> dict[str, int]:
    """Bytes on each device that are there all the time: parameters, optimizer and batch."""
    shards = {placement.parameter.path: placement.shards for placement in objective.placements}
    split = traverse_util.unflatten_dict(shards, sep=".")
    optimizer = build_optimizer(objective.run, objective.abstract_params)
    state = jax.eval_shape(optimizer.init, objective.abstract_params)
    sizes = optax.tree.map_params(
        optimizer, lambda leaf, shards: _bytes(leaf) // shards, state, split, transform_non_params=_bytes
    )
    step_and_key = 4 + 8
    axes = [name for names in objective.batch_spec for name in (names if isinstance(names, tuple) else (names,))]
    devices = math.prod(objective.mesh.shape[name] for name in axes if name is not None)
    return {
        "parameters": sum(placement.bytes_per_device for placement in objective.placements),
        "optimizer": sum(jax.tree.leaves(sizes)) + step_and_key,
        "batch": sum(_bytes(part) // devices for part in objective.abstract_batch.values()),
    }


def _bytes(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize

def _show(o,j):
    moment=busiest_moment(read_jaxpr(j.jaxpr))
    print([ (x.name, x.backward) for x in moment.running])
    for level, bufs in enumerate(moment.buffers):
        for b in sorted(bufs, key=lambda b:-b.bytes)[:45]:
            op=b.maker.operation
            print("   "*level, b.bytes>>10,"K", b.value.shape, op.name if op else "-", "B" if op and op.backward else "F", b.start,b.end)
