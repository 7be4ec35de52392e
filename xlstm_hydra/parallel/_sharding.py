"""Sharding of parameters: a table for the tensor mesh axis, a rule for the FSDP mesh axis, the reason if a parameter is
not sharded, and the gather of a sharded parameter.

Parameters are global arrays. No function here needs a device.
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
"""Name of the array axis that scanned blocks are stacked along."""

ARRAY_AXES: dict[str, str | None] = {
    "vocab": "model_axis_name",  # token ids, in the head
    "heads": "model_axis_name",  # heads, and widths that are a multiple of the number of heads
    "channels": "model_axis_name",  # the up-projected channels of the original block
    "mlp": "model_axis_name",  # the feed-forward width
    "stream": "model_axis_name",  # the residual stream in parameters that are added to it or multiply it elementwise
    "embed": None,  # the residual stream as input or output of a matrix product
    LAYERS: "pipeline_axis_name",  # the stack of scanned blocks
}
"""Field of `ParallelConfig` with the name of the mesh axis that splits an array axis, by the name of the array axis.
None: it is not split. An array axis without a name can only be split by FSDP."""


@dataclass(frozen=True)
class Parameter:
    """The properties of a parameter that its sharding depends on."""

    path: str
    """Names from the root of the parameter tree, joined with dots."""

    shape: tuple[int, ...]
    """Global shape."""

    dtype: str
    """Dtype that the parameter is stored in."""

    itemsize: int
    """Bytes per element."""

    names: tuple[str | None, ...]
    """Name of each array axis, as in `ARRAY_AXES`, or None."""

    modules: tuple[str, ...]
    """Class names of the modules that own it, outermost first."""


@dataclass(frozen=True)
class Placement:
    """The placement of a parameter on a mesh."""

    parameter: Parameter
    spec: PartitionSpec
    """Mesh axis of each array axis."""

    fsdp_axis: int | None
    """Array axis split by the FSDP mesh axis, counted from the end. None: not sharded by FSDP."""

    whole_because: str | None
    """Reason why FSDP does not shard the parameter; None if it does."""

    shards: int
    """Number of shards. The bytes per device are the total bytes divided by it."""

    @property
    def bytes_per_device(self) -> int:
        """Bytes of this parameter on each device."""
        return math.prod(self.parameter.shape) * self.parameter.itemsize // self.shards


def shard_parameter(parameter: Parameter, parallel: ParallelConfig, sizes: Mapping[str, int]) -> Placement:
    """Return the placement of a parameter.

    Args:
        parameter: its global shape, names of array axes, and modules.
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
    """Return the array axis that FSDP splits, or the reason why there is none."""
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
    # Prefer the largest array axis, which is the most likely to be divisible. Of equal ones, prefer the last.
    for axis in sorted(free, key=lambda axis: (local[axis], axis), reverse=True):
        if local[axis] % fsdp_size == 0:
            return axis, None
    shape = tuple(local[axis] for axis in free)
    return None, f"no free array axis of {shape} is divisible by parallel.fsdp_axis_size={fsdp_size}"


def split_with(placement: Placement, parallel: ParallelConfig, sizes: Mapping[str, int]) -> str | None:
    """Return the changes to the layout with which FSDP would shard a parameter that it does not shard. None if no
    change helps, because the parameter has no free array axis.

    Args:
        placement: placement of the parameter.
        parallel: the layout.
        sizes: sizes of the mesh axes by name.
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
    """All-gather a parameter from its shards along array axis `axis`. Its gradient is reduce-scattered.

    Args:
        shard: the local shard.
        axis_name: the FSDP mesh axis.
        axis: the array axis that is split.
        gather_dtype: dtype for the all-gather. The result has rounded values in the dtype of the shard. None: no cast.
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
    """Rows of the report: path, global shape, spec, bytes per device and reason of each parameter."""
    return [
        (
            printable(placement.parameter.path),
            "x".join(map(str, placement.parameter.shape)) or "scalar",
            "(" + ", ".join(str(axis or "-") for axis in placement.spec) + ")",
            f"{placement.bytes_per_device:,}",
            f"whole: {placement.whole_because}" if placement.whole_because else "",
        )
        for placement in placements
    ]


def sharding_report(placements: Iterable[Placement]) -> str:
    """Return a table of all parameters with shape, spec, bytes per device and the reason if FSDP does not shard one.
    The totals are on the last line."""
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
    """Return the number of parameters, their total bytes, and the bytes on each device."""
    placements = list(placements)
    sizes = [placement.bytes_per_device * placement.shards for placement in placements]
    count = sum(size // placement.parameter.itemsize for size, placement in zip(sizes, placements, strict=True))
    return count, sum(sizes), sum(placement.bytes_per_device for placement in placements)


def sharding_summary(placements: Iterable[Placement]) -> str:
    """Return one line with the number of parameters, their total bytes, and the bytes per device."""
    placements = list(placements)
    sharded = [placement for placement in placements if placement.fsdp_axis is not None]
    count, total, device = parameter_totals(placements)
    return (
        f"{count:,} parameters in {len(placements)} arrays, {total:,} bytes; {device:,} bytes on each device, "
        f"{len(sharded)} arrays sharded by FSDP"
    )
