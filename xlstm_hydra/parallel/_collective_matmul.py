"""Matrix products with operands that are sharded over the tensor mesh axis. They use an all-gather or a reduce-scatter;
or a collective matmul, which sends one shard while it multiplies another.

A collective matmul sends shards around the ring of devices in both directions at once, so N devices need N/2 steps. See
Wang et al., "Overlap communication with dependent computation via decomposition" (ASPLOS 2023).

Axes: E the global width of the residual stream, D the width of a local shard of the stream, F the local width of the
other array axis of the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ._axes import Axes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pieces:
    """The shards of the residual stream, in order of arrival on a device: the device's own shard, then the shards of
    the following devices in the ring, then those of the preceding devices, both by increasing distance."""

    shares: tuple[jax.Array, ...]
    """Arrays of shape `[..., D]`, one per tensor-parallel device."""

    @property
    def width(self) -> int:
        """The global width E of the residual stream."""
        return len(self.shares) * self.shares[0].shape[-1]


def gather_stream(x: jax.Array, axes: Axes) -> jax.Array | Pieces:
    """Gather the residual stream from shards `[..., D]` to `[..., E]`, for `column_matmul`. Several layers can share
    the result.

    Returns:
        The gathered array or, if layers use collective matmul, the separate shards.
    """
    if not axes.overlap or axes.tensor is None:
        return axes.gather(x)
    after, before = _hops(axes)
    return Pieces((x, *_chain(x, axes, after, -1), *_chain(x, axes, before, 1)))


def column_matmul(x: jax.Array | Pieces, kernel_EF: jax.Array, axes: Axes) -> jax.Array:
    """Multiply the gathered stream `[..., E]` by the local columns `[E, F]` of a kernel.

    Returns:
        The local shard `[..., F]` of the product, in the dtype of the kernel.
    """
    if not isinstance(x, Pieces):
        return jnp.dot(x.astype(kernel_EF.dtype), kernel_EF)
    after, before = _hops(axes)
    width, acc = kernel_EF.shape[0] // axes.tensor_size, jnp.promote_types(kernel_EF.dtype, jnp.float32)
    distances = (0, *range(1, after + 1), *range(-1, -before - 1, -1))
    total = None
    for share, distance in zip(x.shares, distances, strict=True):
        rows = jax.lax.dynamic_slice_in_dim(kernel_EF, _ring(axes, distance) * width, width, axis=0)
        part = jnp.dot(share.astype(kernel_EF.dtype), rows, preferred_element_type=acc)
        total = part if total is None else total + part
    assert total is not None
    return total.astype(kernel_EF.dtype)


def row_matmul(x: jax.Array, kernel_FE: jax.Array, axes: Axes) -> jax.Array:
    """Multiply a local shard `[..., F]` by the local rows `[F, E]` of a kernel, and sum the products over the
    tensor-parallel devices.

    Returns:
        The local shard `[..., D]` of the sum, in the dtype of the kernel.
    """
    x = x.astype(kernel_FE.dtype)
    if not axes.overlap or axes.tensor is None:
        return axes.reduce_scatter(jnp.dot(x, kernel_FE))
    width = kernel_FE.shape[1] // axes.tensor_size

    def part(distance: int) -> jax.Array:
        """Return this device's contribution to the result of the device `distance` positions ahead in the ring."""
        columns = jax.lax.dynamic_slice_in_dim(kernel_FE, _ring(axes, distance) * width, width, axis=1)
        return jnp.dot(x, columns)

    def collect(hops: int, way: int) -> jax.Array | None:
        """Return the sum of the contributions of the nearest `hops` devices on one side, accumulated along the ring.
        `way` is the direction of travel: 1 or -1."""
        total = None
        for distance in range(hops, 0, -1):
            mine = part(way * distance)
            total = _shift(mine if total is None else total + mine, axes, way)
        return total

    after, before = _hops(axes)
    sums = (part(0), collect(after, 1), collect(before, -1))
    result = sums[0]
    for other in sums[1:]:
        result = result if other is None else result + other
    return result


def _hops(axes: Axes) -> tuple[int, int]:
    """Return the number of hops in each direction around the ring after which every shard has reached every device."""
    return axes.tensor_size // 2, (axes.tensor_size - 1) // 2


def _ring(axes: Axes, distance: int) -> jax.Array:
    """Return the index of the device `distance` positions ahead in the ring."""
    return (axes.index() + distance) % axes.tensor_size  # pyright: ignore[reportReturnType]


def _shift(x: jax.Array, axes: Axes, way: int) -> jax.Array:
    """Send `x` to the device `way` positions ahead in the ring, and return the received array."""
    assert axes.tensor is not None
    size = axes.tensor_size
    return jax.lax.ppermute(x, axes.tensor, [(device, (device + way) % size) for device in range(size)])


def _chain(x: jax.Array, axes: Axes, hops: int, way: int) -> list[jax.Array]:
    """Return the arrays received in `hops` shifts. In each shift, every device forwards the array received last."""
    received = []
    for _ in range(hops):
        x = _shift(x, axes, way)
        received.append(x)
    return received
