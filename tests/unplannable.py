"""A model with a primitive that the planner does not know, and a JAX whose programs it cannot read."""

from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import Primitive
from jax.interpreters import mlir

from xlstm_hydra.configs import RunConfig, SubModelConfig, SyntheticDataConfig, TrainerConfig, resolve_classes
from xlstm_hydra.hydra import make_model_config
from xlstm_hydra.plan import _jaxpr

mystery = Primitive("mystery")
mystery.def_abstract_eval(lambda aval: aval)
mlir.register_lowering(mystery, mlir.lower_fun(lambda x: jnp.sin(x) * 2, multiple_results=False))


@jax.custom_vjp
def mysterious(x):
    """What a kernel of the user's computes."""
    return mystery.bind(x)


mysterious.defvjp(lambda x: (mystery.bind(x), None), lambda _, gradient: (mystery.bind(gradient),))


@dataclass(kw_only=True)
class MysteryConfig(SubModelConfig):
    """Sizes."""

    vocab_size: int = 32
    context_length: int = 16
    hidden: int = 16


class MysteryLM(nn.Module):
    """A language model that computes with it."""

    config: MysteryConfig

    @nn.compact
    def __call__(self, inputs, document_borders=None, train=False):
        x = nn.Embed(self.config.vocab_size, self.config.hidden)(inputs)
        return nn.Dense(self.config.vocab_size)(mysterious(nn.Dense(self.config.hidden)(x)))


def mystery_run():
    """A run of it on one device."""
    model = resolve_classes(make_model_config(model_class="unplannable.MysteryLM"))
    return RunConfig(model=model, data=SyntheticDataConfig(motif_length=4), trainer=TrainerConfig(batch_size=8))


def forget(monkeypatch, *parameters):
    """Let the equations of all programs lack parameters, as if a new JAX had renamed them."""
    read = _jaxpr._Reader._equation

    def equation(self, eqn, inputs, results):
        params = {name: value for name, value in eqn.params.items() if name not in parameters}
        other = SimpleNamespace(primitive=eqn.primitive, params=params, source_info=eqn.source_info)
        return read(self, other, inputs, results)

    monkeypatch.setattr(_jaxpr._Reader, "_equation", equation)


def forget_scan(monkeypatch):
    """Let scans lack the numbers of their constants and carried values."""
    forget(monkeypatch, "num_consts", "num_carry", "ft_in", "ft_out")
