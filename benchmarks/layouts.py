"""Costs of the layouts, and a check that all compute the same. Updates the tables of docs/explanations/layouts.md.

    python benchmarks/layouts.py [equality] [collectives] [memory]

Uses eight simulated CPU devices. Without names, all tables are updated.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hydra import compose, initialize
from tables import write

from xlstm_hydra.configs import resolve_classes
from xlstm_hydra.hydra import load
from xlstm_hydra.parallel import Collective, build_mesh, list_collectives
from xlstm_hydra.step import Program, build_program

MIB = 2**20

FSDP = "parallel=fsdp parallel.fsdp_min_weight_size=0"
FSDP_TP = "parallel=fsdp_tp parallel.fsdp_min_weight_size=0"

LAYOUTS = {
    "dp=8": "parallel=dp",
    "fsdp=8": FSDP,
    "tp=8": "parallel=tp",
    "fsdp=4 tp=2": FSDP_TP,
    "dp=2 fsdp=2 tp=2": f"{FSDP_TP} parallel.data_axis_size=2",
    "tp=8, collective matmul": "parallel=tp parallel.tp_async_dense=true",
    "fsdp=4 tp=2, collective matmul": f"{FSDP_TP} parallel.tp_async_dense=true",
    "dp=4 pp=2": "parallel=pp",
    "dp=2 pp=4": "parallel=pp parallel.pipeline_axis_size=4",
    "fsdp=4 pp=2": f"{FSDP} parallel.pipeline_axis_size=2",
    "dp=2 pp=2 tp=2": "parallel=pp parallel.model_axis_size=2",
    "fsdp=2 pp=2 tp=2, collective matmul": f"{FSDP_TP} parallel.pipeline_axis_size=2 parallel.tp_async_dense=true",
}
"""Layouts of eight devices, as overrides."""

SMALL = "model.context_length=32 model.vocab_size=256 model.embedding_dim=64"
FAMILIES = {
    "mLSTM v1": "model.num_blocks=4 model.chunk_size=16",
    "mLSTM": f"model=mlstm_165m {SMALL} model.num_blocks=4 model.num_heads=8 model.chunk_size=16",
    "xLSTM[1:1]": f"model=xlstm_7_1 {SMALL} model.num_blocks=8 model.slstm_at=[1,3,5,7] model.num_heads=8 "
    "model.chunk_size=16",
    "Llama": f"model=llama_165m {SMALL} model.num_blocks=4 model.head_dim=8",
}
"""Small models, as overrides."""


def main() -> None:
    """Write the selected tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], default=list(TABLES))
    for name in parser.parse_args().tables or TABLES:
        write("layouts.md", name, TABLES[name]())


def program(overrides: str, devices: int = 8, dtype: str | None = None) -> Program:
    """Build the program of a command line."""
    with initialize(version_base="1.3", config_path=None):
        run = load(compose("config", overrides=[f"trainer.simulated_devices={devices}", *overrides.split()]))
    run = dataclasses.replace(run, model=resolve_classes(run.model))
    config: Any = run.model.model_config
    for key in ("dtype", "lm_head_dtype", "gate_dtype"):
        if dtype is not None and hasattr(config, key):
            setattr(config, key, dtype)
    return build_program(run, build_mesh(run.parallel, jax.devices()[:devices], run.distributed.device_order))


def equality() -> Iterable[list[str]]:
    """Compare loss and gradients of each layout in float64 with those of one device."""
    yield ["model", "layout", "loss", "difference of the loss", "of the gradients"]
    with jax.enable_x64(True):
        for family, changes in FAMILIES.items():
            one = program(changes, devices=1, dtype="float64")
            params = some_params(one)
            loss, gradients = results(one, params)
            for name, layout in LAYOUTS.items():
                got, found = results(program(f"{changes} {layout}", dtype="float64"), params)
                worst = largest(jax.tree.map(np.subtract, found, gradients)) / largest(gradients)
                yield [family, name, f"{float(got):.6f}", f"{abs(float(got - loss)):.1e}", f"{worst:.1e}"]


