"""Comparison of plans with the compiler. Updates the table of docs/explanations/planner.md.

    python benchmarks/plan.py

Each config is planned, and its step is lowered and compiled for eight simulated CPU devices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Must be imported before JAX, because it simulates the devices.
from layouts import FAMILIES, FSDP, FSDP_TP, MIB, program  # isort: split

import jax
from tables import write

from xlstm_hydra.hydra import load_device
from xlstm_hydra.plan import compile_program, lowered_collectives, plan_sharded_loss, planned_collectives, widened_types
from xlstm_hydra.step import ShardedLoss

V1, V0, MIXED, LLAMA = FAMILIES.values()
MEDIUM = "model.embedding_dim=256 model.num_blocks=8 model.context_length=512 model.vocab_size=4096 model.num_heads=4"
LLAMA_MEDIUM = f"model=llama_165m {MEDIUM.replace('model.num_heads=4', 'model.head_dim=64')}"
BFLOAT16 = "parallel.fsdp_gather_dtype=bfloat16 parallel.fsdp_grad_scatter_dtype=bfloat16"
PIECES = "parallel.tp_async_dense=true"

CASES = {
    "mLSTM v1, dp=8": V1,
    "mLSTM v1, fsdp=8, remat mLSTMBlock": f"{V1} {FSDP}",
    "mLSTM v1, fsdp=8, no remat": f"{V1} {FSDP} parallel.remat=[]",
    "mLSTM v1, fsdp=8, policy dots": f"{V1} {FSDP} trainer.remat_policy=dots",
    "mLSTM v1, fsdp=8, exchanges in bfloat16": f"{V1} {FSDP} {BFLOAT16}",
    "mLSTM v1, tp=4, collective matmul": f"{V1} parallel=tp parallel.model_axis_size=4 {PIECES}",
    "mLSTM v1, dp=4 pp=2": f"{V1} parallel=pp",
    "mLSTM v1, fsdp=8, all in bfloat16": f"{V1} {FSDP} model.dtype=bfloat16",
    "mLSTM v1, medium, dp=8": f"{MEDIUM} trainer.batch_size=16",
    "mLSTM v1, medium, fsdp=8, remat mLSTMBlock": f"{MEDIUM} {FSDP} trainer.batch_size=16",
    "mLSTM v1, medium, fsdp=8, remat of both residual blocks": f"{MEDIUM} {FSDP} trainer.batch_size=16 "
    "parallel.remat=[xLSTMResBlock,FFNResBlock]",
    "mLSTM v1, medium, fsdp=4 tp=2, no remat": f"{MEDIUM} {FSDP_TP} parallel.remat=[] trainer.batch_size=16",
    "mLSTM, dp=8": V0,
    "mLSTM, fsdp=4 tp=2, remat mLSTMBlock": f"{V0} {FSDP_TP}",
    "xLSTM[1:1], fsdp=8, remat of the blocks": f"{MIXED} {FSDP}",
    "xLSTM[1:1], dp=2 pp=2 tp=2": f"{MIXED} parallel=pp parallel.model_axis_size=2",
    "Llama, dp=2 fsdp=2 tp=2": f"{LLAMA} {FSDP_TP} parallel.data_axis_size=2",
    "Llama, fsdp=2 pp=2 tp=2, collective matmul": f"{LLAMA} {FSDP_TP} parallel.pipeline_axis_size=2 {PIECES}",
    "Llama, medium, fsdp=8, no remat": f"{LLAMA_MEDIUM} {FSDP} parallel.remat=[] trainer.batch_size=16",
    "Llama, medium, dp=8, in 2 parts": f"{LLAMA_MEDIUM} trainer.batch_size=16 trainer.gradient_accumulate_steps=2",
}
"""Overrides of the planned runs. Models are in float32 by default."""


def agreement() -> Iterable[list[str]]:
    """Write the figures of plan and compiler side by side."""
    arrays = "parameters, gradients, optimizer"
    yield ["config", arrays, "collectives", "of bytes", "memory", "memory ratio", "operations", "operations ratio"]
    device = load_device("cpu")
    for name, overrides in CASES.items():
        on = program(overrides if "model.dtype" in overrides else f"{overrides} model.dtype=float32")
        plan, compiled = plan_sharded_loss(on.sharded_loss, device), compile_program(on)
        held = sum(placement.bytes_per_device for placement in plan.placements)
        planned = held, held, plan.memory.optimizer
        found = compiled.parameters, compiled.gradients, compiled.optimizer
        kinds, lowered = (
            planned_collectives(plan.counts.exchanges, plan.sizes),
            lowered_collectives(compiled.collectives),
        )
        sent = sum(each.count * each.bytes for each in plan.counts.exchanges)
        yield [
            name,
            "equal" if planned == found else f"{planned} and {found}",
            f"{kinds.total()} equal" if kinds == lowered else f"{kinds - lowered} and {lowered - kinds}",
            f"{sent / MIB:.3f} MiB",
            f"{plan.memory.total / MIB:.2f} MiB",
            "-" if widened_types(plan.counts) else f"{plan.memory.total / compiled.total:.3f}",
            f"{plan.counts.flops / 1e6:.1f} M",
            f"{plan.counts.flops / unrolled_flops(on.sharded_loss):.4f}",
        ]


def unrolled_flops(on: ShardedLoss) -> float:
    """Return XLA's number of operations of loss and gradients, with all loops unrolled."""
    scan, key = jax.lax.scan, jax.eval_shape(lambda: jax.random.key(0))

    def unrolled(*args: Any, **settings: Any) -> Any:
        return scan(*args, **settings | {"unroll": True})

    jax.lax.scan = unrolled
    try:
        # A new function, because JAX would otherwise reuse the traced program.
        function = jax.jit(lambda *of: on.loss_and_gradients(*of))
        found: Any = function.lower(on.abstract_params, on.abstract_batch, key).cost_analysis()
    finally:
        jax.lax.scan = scan
    return found["flops"]


if __name__ == "__main__":
    write("planner.md", "agreement", agreement())
