"""Models that cannot be traced, or that know better, say themselves what they cost.

Any Flax Linen class is traced. A class that is none, or whose kernels JAX cannot look into, has a static method
`plan_costs(config) -> ModelCosts` instead. From what that gives, the plan follows by arithmetic:

- Every parameter that FSDP shards is gathered once per pass over the batch, and once more where `parallel.remat` names
  one of its modules; its gradient is scattered once per pass. Every other gradient is summed once a step.
- Where `parallel.remat` is empty, all that was gathered is kept for the backward pass, otherwise one layer of it at a
  time, and its gradient beside it.
- Collectives of tensor and pipeline parallelism are the model's own business: `DeviceShare` says how it is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import jax.numpy as jnp

from xlstm_hydra.configs import RunConfig
from xlstm_hydra.parallel import LAYERS, Parameter, Placement, shard_parameter
from xlstm_hydra.problems import ConfigError

from ._counts import Counts, Exchange
from ._memory import Memory, state_bytes


@dataclass(frozen=True)
class DeviceShare:
    """What one device computes in one pass: of `gradient_accumulate_steps` passes, a step has so many."""

    rows: int
    """Examples."""

    tensor: int
    """Devices that share the heads, channels and vocabulary."""

    stages: int
    """Stages of the pipeline."""

    microbatches: int
    """Parts that the rows go through the pipeline in."""

    remat: tuple[str, ...]
    """Class names of the modules that are recomputed."""

    remat_policy: str
    """What these keep all the same; see `TrainerConfig.remat_policy`."""


@dataclass(frozen=True)
class Activations:
    """Needs of a model's forward and backward pass over a `DeviceShare`, beside parameters and gradients."""

    kept: int
    """Bytes kept of the forward pass for the backward pass."""

    working: int
    """Bytes of intermediate results, at the moment when they are most."""

    logits: int
    """Bytes of logits, loss and their gradients."""

    product_flops: Mapping[str, float]
    """Floating-point operations of matrix products, forwards and backwards, by the type of their operands."""

    other_flops: float = 0.0
    """Operations of everything else, one per element."""

    traffic: float = 0.0
    """Bytes read from and written to memory."""

    exchanges: Sequence[Exchange] = field(default_factory=tuple)
    """Collectives of tensor and pipeline parallelism."""


class ModelCosts(Protocol):
    """What the planner must know of a model."""

    def parameters(self) -> Sequence[Parameter]:
        """Global shape, type, names of array axes and owning module classes of every parameter."""
        ...

    def module_classes(self) -> Sequence[str]:
        """Class names that `parallel.remat` and `parallel.fsdp_modules` can name."""
        ...

    def activations(self, share: DeviceShare) -> Activations:
        """What a pass over a device's share needs."""
        ...


def own_costs(run: RunConfig) -> ModelCosts | None:
    """What the model class of a run says itself of its costs; None: it is traced."""
    plan_costs = getattr(run.model.model_class, "plan_costs", None)
    return None if plan_costs is None else plan_costs(run.model.model_config)


def shard_own_parameters(run: RunConfig, costs: ModelCosts, sizes: Mapping[str, int]) -> tuple[Placement, ...]:
    """Where the parameters of such a model live.

    Raises:
        ConfigError: `remat` or `fsdp_modules` names a class that is no module of the model.
    """
    if problems := list(run.parallel.module_name_rules(tuple(costs.module_classes()))):
        raise ConfigError(problems)
    return tuple(shard_parameter(parameter, run.parallel, sizes) for parameter in costs.parameters())


def own_memory_and_counts(
    run: RunConfig, costs: ModelCosts, placements: Sequence[Placement], sizes: Mapping[str, int]
) -> tuple[Memory, Counts]:
    """Memory and counts of a step of such a model."""
    passes, parallel = run.trainer.gradient_accumulate_steps, run.parallel
    data, fsdp, stages, tensor = (sizes[name] for name in parallel.axis_names())
    rows = run.trainer.batch_size // (data * fsdp * passes)
    microbatches = run.trainer.microbatches(data, fsdp, stages)
    share = DeviceShare(rows, tensor, stages, microbatches, tuple(parallel.remat), run.trainer.remat_policy)
    activations = costs.activations(share)
    memory = Memory(
        **state_bytes(run, placements, sizes),
        gradients=sum(placement.bytes_per_device for placement in placements),
        activations=activations.kept,
        gathered=_gathered(placements, parallel.remat, sizes),
        logits=activations.logits,
        working=activations.working,
        moment="forward and backward pass",
    )
    counts = Counts(
        product_flops={dtype: passes * flops for dtype, flops in activations.product_flops.items()},
        other_flops=passes * activations.other_flops,
        traffic=passes * activations.traffic,
        exchanges=tuple(
            [
                *(Exchange(e.operation, e.axes, e.dtype, e.bytes, passes * e.count) for e in activations.exchanges),
                *_exchanges(run, placements, sizes, passes),
            ]
        ),
    )
    return memory, counts


def _gathered(placements: Sequence[Placement], remat: Sequence[str], sizes: Mapping[str, int]) -> int:
    """Bytes of gathered parameters: of all of them where they are kept, otherwise of one layer and its gradient."""
    sharded = [placement for placement in placements if placement.fsdp_axis is not None]
    if not remat:
        return sum(_whole(placement, sizes) for placement in sharded)
    stacked = [_whole(placement, sizes) // _layers(placement, sizes) for placement in sharded if _is_stacked(placement)]
    single = [_whole(placement, sizes) for placement in sharded if not _is_stacked(placement)]
    return 2 * max(sum(stacked), max(single, default=0))


def _exchanges(
    run: RunConfig, placements: Sequence[Placement], sizes: Mapping[str, int], passes: int
) -> Iterator[Exchange]:
    """The collectives of FSDP, and the sums of the gradients."""
    parallel = run.parallel
    batch = [name for name in parallel.axis_names()[:2] if sizes[name] > 1]
    for placement in placements:
        parameter, layers = placement.parameter, _layers(placement, sizes)
        if placement.fsdp_axis is not None:
            elements = _whole(placement, sizes) // parameter.itemsize // layers
            uses = 2 if set(parameter.modules) & set(parallel.remat) else 1
            for operation, dtype, times in (
                ("all-gather", parallel.fsdp_gather_dtype, uses),
                ("reduce-scatter", parallel.fsdp_grad_scatter_dtype, 1),
            ):
                sent = jnp.dtype(dtype or parameter.dtype)
                size, count = elements * sent.itemsize, times * layers * passes
                yield Exchange(operation, (parallel.fsdp_axis_name,), sent.name, size, count)
        summed = tuple(name for name in batch if name not in placement.spec)
        if summed:
            yield Exchange("all-reduce", summed, parameter.dtype, placement.bytes_per_device, 1)


def _is_stacked(placement: Placement) -> bool:
    return LAYERS in placement.parameter.names


def _layers(placement: Placement, sizes: Mapping[str, int]) -> int:
    """Layers that an array on this device is a stack of."""
    if not _is_stacked(placement):
        return 1
    axis = placement.parameter.names.index(LAYERS)
    name = placement.spec[axis]
    return placement.parameter.shape[axis] // (sizes[name] if name else 1)


def _whole(placement: Placement, sizes: Mapping[str, int]) -> int:
    """Bytes of this device's part of a parameter once it is gathered over the FSDP mesh axis."""
    if placement.fsdp_axis is None:
        return placement.bytes_per_device
    name = placement.spec[placement.fsdp_axis]
    assert name is not None
    return placement.bytes_per_device * sizes[name]
