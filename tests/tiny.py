"""Small runs that compile in seconds but have every kind of parameter."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from xlstm_hydra.configs import (
    CheckpointConfig,
    LlamaConfig,
    LoggerConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    SyntheticDataConfig,
    TrainerConfig,
    mLSTMConfig,
    mLSTMv1Config,
    xLSTMConfig,
)
from xlstm_hydra.models import Llama, mLSTM, mLSTMv1, xLSTM

SHARED = {
    "vocab_size": 32,
    "embedding_dim": 32,
    "num_blocks": 2,
    "context_length": 16,
    "dtype": "float32",
}


def cells(changes):
    """A model with four heads and, for families with chunks, two chunks per example."""
    return {"num_heads": 4} | ({"chunk_size": 8} if changes.get("backend", "chunkwise") == "chunkwise" else {})


def mixed(**changes):
    """Every second block is an sLSTM block."""
    sizes = SHARED | {"num_blocks": 4} | cells(changes) | changes
    return xLSTMConfig(**{"slstm_at": list(range(1, sizes["num_blocks"], 2))} | sizes)


FAMILIES: dict[str, Any] = {
    "v1": lambda **changes: ModelConfig(mLSTMv1, model_config=mLSTMv1Config(**SHARED | cells(changes) | changes)),
    "v0": lambda **changes: ModelConfig(mLSTM, model_config=mLSTMConfig(**SHARED | cells(changes) | changes)),
    "xlstm": lambda **changes: ModelConfig(xLSTM, model_config=mixed(**changes)),
    "llama": lambda **changes: ModelConfig(Llama, model_config=LlamaConfig(**SHARED | {"head_dim": 8} | changes)),
}
FSDP = {"fsdp_modules": ["Embed", "LMHead", "mLSTMBlock"], "fsdp_min_weight_size": 0, "remat": ["mLSTMBlock"]}
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp8": {"data_axis_size": 8},
    "fsdp8": {"data_axis_size": 1, "fsdp_axis_size": 8, **FSDP},
    "tp2_fsdp4": {"data_axis_size": 1, "fsdp_axis_size": 4, "model_axis_size": 2, **FSDP},
    "dp2_fsdp2_tp2": {"data_axis_size": 2, "fsdp_axis_size": 2, "model_axis_size": 2, **FSDP},
    "tp4_dp2": {"data_axis_size": 2, "model_axis_size": 4},
}
"""Layouts of eight devices, as changes to `ParallelConfig`."""


def tiny_run(family: str = "v1", parallel: dict[str, Any] | None = None, model: Any = None, **groups: Any) -> RunConfig:
    """A run of a tiny model. `groups` has changes to the trainer, or complete configs of other groups."""
    model_config = FAMILIES[family](**(model or {}))
    model_config.parallel = with_blocks_of(model_config, ParallelConfig(**(parallel or {})))
    trainer = TrainerConfig(**{"batch_size": 8, "max_steps": 6, "eval_batches": 0} | groups.pop("trainer", {}))
    defaults: dict[str, Any] = {
        "data": SyntheticDataConfig(num_examples=64, motif_length=4),
        "logger": LoggerConfig(progress=False, tensorboard=False, log_every_n_steps=1),
        "checkpoint": CheckpointConfig(save_every_n_steps=0, save_last=False),
    }
    return RunConfig(model=model_config, trainer=trainer, **defaults | groups)


def with_blocks_of(model: ModelConfig, parallel: ParallelConfig) -> ParallelConfig:
    """The layout, with the block names of mLSTM replaced by those of this model."""
    blocks = model.model_config.block_classes()

    def own(names):
        return [other for name in names for other in (blocks if name == "mLSTMBlock" else [name])]

    return replace(parallel, remat=own(parallel.remat), fsdp_modules=own(parallel.fsdp_modules))


def batch(rows=8, seed=0):
    """Tokens with uneven padding: some rows have few targets, and one has none."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 32, (rows, 17))
    lengths = rng.integers(1, 17, rows)
    lengths[1] = 0
    return {
        "inputs": jnp.asarray(tokens[:, :-1], jnp.int32),
        "targets": jnp.asarray(tokens[:, 1:], jnp.int32),
        "document_borders": jnp.asarray(rng.random((rows, 16)) < 0.2).at[:, 0].set(True),
        "loss_mask": jnp.arange(16) < jnp.asarray(lengths)[:, None],
    }


def results(on, params):
    """Loss and gradients of a program, as NumPy arrays by dotted path."""
    step = jax.jit(on.loss_and_gradients)
    placed = jax.device_put(params, on.state_shardings.params)
    loss, gradients = step(placed, jax.device_put(batch(), on.batch_sharding), jax.random.key(3))
    return jax.device_get((loss, traverse_util.flatten_dict(gradients, sep=".")))
