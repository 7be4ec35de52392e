"""From axis sizes to a mesh. The arithmetic is `ParallelConfig.axis_sizes`; only `build_mesh` asks for devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from xlstm_hydra.configs import ConfigError, ParallelConfig

from ._axes import Axes


def build_mesh(parallel: ParallelConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a layout over `devices` (all there are).

    Raises:
        ConfigError: the axis sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    try:
        sizes = parallel.axis_sizes(len(devices))
    except ConfigError as error:
        raise ConfigError(problem.at("parallel") for problem in error.problems) from None
    return Mesh(np.asarray(devices).reshape(tuple(sizes.values())), tuple(sizes))


def mesh_axes(parallel: ParallelConfig, mesh: Mesh, *, microbatches: int = 1, stage_remat: bool = False) -> Axes:
    """The axes that code inside `shard_map` over this mesh works with.

    Args:
        parallel: the layout.
        mesh: its mesh.
        microbatches: parts that a batch goes through the pipeline in.
        stage_remat: whether a stage keeps only what enters it for the backward pass.
    """
    tensor, pipeline = parallel.model_axis_name, parallel.pipeline_axis_name
    size, stages = mesh.shape[tensor], mesh.shape[pipeline]
    return Axes(
        tensor=tensor if size > 1 else None,
        tensor_size=size,
        batch=batch_axes(parallel, mesh),
        overlap=parallel.tp_async_dense,
        pipeline=pipeline if stages > 1 else None,
        stages=stages,
        microbatches=microbatches,
        stage_remat=stage_remat,
    )


def batch_axes(parallel: ParallelConfig, mesh: Mesh) -> tuple[str, ...]:
    """Names of the mesh axes larger than 1 that the batch is split over."""
    names = (parallel.data_axis_name, parallel.fsdp_axis_name)
    return tuple(name for name in names if mesh.shape[name] > 1)


def batch_spec(parallel: ParallelConfig, mesh: Mesh) -> PartitionSpec:
    """How the first array axis of a batch is split."""
    axes = batch_axes(parallel, mesh)
    return PartitionSpec(axes) if axes else PartitionSpec()


def describe_mesh(mesh: Mesh) -> str:
    """`8 devices (cpu): dp=2 fsdp=4 pp=1 tp=1`."""
    sizes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    noun = "device" if mesh.size == 1 else "devices"
    return f"{mesh.size} {noun} ({mesh.devices.flat[0].platform}): {sizes}"
