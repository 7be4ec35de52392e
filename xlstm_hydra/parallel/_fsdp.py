"""Gathering a sharded parameter where it is used, and scattering its gradient."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def gather_parameter(
    shard: jax.Array, axis_name: str, axis: int, gather_dtype: str | None, scatter_dtype: str | None
) -> jax.Array:
    """The whole parameter from its shards along array axis `axis`.

    The shard is cast to `gather_dtype` before the all-gather, so the result holds values of that type, in the shard's
    own type. The gradient is cast to `scatter_dtype` before it is summed and scattered. None: no cast.
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