def largest(tree: Any) -> float:
    """Return the largest absolute value in a tree of arrays."""
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def some_params(on: Program) -> Any:
    """Return parameters changed from their symmetric initial values."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape), on.abstract_state.params)


def results(on: Program, params: Any) -> Any:
    """Return loss and gradients of a fixed batch with uneven padding."""
    rng, config = np.random.default_rng(0), on.model.model_config
    assert config is not None
    tokens = rng.integers(0, config.get("vocab_size"), (8, config.get("context_length") + 1))
    batch = {
        "inputs": jnp.asarray(tokens[:, :-1], jnp.int32),
        "targets": jnp.asarray(tokens[:, 1:], jnp.int32),
        "document_borders": jnp.asarray(rng.random(tokens[:, 1:].shape) < 0.1),
        "loss_mask": jnp.arange(tokens.shape[1] - 1) < rng.integers(1, tokens.shape[1], (8, 1)),
    }
    placed = jax.device_put(params, on.state_shardings.params), jax.device_put(batch, on.batch_sharding)
    return jax.device_get(jax.jit(on.loss_and_gradients)(*placed, jax.random.key(0)))


def lowered(on: Program) -> Any:
    """Lower the loss and gradients of a program for its shapes."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.jit(on.loss_and_gradients).lower(on.abstract_state.params, on.abstract_batch, key)


def collective_table() -> Iterable[list[str]]:
    """List the communication of a step of a published size, from its StableHLO."""
    yield ["layout", "operation", "type", "devices", "inside loops", "in the text", "per step", "MiB per step"]
    model = "model=mlstm_v1_165m model.context_length=1024 trainer.batch_size=16"
    bf16 = "parallel.fsdp_gather_dtype=bfloat16 parallel.fsdp_grad_scatter_dtype=bfloat16"
    layouts = {
        "dp=8": "parallel=dp",
        "fsdp=8": "parallel=fsdp",
        "fsdp=8, bfloat16": f"parallel=fsdp {bf16}",
        "dp=2 tp=4": "parallel=tp parallel.model_axis_size=4 parallel.data_axis_size=2",
        "dp=2 tp=4, collective matmul": "parallel=tp parallel.model_axis_size=4 parallel.data_axis_size=2 "
        "parallel.tp_async_dense=true",
        "dp=2 pp=4": "parallel=pp parallel.pipeline_axis_size=4",
    }
    for name, layout in layouts.items():
        found = list_collectives(lowered(program(f"{model} {layout}")))

        def kind(item: Collective) -> tuple[Any, ...]:
            return item.operation, item.dtype, item.devices, item.loops > 0

        for key, group in itertools.groupby(sorted(found, key=kind), key=kind):
            items = list(group)
            size = sum(item.bytes * item.executions for item in items) / MIB
            operation, dtype, devices, inside = key
            times = sum(item.executions for item in items)
            row = [name, operation, dtype, str(devices), "yes" if inside else "no", str(len(items)), str(times)]
            yield [*row, f"{size:.3f}"]


def memory() -> Iterable[list[str]]:
    """List the temporary memory of a step by number of blocks, from XLA's analysis."""
    depths = (4, 8, 16)
    yield ["layout", *(f"{depth} blocks" for depth in depths), "MiB per block"]
    model = "model.embedding_dim=256 model.vocab_size=512 model.num_heads=4 data=synthetic trainer.batch_size=32"
    sixteen, fsdp, pp = "trainer.pipeline_microbatches=16", FSDP, "parallel=pp parallel.pipeline_axis_size=4"
    cases = {
        "fsdp=8, nothing recomputed": f"{fsdp} parallel.remat=[]",
        "fsdp=8, remat mLSTMBlock": fsdp,
        "fsdp=8, remat xLSTMResBlock and FFNResBlock": f"{fsdp} parallel.remat=[xLSTMResBlock,FFNResBlock]",
        "fsdp=8, policy dots_with_no_batch_dims": f"{fsdp} trainer.remat_policy=dots_with_no_batch_dims",
        "fsdp=8, policy dots": f"{fsdp} trainer.remat_policy=dots",
        "dp=2 pp=4, 4 microbatches": f"{pp} trainer.pipeline_microbatches=4",
        "dp=2 pp=4, 16 microbatches": f"{pp} {sixteen}",
        "dp=2 pp=4, 16 microbatches, pipeline_remat": f"{pp} {sixteen} trainer.pipeline_remat=true",
        "dp=2 pp=4, 4 parts of 4 microbatches": f"{pp} trainer.gradient_accumulate_steps=4",
    }
    for name, layout in cases.items():
        sizes = [temporary(f"{model} {layout} model.num_blocks={depth}") for depth in depths]
        growth = (sizes[-1] - sizes[0]) / (depths[-1] - depths[0])
        yield [name, *(f"{size:.1f} MiB" for size in sizes), f"{growth:.2f}"]


def temporary(overrides: str) -> float:
    """Return the MiB of temporaries on each device."""
    return lowered(program(overrides)).compile().memory_analysis().temp_size_in_bytes / MIB


TABLES: dict[str, Callable[[], Iterable[list[str]]]] = {
    "equality": equality,
    "collectives": collective_table,
    "memory": memory,
}

if __name__ == "__main__":
    main()
