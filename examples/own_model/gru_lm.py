"""A language model of your own, in plain Flax and with its own config, trained by xlstm_hydra.

    xlstm-hydra --config-dir conf model=gru parallel=fsdp "parallel.fsdp_modules=[GRUBlock,Embed]"
    "parallel.remat=[GRUBlock]"

A checkpoint cannot import a class unless a program allows it, so use `run.py` for saved runs of this model:
`python run.py resume=outputs/my_run`.

The model does not mention devices, and trains on every layout. With tensor parallelism, every device computes the whole
model, and the run prints a warning; a class with a field `axes: xlstm_hydra.parallel.Axes` can split the work, as the
built-in models do. `task=generate` requires the argument `capacity`: each call then continues from the state that the
previous one left in the collection `cache`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_hydra.configs import Problem, SubModelConfig


@dataclass(kw_only=True)
class GRUConfig(SubModelConfig):
    """A stack of gated recurrent units."""

    vocab_size: int = 256
    """Number of token ids."""

    context_length: int = 128
    """Tokens per training example."""

    hidden: int = 128
    """Width of the residual stream and of the recurrent state."""

    layers: int = 2
    """Number of blocks."""

    def rules(self) -> Iterator[Problem]:
        """Yield broken rules. They are checked with the rest of the config, before JAX is imported."""
        if self.layers < 1:
            yield Problem({"layers": self.layers}, "must be 1 or more")


class GRUBlock(nn.Module):
    """x + GRU(norm(x))."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, continues: bool) -> jax.Array:
        """(batch, time, hidden) -> (batch, time, hidden)."""
        layer = nn.RNN(nn.GRUCell(self.hidden), return_carry=True)
        if not continues:
            return x + layer(nn.RMSNorm()(x))[1]
        state = self.variable("cache", "state", jnp.zeros, (x.shape[0], self.hidden))
        state.value, update = layer(nn.RMSNorm()(x), initial_carry=state.value)
        return x + update


class GRULanguageModel(nn.Module):
    """Tokens (batch, time) -> logits (batch, time, vocab_size)."""

    config: GRUConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, *, capacity: int | None = None) -> jax.Array:
        """Compute logits. `capacity`: maximum number of tokens in all calls together, which a recurrent state does not
        need to know. None: there are no further calls."""
        x = nn.Embed(self.config.vocab_size, self.config.hidden)(tokens)
        for _ in range(self.config.layers):
            x = GRUBlock(self.config.hidden)(x, capacity is not None)
        return nn.Dense(self.config.vocab_size)(nn.RMSNorm()(x))
