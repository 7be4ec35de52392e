"""Costs of models that provide their own costs: classes that cannot be traced, or have kernels that JAX cannot inspect.

Flax Linen classes are traced unless they have a static method `plan_costs(config) -> ModelCosts`. All other classes
need this method. A plan is then computed as follows; a pass is the forward and backward pass of one gradient
accumulation step:

- Each parameter that FSDP shards is gathered once per pass, and once more if `parallel.remat` names one of its modules.
  Its gradient is reduce-scattered once per pass. All other gradients are summed over devices once per step.
- If `parallel.remat` is empty, all gathered parameters are kept for the backward pass. Otherwise, one layer at a time
  is kept, together with its gradient.
- The model itself reports the collectives of tensor and pipeline parallelism for the `DeviceShare` of a device.
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
    """Work of one device in one of the `gradient_accumulate_steps` passes of a step."""

    rows: int
    """Number of examples."""

    tensor: int
    """Number of devices over which heads, channels and vocabulary are sharded."""

    stages: int
    """Number of pipeline stages."""

    microbatches: int
    """Number of microbatches that the examples are split into."""

    remat: tuple[str, ...]
    """Class names of the modules that are recomputed in the backward pass."""

    remat_policy: str
    """Values that recomputed modules still save; see `TrainerConfig.remat_policy`."""


@dataclass(frozen=True)
class Activations:
    """Costs of the forward and backward pass for a `DeviceShare`, excluding parameters and gradients."""

    kept: int
    """Bytes saved for the backward pass."""

    working: int
    """Peak bytes of intermediate results."""

    logits: int
    """Bytes of logits, loss and their gradients."""

    product_flops: Mapping[str, float]
    """Floating-point operations in matrix products, forward and backward, by operand dtype."""

    other_flops: float = 0.0
    """All other operations, one per element."""

    traffic: float = 0.0
    """Bytes read from and written to memory."""

    exchanges: Sequence[Exchange] = field(default_factory=tuple)
    """Collectives of tensor and pipeline parallelism."""


class ModelCosts(Protocol):
    """Interface of the object that a model returns from `plan_costs`."""

    def parameters(self) -> Sequence[Parameter]:
        """Return every parameter with its global shape, dtype, array axis names and module classes."""
        ...

    def module_classes(self) -> Sequence[str]:
        """Return the class names that are valid in `parallel.remat` and `parallel.fsdp_modules`."""
        ...

    def activations(self, share: DeviceShare) -> Activations:
        """Return the costs of the forward and backward pass for the share of a device."""
        ...


def own_costs(run: RunConfig) -> ModelCosts | None:
    """Return the costs that the model class provides; None if the model is traced."""
    plan_costs = getattr(run.model.model_class, "plan_costs", None)
    return None if plan_costs is None else plan_costs(run.model.model_config)


def shard_own_parameters(run: RunConfig, costs: ModelCosts, sizes: Mapping[str, int]) -> tuple[Placement, ...]:
    """Return the placements of the parameters of a model with its own costs.

    Raises:
        ConfigError: `remat` or `fsdp_modules` names a class that is not a module of the model.
    """
    if problems := list(run.parallel.module_name_rules(tuple(costs.module_classes()))):
        raise ConfigError(problems)
    return tuple(shard_parameter(parameter, run.parallel, sizes) for parameter in costs.parameters())


def own_memory_and_counts(
    run: RunConfig, costs: ModelCosts, placements: Sequence[Placement], sizes: Mapping[str, int]
) -> tuple[Memory, Counts]:
    """Return the memory and the counts of a step for a model with its own costs."""
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
        moment="the forward and backward pass",
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
    """Return the size in bytes of gathered parameters: all of them if they are kept for the backward pass; otherwise
    one layer and its gradient."""
    sharded = [placement for placement in placements if placement.fsdp_axis is not None]
    if not remat:
        return sum(_whole(placement, sizes) for placement in sharded)
    stacked = [_whole(placement, sizes) // _layers(placement, sizes) for placement in sharded if _is_stacked(placement)]
    single = [_whole(placement, sizes) for placement in sharded if not _is_stacked(placement)]
    return 2 * max(sum(stacked), max(single, default=0))


def _exchanges(
    run: RunConfig, placements: Sequence[Placement], sizes: Mapping[str, int], passes: int
) -> Iterator[Exchange]:
    """Yield the FSDP collectives, and the all-reduces of gradients."""
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
    """Return the number of layers stacked in an array on this device."""
    if not _is_stacked(placement):
        return 1
    axis = placement.parameter.names.index(LAYERS)
    name = placement.spec[axis]
    return placement.parameter.shape[axis] // (sizes[name] if name else 1)


def _whole(placement: Placement, sizes: Mapping[str, int]) -> int:
    """Return the size in bytes of a parameter on this device after it is gathered by FSDP."""
    if placement.fsdp_axis is None:
        return placement.bytes_per_device
    name = placement.spec[placement.fsdp_axis]
    assert name is not None
    return placement.bytes_per_device * sizes[name]
