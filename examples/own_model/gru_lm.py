"""A language model that xlstm_hydra has never heard of: plain Flax, with a config of its own.

    xlstm-hydra --config-dir conf model=gru parallel=fsdp "parallel.fsdp_modules=[GRUBlock,Embed]"
    "parallel.remat=[GRUBlock]"

What a checkpoint names is never imported unless a program allows it, so a saved run of this model is used by `run.py`:
`python run.py resume=outputs/my_run`.

It says nothing about devices, and trains on every layout. With tensor parallelism every device computes all of it,
and the run says so; a class that declares a field `axes: xlstm_hydra.parallel.Axes` can do better, as the models of
ours do. That its call takes `capacity` is what `task=generate` needs: it then begins each call where the last one
stopped, with what that left in the collection `cache`.
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
    """Width of the stream and of the recurrent state."""

    layers: int = 2
    """Blocks in the stack."""

    def rules(self) -> Iterator[Problem]:
        """Checked before JAX is imported, together with everything else."""
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
        """See the class. `capacity`: the most tokens that will come in all, which a state of fixed size need not know.
        None: these are all."""
        x = nn.Embed(self.config.vocab_size, self.config.hidden)(tokens)
        for _ in range(self.config.layers):
            x = GRUBlock(self.config.hidden)(x, capacity is not None)
        return nn.Dense(self.config.vocab_size)(nn.RMSNorm()(x))
