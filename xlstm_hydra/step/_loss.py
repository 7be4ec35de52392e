"""Cross-entropy, also where each tensor-parallel device has a share of the vocabulary.

Axes: B batch, T time, V this device's share of the vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from xlstm_hydra.parallel import Axes


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array, vocab_size: int, axes: Axes) -> jax.Array:
    """Minus the log probability of each target in nats, (B, T), in float32 at least.

    The logits are either whole, with `vocab_size` entries, or this tensor-parallel device's share; then the sum over
    the vocabulary is taken across devices, and the whole logits exist nowhere.

    Raises:
        ValueError: the logits have another number of entries.
    """
    width = logits_BTV.shape[-1]
    if width == vocab_size:
        axes = Axes()
    elif width * axes.tensor_size != vocab_size:
        raise ValueError(f"the model gives {width} logits; expected model.vocab_size={vocab_size}")
    logits_BTV = logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32))
    first = axes.index() * width
    peak_BT = axes.max(logits_BTV.max(-1))
    total_BT = axes.sum(jnp.exp(logits_BTV - peak_BT[..., None]).sum(-1))
    local_BT = targets_BT - first
    mine_BT = (local_BT >= 0) & (local_BT < width)
    picked_BT = jnp.take_along_axis(logits_BTV, jnp.clip(local_BT, 0, width - 1)[..., None], axis=-1)[..., 0]
    return jnp.log(total_BT) + peak_BT - axes.sum(jnp.where(mine_BT, picked_BT, 0))
