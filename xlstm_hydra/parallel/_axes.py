"""The mesh axes as code inside `shard_map` sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from xlstm_hydra._jax_internals import varying_axes


@dataclass(frozen=True)
class Axes:
    """The tensor, pipeline and batch mesh axes, with the collectives that modules need over them.

    The default is one device: every method is then the identity, so a module written with `Axes` computes the same
    global arrays inside and outside `shard_map`. Mesh axes of size 1 are never named, so that they cost no collective.
    """

    tensor: str | None = None
    """Name of the tensor-parallel mesh axis; None where it has size 1."""

    tensor_size: int = 1
    """Number of tensor-parallel devices."""

    batch: tuple[str, ...] = ()
    """Names of the mesh axes that the batch is split over, the outermost first."""

    overlap: bool = False
    """Whether dense layers exchange their shares piece by piece, while they multiply (collective matmul)."""

    pipeline: str | None = None
    """Name of the pipeline mesh axis; None where it has size 1."""

    stages: int = 1
    """Number of pipeline stages."""

    microbatches: int = 1
    """Parts that a batch goes through the pipeline in."""

    stage_remat: bool = False
    """Whether a stage keeps only what enters it for the backward pass."""

    @property
    def summed(self) -> tuple[str, ...]:
        """Names of the mesh axes whose devices each compute a part of the loss."""
        return self.batch if self.pipeline is None else (*self.batch, self.pipeline)

    def local(self, size: int) -> int:
        """This device's share of an array axis of `size`."""
        if size % self.tensor_size:
            raise ValueError(
                f"an array axis of size {size} does not divide over {self.tensor_size} tensor-parallel devices"
            )
        return size // self.tensor_size

    def gather(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """Put the shares of an array axis together on every tensor-parallel device."""
        if self.tensor is None:
            return x
        return jax.lax.all_gather(x, self.tensor, axis=axis % x.ndim, tiled=True)

    def reduce_scatter(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """Sum over the tensor-parallel devices; each keeps its share of an array axis."""
        if self.tensor is None:
            return x
        return jax.lax.psum_scatter(x, self.tensor, scatter_dimension=axis % x.ndim, tiled=True)

    def all_to_all(self, x: jax.Array, split: int, concat: int) -> jax.Array:
        """Give up the share of array axis `concat` for a share of array axis `split`."""
        if self.tensor is None:
            return x
        return jax.lax.all_to_all(x, self.tensor, split_axis=split, concat_axis=concat, tiled=True)

    def sum(self, x: jax.Array) -> jax.Array:
        """Sum over the tensor-parallel devices."""
        return x if self.tensor is None else jax.lax.psum(x, self.tensor)

    def max(self, x: jax.Array) -> jax.Array:
        """Maximum over the tensor-parallel devices. Has no gradient."""
        x = jax.lax.stop_gradient(x)
        return x if self.tensor is None else jax.lax.pmax(x, self.tensor)

    def index(self) -> jax.Array | int:
        """Index of this device among the tensor-parallel devices."""
        return 0 if self.tensor is None else jax.lax.axis_index(self.tensor)

    def batch_index(self) -> jax.Array | int:
        """Index of this device among those that the batch is split over."""
        return jax.lax.axis_index(self.batch) if self.batch else 0

    def batch_sum(self, x: jax.Array) -> jax.Array:
        """Sum over the devices that the batch is split over."""
        return jax.lax.psum(x, self.batch) if self.batch else x

    def loss_sum(self, x: jax.Array) -> jax.Array:
        """Sum over the devices that each compute a part of the loss."""
        return jax.lax.psum(x, self.summed) if self.summed else x

    def stage(self) -> jax.Array | int:
        """This device's pipeline stage."""
        return 0 if self.pipeline is None else jax.lax.axis_index(self.pipeline)

    def stage_rows(self, x: jax.Array) -> jax.Array:
        """The rows of a local batch whose logits this pipeline stage computes: equal, contiguous shares."""
        if self.pipeline is None:
            return x
        rows = x.shape[0] // self.stages
        return jax.lax.dynamic_slice_in_dim(x, self.stage() * rows, rows)


def vary_over(x: jax.Array, names: Any) -> jax.Array:
    """`x`, marked as varying over the mesh axes `names` as well. Its gradient is then summed over them."""
    missing = tuple(name for name in names if name not in varying_axes(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def vary_like(x: jax.Array, *others: jax.Array) -> jax.Array:
    """`x`, marked as varying wherever one of `others` does: what a loop's initial carry needs."""
    names = sorted(frozenset[str]().union(*map(varying_axes, others)))
    return vary_over(jnp.asarray(x), names)
