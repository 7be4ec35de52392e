"""Device meshes. `ParallelConfig.axis_sizes` computes the sizes of the mesh axes; only `build_mesh` asks JAX for the
devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from xlstm_hydra.configs import ParallelConfig
from xlstm_hydra.devices import host_of
from xlstm_hydra.problems import ConfigError, Problem

from ._axes import Axes

AnyMesh = Mesh | AbstractMesh
"""A mesh of devices, or an abstract mesh, which has only axis sizes: programs can be traced for it, but not run."""


def build_mesh(
    parallel: ParallelConfig, devices: Sequence[Any] | None = None, order: Sequence[str] | None = None
) -> Mesh:
    """Build the mesh of a layout.

    Args:
        parallel: the layout.
        devices: the devices. None: all devices.
        order: names of the mesh axes. Neighbors along the first mesh axis are the closest devices, and neighbors along
            the last one the most distant devices. None: the mesh axes with the most communication are first.

    Raises:
        ConfigError: the product of the mesh axis sizes is not the number of devices, or the layout has not been chosen.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _axis_sizes(parallel, len(devices))
    grid = assign_devices(devices, sizes, order or parallel.busiest_axes())
    return Mesh(grid, tuple(sizes), axis_types=_auto(sizes))


def abstract_mesh(parallel: ParallelConfig, num_devices: int) -> AbstractMesh:
    """Build the abstract mesh of a layout for `num_devices` devices, without using any device.

    Raises:
        ConfigError: see `build_mesh`.
    """
    sizes = _axis_sizes(parallel, num_devices)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=_auto(sizes))


def _auto(sizes: Mapping[str, int]) -> tuple[AxisType, ...]:
    """Return the axis type Auto for every mesh axis. `AbstractMesh` defaults to Explicit since JAX 0.11.2, and
    `jax.shard_map` would then reject arrays whose sharding is not equal to `in_specs`."""
    return (AxisType.Auto,) * len(sizes)


def _axis_sizes(parallel: ParallelConfig, num_devices: int) -> dict[str, int]:
    try:
        sizes = parallel.axis_sizes(num_devices)
    except ConfigError as error:
        raise ConfigError(problem.at("parallel") for problem in error.problems) from None
    if parallel.is_open():
        text, fix = (
            "the layout has not been chosen yet",
            "Use the run `xlstm_hydra.plan.search(...).chosen`, which has a layout.",
        )
        raise ConfigError([Problem({"parallel.name": parallel.get("name")}, text, fix)])
    return sizes


def assign_devices(devices: Sequence[Any], sizes: Mapping[str, int], closest_first: Sequence[str]) -> np.ndarray:
    """Arrange devices in an array with one axis per mesh axis, in the order of `sizes`. Neighbors along the first mesh
    axis in `closest_first` share a host if possible, then neighbors along the second mesh axis, and so on."""
    outer_first = list(reversed(closest_first))
    shape = [sizes[name] for name in outer_first]
    if devices[0].platform == "tpu" and len({getattr(device, "slice_index", 0) for device in devices}) == 1:
        grid = mesh_utils.create_device_mesh(shape, devices)  # takes the torus of the TPU network into account
    else:
        grid = np.empty(len(devices), object)
        grid[:] = sorted(devices, key=lambda device: (host_of(device), device.process_index, device.id))
        grid = grid.reshape(shape)
    return grid.transpose([outer_first.index(name) for name in sizes])


def axes_across_hosts(mesh: Mesh) -> tuple[str, ...]:
    """Return the names of the mesh axes that cross hosts."""
    hosts = np.vectorize(host_of, otypes=[int])(mesh.devices)
    first = (hosts.take([0], axis) for axis in range(hosts.ndim))
    return tuple(name for name, here in zip(mesh.axis_names, first, strict=True) if (hosts != here).any())


def mesh_axes(parallel: ParallelConfig, mesh: AnyMesh, *, microbatches: int = 1, stage_remat: bool = False) -> Axes:
    """Return the `Axes` for code inside `shard_map` over a mesh.

    Args:
        parallel: the layout.
        mesh: the mesh of the layout.
        microbatches: number of microbatches in the pipeline.
        stage_remat: True to save only the inputs of each pipeline stage for the backward pass.
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


def batch_axes(parallel: ParallelConfig, mesh: AnyMesh) -> tuple[str, ...]:
    """Return the names of the mesh axes over which the batch is split, except mesh axes of size 1."""
    names = (parallel.data_axis_name, parallel.fsdp_axis_name)
    return tuple(name for name in names if mesh.shape[name] > 1)


def batch_spec(parallel: ParallelConfig, mesh: AnyMesh) -> PartitionSpec:
    """Return the partition spec of a batch, which is split along its array axis 0."""
    axes = batch_axes(parallel, mesh)
    return PartitionSpec(axes) if axes else PartitionSpec()


def describe_mesh(mesh: Mesh) -> str:
    """Return a line such as `16 cuda devices in 2 processes: dp=2 fsdp=8 pp=1 tp=1; dp crosses hosts`, or with a single
    process, such as `8 cuda devices: dp=1 fsdp=8 pp=1 tp=1`."""
    sizes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    noun = "device" if mesh.size == 1 else "devices"
    head = f"{mesh.size} {mesh.devices.flat[0].platform} {noun}"
    processes = len({device.process_index for device in mesh.devices.flat})
    if processes == 1:
        return f"{head}: {sizes}"
    across = axes_across_hosts(mesh)
    crossing = f"{' and '.join(across) or 'no axis'} {'cross' if len(across) > 1 else 'crosses'} hosts"
    return f"{head} in {processes} processes: {sizes}; {crossing}"
