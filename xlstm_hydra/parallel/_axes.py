"""Mesh axes and their collectives, for code inside `shard_map`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from xlstm_hydra._jax_internals import varying_axes


@dataclass(frozen=True)
class Axes:
    """The tensor, pipeline and batch mesh axes, with the collectives that modules need.

    The default values are those of a single device, for which every collective is the identity. A module that uses
    `Axes` therefore computes the same global arrays inside and outside `shard_map`. Mesh axes of size 1 are omitted, so
    that they need no collectives.
    """

    tensor: str | None = None
    """Name of the tensor-parallel mesh axis; None if its size is 1."""

    tensor_size: int = 1
    """Size of the tensor-parallel mesh axis."""

    batch: tuple[str, ...] = ()
    """Names of the mesh axes over which the batch is split, outermost first."""

    overlap: bool = False
    """True if dense layers overlap communication and computation (collective matmul)."""

    pipeline: str | None = None
    """Name of the pipeline mesh axis; None if its size is 1."""

    stages: int = 1
    """Number of pipeline stages."""

    microbatches: int = 1
    """Number of microbatches in the pipeline."""

    stage_remat: bool = False
    """True if a pipeline stage saves only its inputs for the backward pass, and recomputes its activations."""

    @property
    def summed(self) -> tuple[str, ...]:
        """Names of the mesh axes over which the loss is summed."""
        return self.batch if self.pipeline is None else (*self.batch, self.pipeline)

    def local(self, size: int) -> int:
        """Return the local size of an array axis of global size `size` that is split over the tensor-parallel devices.

        Raises:
            ValueError: the number of tensor-parallel devices does not divide `size`.
        """
        if size % self.tensor_size:
            raise ValueError(
                f"the number of tensor-parallel devices ({self.tensor_size}) must divide the array axis size ({size})"
            )
        return size // self.tensor_size

    def gather(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """All-gather `x` over the tensor-parallel devices, along array axis `axis`."""
        if self.tensor is None:
            return x
        return jax.lax.all_gather(x, self.tensor, axis=axis % x.ndim, tiled=True)

    def reduce_scatter(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """Sum `x` over the tensor-parallel devices, and return this device's shard along array axis `axis`."""
        if self.tensor is None:
            return x
        return jax.lax.psum_scatter(x, self.tensor, scatter_dimension=axis % x.ndim, tiled=True)

    def all_to_all(self, x: jax.Array, split: int, concat: int) -> jax.Array:
        """Reshard `x` over the tensor-parallel devices: split array axis `split`, and gather array axis `concat`."""
        if self.tensor is None:
            return x
        return jax.lax.all_to_all(x, self.tensor, split_axis=split, concat_axis=concat, tiled=True)

    def sum(self, x: jax.Array) -> jax.Array:
        """Sum `x` over the tensor-parallel devices."""
        return x if self.tensor is None else jax.lax.psum(x, self.tensor)

    def max(self, x: jax.Array) -> jax.Array:
        """Return the elementwise maximum of `x` over the tensor-parallel devices, without a gradient."""
        x = jax.lax.stop_gradient(x)
        return x if self.tensor is None else jax.lax.pmax(x, self.tensor)

    def index(self) -> jax.Array | int:
        """Return the index of this device among the tensor-parallel devices."""
        return 0 if self.tensor is None else jax.lax.axis_index(self.tensor)

    def batch_index(self) -> jax.Array | int:
        """Return the index of this device among the devices over which the batch is split."""
        return jax.lax.axis_index(self.batch) if self.batch else 0

    def batch_sum(self, x: jax.Array) -> jax.Array:
        """Sum `x` over the devices over which the batch is split."""
        return jax.lax.psum(x, self.batch) if self.batch else x

    def loss_sum(self, x: jax.Array) -> jax.Array:
        """Sum `x` over all devices that compute a part of the loss."""
        return jax.lax.psum(x, self.summed) if self.summed else x

    def stage(self) -> jax.Array | int:
        """Return the index of the pipeline stage of this device."""
        return 0 if self.pipeline is None else jax.lax.axis_index(self.pipeline)

    def stage_rows(self, x: jax.Array) -> jax.Array:
        """Return the rows of a local batch for which this pipeline stage computes the logits. Array axis 0 is divided
        into equal, contiguous parts, one per stage."""
        if self.pipeline is None:
            return x
        rows = x.shape[0] // self.stages
        return jax.lax.dynamic_slice_in_dim(x, self.stage() * rows, rows)


def vary_over(x: jax.Array, names: Any) -> jax.Array:
    """Return `x`, also marked as varying over the mesh axes `names`, so that the gradient is summed over these axes."""
    missing = tuple(name for name in names if name not in varying_axes(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def vary_like(x: jax.Array, *others: jax.Array) -> jax.Array:
    """Return `x`, marked as varying over each mesh axis over which any of `others` varies. `shard_map` requires this of
    the initial carry of a loop that computes with `others`."""
    names = sorted(frozenset[str]().union(*map(varying_axes, others)))
    return vary_over(jnp.asarray(x), names)
