"""Sharding of parameters: a table for the tensor and pipeline mesh axes; a rule for the FSDP mesh axis, with the reason
if FSDP does not shard a parameter; and the all-gather of a parameter sharded by FSDP.

Parameters are described by their global shapes, so shardings can be computed without devices.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from xlstm_hydra._printable import printable
from xlstm_hydra.configs import ParallelConfig
from xlstm_hydra.problems import ConfigError, Problem, divisors, either

LAYERS = "layers"
"""Name of the array axis along which the parameters of scanned blocks are stacked."""

ARRAY_AXES: dict[str, str | None] = {
    "vocab": "model_axis_name",  # token ids, in the head
    "heads": "model_axis_name",  # heads, and widths that are a multiple of the number of heads
    "channels": "model_axis_name",  # the up-projected channels of the original block
    "mlp": "model_axis_name",  # the feed-forward width
    "stream": "model_axis_name",  # the width of the residual stream, in biases, norm scales and the embedding table
    "embed": None,  # the width of the residual stream, in kernels of dense layers
    LAYERS: "pipeline_axis_name",  # the stack of scanned blocks
}
"""For each named array axis, the field of `ParallelConfig` with the name of the mesh axis that splits the array axis.
None: only FSDP can split the array axis, as for array axes without a name."""


@dataclass(frozen=True)
class Parameter:
    """The properties of a parameter that its sharding depends on."""

    path: str
    """Path in the parameter tree, with the names joined by dots."""

    shape: tuple[int, ...]
    """Global shape."""

    dtype: str
    """Dtype in which the parameter is stored."""

    itemsize: int
    """Bytes per element."""

    names: tuple[str | None, ...]
    """Name of each array axis: a key of `ARRAY_AXES`, or None."""

    modules: tuple[str, ...]
    """Class names of the modules that contain the parameter, outermost first."""


@dataclass(frozen=True)
class Placement:
    """The placement of a parameter on a mesh."""

    parameter: Parameter
    spec: PartitionSpec
    """Mesh axis that splits each array axis; None for array axes that are not split."""

    fsdp_axis: int | None
    """Array axis split by the FSDP mesh axis, counted from the end: -1 is the last. None: not sharded by FSDP."""

    whole_because: str | None
    """Reason why FSDP does not shard the parameter; None if FSDP shards the parameter."""

    shards: int
    """Number of shards. Each device has 1 / `shards` of the parameter."""

    @property
    def bytes_per_device(self) -> int:
        """Size of the parameter on each device, in bytes."""
        return math.prod(self.parameter.shape) * self.parameter.itemsize // self.shards


def shard_parameter(parameter: Parameter, parallel: ParallelConfig, sizes: Mapping[str, int]) -> Placement:
    """Return the placement of a parameter on a mesh.

    Args:
        parameter: the parameter.
        parallel: the layout.
        sizes: size of each mesh axis by name, from `ParallelConfig.axis_sizes`.

    Raises:
        ConfigError: the size of an array axis is not divisible by the size of its mesh axis, or the name of an array
            axis is not in `ARRAY_AXES`.
    """
    spec: list[str | None] = [None] * len(parameter.shape)
    local = list(parameter.shape)
    for axis, name in enumerate(parameter.names):
        if name is not None and name not in ARRAY_AXES:
            text = f"{parameter.path} has an array axis with the unknown name {name!r}"
            fix = f"Known: {', '.join(ARRAY_AXES)}, or None."
            raise ConfigError([Problem({}, text, fix)])
        field = ARRAY_AXES[name] if name is not None else None
        if field is None or (size := sizes[parallel.get(field)]) == 1:
            continue
        if local[axis] % size:
            given = {f"parallel.{field.replace('_name', '_size')}": size}
            raise ConfigError(
                [Problem(given, f"must divide array axis {name!r} of {parameter.path} with shape {parameter.shape}")]
            )
        spec[axis], local[axis] = parallel.get(field), local[axis] // size
    axis, reason = _fsdp_axis(parameter, parallel, local, spec, sizes[parallel.fsdp_axis_name])
    if axis is not None:
        spec[axis] = parallel.fsdp_axis_name
    shards = math.prod(sizes[name] for name in spec if name is not None)
    from_end = None if axis is None else axis - len(spec)
    return Placement(parameter, PartitionSpec(*spec), from_end, reason, shards)


def _fsdp_axis(
    parameter: Parameter, parallel: ParallelConfig, local: list[int], spec: list[str | None], fsdp_size: int
) -> tuple[int | None, str | None]:
    """Return the array axis that FSDP splits and None, or None and the reason why FSDP does not shard the parameter."""
    if fsdp_size == 1:
        return None, "parallel.fsdp_axis_size is 1 on this mesh"
    if not set(parameter.modules) & set(parallel.fsdp_modules):
        owners = ", ".join(parameter.modules) or "none"
        return None, f"none of its module classes ({owners}) is in parallel.fsdp_modules"
    own = [axis for axis, name in enumerate(parameter.names) if name != LAYERS]
    elements = math.prod(local[axis] for axis in own)
    if elements < parallel.fsdp_min_weight_size:
        return None, f"{elements} elements, fewer than parallel.fsdp_min_weight_size={parallel.fsdp_min_weight_size}"
    free = [axis for axis in own if spec[axis] is None]
    # Prefer the largest array axis, which is the most likely to be divisible. Among equal ones, prefer the last.
    for axis in sorted(free, key=lambda axis: (local[axis], axis), reverse=True):
        if local[axis] % fsdp_size == 0:
            return axis, None
    shape = tuple(local[axis] for axis in free)
    return None, f"none of the unsharded array axes {shape} is divisible by parallel.fsdp_axis_size={fsdp_size}"


def split_with(placement: Placement, parallel: ParallelConfig, sizes: Mapping[str, int]) -> str | None:
    """Describe the changes to the layout with which FSDP would shard a parameter that is not sharded by FSDP. Return
    None if no change helps, because no array axis is free.

    Args:
        placement: placement of the parameter.
        parallel: the layout.
        sizes: size of each mesh axis by name.
    """
    parameter, devices = placement.parameter, sizes[parallel.fsdp_axis_name]
    own = [axis for axis, name in enumerate(parameter.names) if name != LAYERS]
    spec = [*placement.spec, *[None] * (len(parameter.shape) - len(placement.spec))]
    free = [parameter.shape[axis] for axis in own if spec[axis] is None]
    usable = sorted({size for length in free for size in divisors(length)} - {1})
    if not usable:
        return None
    ways = []
    if devices not in usable:
        ways.append(f"parallel.fsdp_axis_size of {either(usable)}")
    if not set(parameter.modules) & set(parallel.fsdp_modules):
        ways.append(f"{either(dict.fromkeys(parameter.modules))} in parallel.fsdp_modules")
    elements = math.prod(parameter.shape[axis] // sizes.get(str(spec[axis]), 1) for axis in own)
    if elements < parallel.fsdp_min_weight_size:
        ways.append(f"parallel.fsdp_min_weight_size of {elements} or less")
    return " and ".join(ways)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def gather_parameter(
    shard: jax.Array, axis_name: str, axis: int, gather_dtype: str | None, scatter_dtype: str | None
) -> jax.Array:
    """All-gather a parameter from shards along array axis `axis`. The gradient is reduce-scattered.

    Args:
        shard: the local shard.
        axis_name: the FSDP mesh axis.
        axis: the array axis that is split.
        gather_dtype: dtype for the all-gather. The result is cast back to the dtype of the shard, so its values are
            rounded. None: no cast.
        scatter_dtype: dtype for the reduce-scatter of the gradient. None: no cast.
    """
    del scatter_dtype
    sent = shard if gather_dtype is None else shard.astype(jnp.dtype(gather_dtype))
    return jax.lax.all_gather(sent, axis_name, axis=axis, tiled=True).astype(shard.dtype)


def _forward(shard, axis_name, axis, gather_dtype, scatter_dtype):
    return gather_parameter(shard, axis_name, axis, gather_dtype, scatter_dtype), None


def _backward(axis_name, axis, gather_dtype, scatter_dtype, _, gradient):
    del gather_dtype
    sent = gradient if scatter_dtype is None else gradient.astype(jnp.dtype(scatter_dtype))
    summed = jax.lax.psum_scatter(sent, axis_name, scatter_dimension=axis, tiled=True)
    return (summed.astype(gradient.dtype),)


gather_parameter.defvjp(_forward, _backward)


def _report_rows(placements: Iterable[Placement]) -> list[tuple[str, str, str, str, str]]:
    """Return the rows of the report, one per parameter: path, global shape, spec, bytes per device, and the reason if
    FSDP does not shard the parameter."""
    return [
        (
            printable(placement.parameter.path),
            "x".join(map(str, placement.parameter.shape)) or "scalar",
            "(" + ", ".join(str(axis or "-") for axis in placement.spec) + ")",
            f"{placement.bytes_per_device:,}",
            f"not sharded by FSDP: {placement.whole_because}" if placement.whole_because else "",
        )
        for placement in placements
    ]


def sharding_report(placements: Iterable[Placement]) -> str:
    """Return a table with the shape, spec and bytes per device of each parameter, and the reason if FSDP does not shard
    the parameter. The last line has the totals."""
    placements = list(placements)
    header = ("parameter", "shape", "spec", "bytes/device", "")
    rows = [header, *_report_rows(placements)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{path:<{widths[0]}}  {shape:<{widths[1]}}  {spec:<{widths[2]}}  {size:>{widths[3]}}  {reason}".rstrip()
        for path, shape, spec, size, reason in rows
    ]
    return "\n".join([*lines, "", sharding_summary(placements)])


def parameter_totals(placements: Iterable[Placement]) -> tuple[int, int, int]:
    """Return the number of parameters (scalars), their total size in bytes, and their size in bytes on each device."""
    placements = list(placements)
    sizes = [placement.bytes_per_device * placement.shards for placement in placements]
    count = sum(size // placement.parameter.itemsize for size, placement in zip(sizes, placements, strict=True))
    return count, sum(sizes), sum(placement.bytes_per_device for placement in placements)


def sharding_summary(placements: Iterable[Placement]) -> str:
    """Return one line with the number of parameters and arrays, the size in bytes in total and on each device, and the
    number of arrays sharded by FSDP."""
    placements = list(placements)
    sharded = [placement for placement in placements if placement.fsdp_axis is not None]
    count, total, device = parameter_totals(placements)
    return (
        f"{count:,} parameters in {len(placements)} arrays, {total:,} bytes; {device:,} bytes on each device, "
        f"{len(sharded)} arrays sharded by FSDP"
    )
