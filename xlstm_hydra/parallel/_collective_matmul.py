"""Dense layers over the tensor mesh axis: gather, multiply, reduce-scatter, or (collective matmul) all of it piece by
piece, so that one piece travels while another is multiplied.

The pieces travel both ways round the ring at once, each half of it, so that N devices need N/2 steps.

Axes: E the whole width of the stream, D this device's share of it, F this device's share of another array axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ._axes import Axes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pieces:
    """The shares of the stream's width as they have arrived on a device: its own, then those of the devices after it,
    then those of the devices before it, each the nearest first."""

    shares: tuple[jax.Array, ...]
    """Arrays (..., D), one per tensor-parallel device."""

    @property
    def width(self) -> int:
        """E, the width that they have together."""
        return len(self.shares) * self.shares[0].shape[-1]


def gather_stream(x: jax.Array, axes: Axes) -> jax.Array | Pieces:
    """The whole width (..., E) of a share (..., D), for `column_matmul`. Several layers can read what is gathered
    once."""
    if not axes.overlap or axes.tensor is None:
        return axes.gather(x)
    after, before = _hops(axes)
    return Pieces((x, *_chain(x, axes, after, -1), *_chain(x, axes, before, 1)))


def column_matmul(x: jax.Array | Pieces, kernel_EF: jax.Array, axes: Axes) -> jax.Array:
    """The gathered stream times a kernel of which this device has the columns: (..., F). The product has the type of
    the kernel."""
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
    """A share (..., F) times a kernel of which this device has the rows, summed over the devices; each keeps its share
    (..., D) of the columns. The product has the type of the kernel."""
    x = x.astype(kernel_FE.dtype)
    if not axes.overlap or axes.tensor is None:
        return axes.reduce_scatter(jnp.dot(x, kernel_FE))
    width = kernel_FE.shape[1] // axes.tensor_size

    def part(distance: int) -> jax.Array:
        """What this device adds to the share of the device `distance` places after it."""
        columns = jax.lax.dynamic_slice_in_dim(kernel_FE, _ring(axes, distance) * width, width, axis=1)
        return jnp.dot(x, columns)

    def collect(hops: int, way: int) -> jax.Array | None:
        """The sum of what up to `hops` devices on one side add, picked up on the way."""
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
    """How far pieces travel each way so that every device meets every other."""
    return axes.tensor_size // 2, (axes.tensor_size - 1) // 2


def _ring(axes: Axes, distance: int) -> jax.Array:
    """Number of the device `distance` places after this one."""
    return (axes.index() + distance) % axes.tensor_size  # pyright: ignore[reportReturnType]


def _shift(x: jax.Array, axes: Axes, way: int) -> jax.Array:
    """Send to the device `way` places after this one."""
    assert axes.tensor is not None
    size = axes.tensor_size
    return jax.lax.ppermute(x, axes.tensor, [(device, (device + way) % size) for device in range(size)])


def _chain(x: jax.Array, axes: Axes, hops: int, way: int) -> list[jax.Array]:
    """What arrives when everybody passes on, `hops` times, what it has."""
    received = []
    for _ in range(hops):
        x = _shift(x, axes, way)
        received.append(x)
    return received
