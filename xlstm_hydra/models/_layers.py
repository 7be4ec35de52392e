"""Layers shared by all model families. On each tensor-parallel device, a layer computes one shard; see `parallel.Axes`.

Axes: B batch, T time, D local and E global width of the residual stream, H local heads, V head width.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_hydra.parallel import Axes, Pieces, column_matmul, row_matmul

from ._inputs import BlockInputs

Initializer = Callable[..., Any]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "relu^2": lambda x: jnp.square(jax.nn.relu(x)),
    "sigmoid": jax.nn.sigmoid,
    "swish": jax.nn.swish,
    "selu": jax.nn.selu,
}


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Return `cap * tanh(x / cap)`. With `cap=None`, return `x`."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def init_with(std: float, distribution: str) -> Initializer:
    """Return an initializer with standard deviation `std`. The truncated normal distribution is a normal distribution
    with this standard deviation, truncated at two standard deviations without rescaling."""
    if distribution == "uniform":
        bound = math.sqrt(3) * std
        return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)
    draw = {
        "normal": jax.random.normal,
        "truncated_normal": lambda key, shape, dtype: jax.random.truncated_normal(key, -2, 2, shape, dtype),
    }[distribution]
    return lambda key, shape, dtype=jnp.float32: std * draw(key, shape, dtype)


def small_init(dim: int, distribution: str) -> Initializer:
    """Return an initializer with standard deviation `sqrt(2 / (5 dim))` (arXiv 1910.05895)."""
    return init_with(math.sqrt(2 / (5 * dim)), distribution)


def output_init(name: str, dim: int, num_blocks: int, distribution: str) -> Initializer:
    """Return the initializer for a projection to the residual stream of width `dim`. `name` is a value in
    `configs.language_model.OUTPUT_INITS`."""
    if name == "zeros":
        return nn.initializers.zeros_init()
    if name == "small":
        return small_init(dim, distribution)
    return init_with((2 if name == "wang" else 1) / (num_blocks * math.sqrt(dim)), distribution)


def bias_range_init(value: float | list[float] | None) -> Initializer:
    """Return a bias initializer. For a number: a constant. For a list `[low, high]`: evenly spaced values from the
    first element to the last. For None: a normal distribution with standard deviation 0.1."""
    if value is None:
        return init_with(0.1, "normal")
    low, high = value if isinstance(value, list) else (value, value)
    return lambda key, shape, dtype=jnp.float32: jnp.linspace(low, high, shape[0], dtype=dtype)


def named(init: Initializer, *names: str | None) -> Initializer:
    """Return an initializer that also names the array axes of the parameter; see `parallel.ARRAY_AXES`."""
    return nn.with_partitioning(init, names)


OVERLAPPING = ("Dense", "Gate")
"""Class names of the layers that use collective matmul if `parallel.tp_async_dense` is set."""


class Dense(nn.Module):
    """Dense layer, x W + b, with a kernel W that is split over the tensor mesh axis.

    If `reduce` is False, the output axis of W is split, and x must be the gathered residual stream. If `reduce` is
    True, the input axis of W is split, and the result is the local shard of the residual stream. `split` is the name of
    the array axis that is split; see `parallel.ARRAY_AXES`.
    """

    features: int
    split: str
    dtype: Any
    kernel_init: Initializer
    axes: Axes = Axes()
    reduce: bool = False
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array | Pieces) -> jax.Array:
        """Map `[..., input]` to `[..., output]`."""
        out = self.features if self.reduce else self.axes.local(self.features)
        names = (self.split, "embed") if self.reduce else ("embed", self.split)
        width = x.width if isinstance(x, Pieces) else x.shape[-1]
        kernel = self.param("kernel", named(self.kernel_init, *names), (width, out), jnp.float32).astype(self.dtype)
        if self.reduce:
            assert not isinstance(x, Pieces)
            y = row_matmul(x, kernel, self.axes)
        else:
            y = column_matmul(x, kernel, self.axes)
        if self.bias_init is not None:
            name = "stream" if self.reduce else self.split
            bias = self.param("bias", named(self.bias_init, name), (y.shape[-1],), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


def normalize(x: jax.Array, norm_type: str, eps: float, mean: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Divide `x` by its root mean square; `layernorm` subtracts the mean first. Computes in float32 or wider. The
    function `mean` averages over the normalized array axis."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if norm_type == "layernorm":
        x = x - mean(x)  # before squaring: E[x^2] - E[x]^2 loses precision if the variance is small
    return x * jax.lax.rsqrt(mean(jnp.square(x)) + eps)


class Norm(nn.Module):
    """Normalization of the residual stream over the global width."""

    norm_type: str
    eps: float
    dtype: Any
    axes: Axes = Axes()

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Map `[B, T, D]` to `[B, T, D]`."""
        scale_D = self.param("scale", named(nn.initializers.ones_init(), "stream"), (x_BTD.shape[-1],), jnp.float32)
        width = x_BTD.shape[-1] * self.axes.tensor_size

        def mean(x: jax.Array) -> jax.Array:
            return self.axes.sum(x.sum(-1, keepdims=True)) / width

        return (normalize(x_BTD, self.norm_type, self.eps, mean) * scale_D).astype(self.dtype)


class HeadNorm(nn.Module):
    """Separate normalization of each head. If `per_head`, each head has its own scale; otherwise, all heads share one
    scale."""

    norm_type: str
    eps: float
    dtype: Any
    per_head: bool = True

    @nn.compact
    def __call__(self, x_BTHV: jax.Array) -> jax.Array:
        """Map `[B, T, H, V]` to `[B, T, H, V]`."""
        shape, names = (x_BTHV.shape[-2:], ("heads", None)) if self.per_head else (x_BTHV.shape[-1:], (None,))
        scale = self.param("scale", named(nn.initializers.ones_init(), *names), shape, jnp.float32)
        x_BTHV = normalize(x_BTHV, self.norm_type, self.eps, lambda x: x.mean(-1, keepdims=True))
        return (x_BTHV * scale).astype(self.dtype)


def dropout(x_BTD: jax.Array, rate: float, axes: Axes, inputs: BlockInputs, site: str) -> jax.Array:
    """Apply dropout with probability `rate` to the residual stream, if `inputs` has a random key.

    The dropped elements depend on the random key, the index of the row in the global batch, the index of the block,
    `site` (the name of this dropout within the block) and the global width, but not on the layout.
    """
    if inputs.dropout_key is None or rate == 0:
        return x_BTD
    T, D = x_BTD.shape[1:]
    key = jax.random.fold_in(jax.random.fold_in(inputs.dropout_key, zlib.crc32(site.encode())), inputs.block)

    def keep_one(row: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, row), 1 - rate, (T, D * axes.tensor_size))

    keep = jax.lax.dynamic_slice_in_dim(jax.vmap(keep_one)(inputs.rows_B), axes.index() * D, D, axis=-1)
    return jnp.where(keep, x_BTD / (1 - rate), 0).astype(x_BTD.dtype)
