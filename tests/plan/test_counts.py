"""The counts of a step agree with its lowered program."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from tiny import FSDP, LAYOUTS, tiny_run

from xlstm_hydra.hydra import load_device
from xlstm_hydra.parallel import abstract_mesh, build_mesh, list_collectives
from xlstm_hydra.plan import (
    Exchange,
    count,
    lowered_collectives,
    make_plan,
    planned_collectives,
    read_program,
    report,
    trace_loss,
)
from xlstm_hydra.step import build_sharded_loss

BFLOAT16 = {"fsdp_gather_dtype": "bfloat16", "fsdp_grad_scatter_dtype": "bfloat16"}
PIPELINE = {"data_axis_size": 1, "fsdp_axis_size": 2, "pipeline_axis_size": 2, "model_axis_size": 2, **FSDP}
CASES = {
    "v1, fsdp": ("v1", LAYOUTS["fsdp8"], {}),
    "v1, fsdp and tp, nothing recomputed": ("v1", LAYOUTS["tp2_fsdp4"] | {"remat": []}, {}),
    "v1, pipeline in parts": ("v1", PIPELINE, {"gradient_accumulate_steps": 2, "pipeline_remat": True}),
    "v1, blocks not scanned": ("v1", LAYOUTS["dp2_fsdp2_tp2"], {}),
    "v0, collective matmul": ("v0", LAYOUTS["tp4_dp2"] | {"tp_async_dense": True}, {}),
    "v0, feed-forward, fsdp and tp": ("v0", LAYOUTS["tp2_fsdp4"], {}),
    "v0, bfloat16 exchanges": ("v0", LAYOUTS["fsdp8"] | BFLOAT16, {"gradient_accumulate_steps": 1}),
    "sLSTM, fsdp and tp, products kept": ("xlstm", LAYOUTS["tp2_fsdp4"], {"remat_policy": "dots"}),
    "sLSTM with dropout, pipeline": ("xlstm", {"pipeline_axis_size": 2, "model_axis_size": 4}, {}),
    "llama, dp in parts": ("llama", LAYOUTS["dp8"], {"gradient_accumulate_steps": 2}),
    "llama, collective matmul in a pipeline": ("llama", PIPELINE | {"tp_async_dense": True}, {}),
}


def case(name):
    family, parallel, trainer = CASES[name]
    changes = {"not scanned": {"scan_blocks": False}, "dropout": {"dropout": 0.1}, "feed-forward": {"ff_type": "ffn"}}
    model = next((change for words, change in changes.items() if words in name), {})
    return tiny_run(family, parallel=parallel, model=model, trainer={"batch_size": 16, **trainer})


def traced(run):
    """The traced loss and gradients, and the sizes of the mesh axes."""
    mesh = build_mesh(run.parallel)
    on = build_sharded_loss(run, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    # A new function, so that JAX does not reuse the program that it traced before.
    function = jax.jit(lambda *of: on.loss_and_gradients(*of))
    return function.trace(on.abstract_params, on.abstract_batch, key), mesh.shape


@pytest.mark.parametrize("name", CASES)
def test_collectives_and_operations_agree_with_the_lowered_program(name):
    program, sizes = traced(case(name))
    counts, lowered = count(read_program(program.jaxpr)), program.lower()
    assert planned_collectives(counts.exchanges, sizes) == lowered_collectives(list_collectives(lowered))
    assert counts.flops_once == pytest.approx(lowered.cost_analysis()["flops"], rel=0.02)
    assert counts.flops >= counts.flops_once and counts.open_loops == 0


@pytest.mark.parametrize("name", ["v1, fsdp", "llama, collective matmul in a pipeline"])
def test_operations_agree_with_a_program_without_loops(name, monkeypatch):
    run, scan = case(name), jax.lax.scan
    counts = count(trace_loss(build_sharded_loss(run, abstract_mesh(run.parallel, 8))))
    monkeypatch.setattr(jax.lax, "scan", lambda *of, **how: scan(*of, **how | {"unroll": True}))
    found = traced(run)[0].lower().cost_analysis()
    assert counts.flops == pytest.approx(found["flops"], rel=0.02)
    assert counts.transcendentals == pytest.approx(found["transcendentals"], rel=0.05)
    assert counts.flops > 1.3 * counts.flops_once


def of(function, *shapes, dtype=jnp.float32):
    return count(read_program(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))))


def test_a_product_counts_two_operations_per_multiplication_by_dtype():
    product = functools.partial(jnp.einsum, "bij,bjk->bik", preferred_element_type=jnp.float32)
    counts = of(product, (2, 3, 4), (2, 4, 5), dtype=jnp.bfloat16)
    assert counts.product_flops == {"bfloat16": 2 * 2 * 3 * 4 * 5} and counts.other_flops == 0
    assert counts.traffic == 2 * (2 * 3 * 4 + 2 * 4 * 5) + 4 * 2 * 3 * 5


def test_elementwise_operations_cause_no_memory_traffic():
    def function(x, w):
        return (jnp.tanh(2 * x + 1) @ w).sum()

    counts = of(function, (8, 16), (16, 4))
    assert counts.other_flops == 2 * 8 * 16 + (8 * 4 - 1) and counts.transcendentals == 8 * 16
    stored, product = 2 * 8 * 16, 8 * 16 + 16 * 4 + 8 * 4
    assert counts.traffic == 4 * (stored + product + 8 * 4 + 1)


def test_the_body_of_a_scan_is_counted_in_every_iteration():
    def body(carry, w):
        return carry @ w, None

    counts = of(lambda x, ws: jax.lax.scan(body, x, ws)[0], (8, 16), (10, 16, 16))
    assert counts.flops == 10 * 2 * 8 * 16 * 16 == 10 * counts.flops_once


def test_the_most_expensive_branch_is_counted():
    counts = of(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x + 1, x), (8, 8))
    assert counts.product_flops == {"float32": 2 * 8**3}


def test_a_loop_of_unknown_length_is_counted_once():
    counts = of(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), (8, 8))
    assert counts.open_loops == 1 and counts.product_flops == {"float32": 2 * 8**3}


def test_the_report_names_loops_of_unknown_length():
    plan = make_plan(tiny_run("llama"), 1, load_device("h100_80gb"))
    assert "while loops" not in report(plan)
    looping = replace(plan, counts=replace(plan.counts, open_loops=2))
    assert "while loops with an unknown number of iterations, each counted once: 2" in report(looping)


def auto_mesh(**sizes):
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def test_a_collective_over_several_axes_counts_once_and_vmap_is_not_one():
    mesh, spec = auto_mesh(a=2, b=4), PartitionSpec(("a", "b"))

    def local(x):
        summed = jax.vmap(lambda row: row - jax.lax.psum(row, "rows"), axis_name="rows")(x)
        return jax.lax.psum(summed, ("a", "b")), jax.lax.pmax(x.astype(jnp.bfloat16), "b")

    out = PartitionSpec(), PartitionSpec("a")
    function = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False)
    assert sorted(of(function, (16, 3)).exchanges, key=lambda each: each.bytes) == [
        Exchange("all-reduce", ("b",), "bfloat16", 2 * 2 * 3, 1),
        Exchange("all-reduce", ("a", "b"), "float32", 4 * 2 * 3, 1),
    ]


def test_a_collective_with_an_unknown_name_is_counted():
    mesh, spec = auto_mesh(a=4), PartitionSpec("a")
    function = jax.shard_map(lambda x: jax.lax.pbroadcast(x, "a", 0), mesh=mesh, in_specs=spec, out_specs=spec)
    assert of(function, (8,)).exchanges == (Exchange("pbroadcast", ("a",), "float32", 4 * 2, 1),)


@pytest.mark.parametrize("power", [1, 2, 3, 7, 8, -2])
def test_a_power_counts_as_repeated_squaring(power):
    x = np.ones((4, 4), np.float32)
    found = jax.jit(lambda x: jax.lax.integer_pow(x, power)).lower(x).cost_analysis().get("flops", 0)
    assert of(lambda x: jax.lax.integer_pow(x, power), (4, 4)).flops == found


def test_cudnn_attention_is_planned_without_cudnn_and_stores_no_scores():
    def counted(backend):
        run = tiny_run("llama", model={"attention_backend": backend, "dtype": "bfloat16", "context_length": 512})
        return count(trace_loss(build_sharded_loss(run, abstract_mesh(run.parallel, 1))))

    fused, plain = counted("cudnn"), counted("xla")
    scores = 2 * 8 * 4 * 512**2 * 8 * 2  # of two blocks: 8 rows, 4 heads of width 8
    assert plain.flops - fused.flops > 5 * scores / 2
    assert sum(plain.product_flops.values()) - sum(fused.product_flops.values()) == 6 * scores - 7 * scores / 2
    assert fused.traffic < plain.traffic / 2
