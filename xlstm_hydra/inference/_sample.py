"""Token-by-token sampling.

Array axes: B samples, T tokens of the sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xlstm_hydra.configs import GenerateTaskConfig
from xlstm_hydra.models import continue_model


def sample_tokens(module: nn.Module, params: Any, task: GenerateTaskConfig, mesh: Mesh) -> Iterator[np.ndarray]:
    """Yield the next token of all samples, `int32[B]`, up to `task.max_new_tokens` times.

    All prompt tokens except the last are processed in one call. After that, each step processes one token and draws the
    next. The computation runs on the devices that hold the parameters.
    """
    prompt_BT = np.tile(np.asarray(task.tokens(), np.int32), (task.num_samples, 1))
    capacity = prompt_BT.shape[1] + task.max_new_tokens - 1
    keys_B = jax.vmap(partial(jax.random.fold_in, jax.random.key(task.seed)))(jnp.arange(task.num_samples))

    def read(params: Any, tokens_BT: jax.Array) -> Any:
        return continue_model(module, params, {}, tokens_BT, capacity=capacity)[1]

    def step(params: Any, cache: Any, tokens_B: jax.Array, keys_B: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        logits_BTV, cache = continue_model(module, params, cache, tokens_B[:, None], capacity=capacity)
        next_B, now_B = jnp.unstack(jax.vmap(jax.random.split)(keys_B), axis=1)
        return cache, draw(logits_BTV[:, 0], now_B, task.temperature, task.top_k, task.top_p), next_B

    whole = NamedSharding(mesh, PartitionSpec())
    take_step = jax.jit(step, donate_argnums=1, out_shardings=(None, whole, whole))
    cache = jax.jit(read)(params, prompt_BT[:, :-1]) if prompt_BT.shape[1] > 1 else {}
    tokens_B = prompt_BT[:, -1]
    for _ in range(task.max_new_tokens):
        cache, tokens_B, keys_B = take_step(params, cache, tokens_B, keys_B)
        yield np.asarray(tokens_B)


def draw(
    logits_BV: jax.Array, keys_B: jax.Array, temperature: float, top_k: int | None = None, top_p: float = 1.0
) -> jax.Array:
    """Draw one token per row, with a separate random key for each row. `GenerateTaskConfig` documents the options.

    Args:
        logits_BV: `float[B, V]`.
        keys_B: random keys, one per row.
        temperature: divisor of the logits; 0 selects the most likely token.
        top_k: draw from the `top_k` most likely tokens; None: draw from all tokens.
        top_p: draw from the smallest set of most likely tokens with at least this total probability
            (nucleus sampling, Holtzman et al., https://arxiv.org/abs/1904.09751).

    Returns:
        Token ids, `int32[B]`.
    """
    if temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / temperature
    if top_k is not None:
        least_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if top_p < 1:
        logits_BV = jnp.where(_in_nucleus(logits_BV, top_p), logits_BV, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def _in_nucleus(logits_BV: jax.Array, top_p: float) -> jax.Array:
    """Return a mask, `bool[B, V]`, of the smallest set of most likely tokens with a total probability of at least
    `top_p`."""
    order_BV = jnp.argsort(-logits_BV, axis=-1)
    sorted_BV = jnp.take_along_axis(jax.nn.softmax(logits_BV), order_BV, axis=-1)
    likelier_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV
    return jnp.take_along_axis(likelier_BV < top_p, jnp.argsort(order_BV, axis=-1), axis=-1)
