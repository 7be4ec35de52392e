"""Peak memory of a step: the plan agrees with the compiler."""

import jax
import jax.numpy as jnp
import pytest
from tiny import FSDP, LAYOUTS, tiny_run

from xlstm_hydra.parallel import abstract_mesh
from xlstm_hydra.plan import read_program, step_memory, trace_loss, working_memory
from xlstm_hydra.step import build_program, build_sharded_loss

SIZES = {"embedding_dim": 64, "context_length": 128, "vocab_size": 128}
CHUNKS = {"chunk_size": 32}
STEP = {"batch_size": 16}
KEPT = FSDP | {"remat": []}


def run(family="v1", layout="dp8", trainer=None, **model):
    parallel = LAYOUTS[layout] if isinstance(layout, str) else layout
    sizes = SIZES | (CHUNKS if family != "llama" and "backend" not in model else {}) | model
    return tiny_run(family, parallel, sizes, trainer=STEP | (trainer or {}))


_known = {}


def predicted(*args, **kwargs):
    wanted = run(*args, **kwargs)
    if (key := str(wanted)) not in _known:
        loss = build_sharded_loss(wanted, abstract_mesh(wanted.parallel, 8))
        _known[key] = step_memory(loss, trace_loss(loss))
    return _known[key]


def compiled(wanted):
    """What the compiler says: bytes of the arguments, and of everything."""
    program = build_program(wanted)
    arguments = program.abstract_state, program.abstract_batch, program.abstract_numbers
    step = program.train_step.lower(*arguments).compile()
    said = step.memory_analysis()
    whole = said.argument_size_in_bytes + said.output_size_in_bytes - said.alias_size_in_bytes
    return said.argument_size_in_bytes, whole + said.temp_size_in_bytes


CHECKED = {
    "mLSTM v1, fsdp": ("v1", "fsdp8", {}),
    "mLSTM, dp and tp": ("v0", "tp4_dp2", {}),
    "Llama, pipeline": ("llama", {"data_axis_size": 4, "pipeline_axis_size": 2}, {}),
}
SLOW = {
    "xLSTM, dp": ("xlstm", "dp8", {}),
    "Llama, all three": ("llama", "dp2_fsdp2_tp2", {}),
    "mLSTM v1, nothing scanned": ("v1", "dp8", {"scan_blocks": False}),
    "mLSTM v1, everything kept": ("v1", {"data_axis_size": 2, "fsdp_axis_size": 4, **KEPT}, {"num_blocks": 6}),
    "mLSTM v1, large vocabulary": ("v1", "tp2_fsdp4", {"vocab_size": 16384}),
    "mLSTM, long": ("v0", "fsdp8", {"context_length": 1024}),
    "xLSTM, tp": ("xlstm", "dp2_fsdp2_tp2", {}),
    "mLSTM, feed-forward": ("v0", "dp2_fsdp2_tp2", {"ff_type": "ffn_gated"}),
    "Llama, wide": ("llama", "dp8", {"embedding_dim": 256}),
    "Llama, collective matmul": ("llama", {**LAYOUTS["tp4_dp2"], "tp_async_dense": True}, {}),
}


@pytest.mark.parametrize(
    ("family", "layout", "model"),
    [*CHECKED.values(), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW.values())],
    ids=[*CHECKED, *SLOW],
)
def test_arguments_equal_and_memory_is_close_to_the_compilers(family, layout, model):
    arguments, whole = compiled(run(family, layout, **model))
    memory = predicted(family, layout, **model)
    assert memory.parameters + memory.optimizer + memory.batch == arguments
    assert memory.total == pytest.approx(whole, rel=0.1)


@pytest.mark.slow
def test_memory_with_gradient_accumulation_is_close_to_the_compilers():
    trainer = {"gradient_accumulate_steps": 4, "batch_size": 64}
    assert predicted(trainer=trainer).total == pytest.approx(compiled(run(trainer=trainer))[1], rel=0.1)


def test_fsdp_divides_parameters_and_optimizer_and_gathers_parameters():
    whole, shared = predicted(), predicted(layout="fsdp8")
    assert 8 * shared.parameters == pytest.approx(whole.parameters, rel=0.01)  # a few sizes do not divide by 8
    assert 8 * shared.optimizer == pytest.approx(whole.optimizer, rel=0.01)
    assert whole.gathered == 0 < shared.gathered


def test_remat_saves_fewer_activations():
    kept, policy = {"data_axis_size": 8}, {"trainer": {"remat_policy": "dots"}}
    blocks = {"data_axis_size": 8, "remat": ["mLSTMBlock"]}
    nothing, some, everything = predicted(layout=blocks), predicted(layout=blocks, **policy), predicted(layout=kept)
    assert nothing.activations < some.activations < everything.activations
    assert nothing.total < some.total < everything.total


@pytest.mark.parametrize(("family", "layout"), [("v1", "dp8"), ("llama", "tp2_fsdp4")])
def test_more_rows_never_need_less_memory(family, layout):
    sizes = [predicted(family, layout, trainer={"batch_size": rows}).total for rows in (8, 16, 64)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


def test_a_large_vocabulary_needs_memory_for_logits():
    small, large = predicted(vocab_size=128), predicted(vocab_size=8192)
    assert large.logits >= 2 * 128 * 8192 * 4 > small.logits  # two rows of 128 tokens on each device, in float32


def test_a_narrower_dtype_needs_less_memory_except_for_parameters():
    narrow, wide = predicted(dtype="bfloat16"), predicted(dtype="float32")
    assert narrow.parameters == wide.parameters
    assert narrow.total < wide.total


def test_the_update_is_the_peak_if_parameters_exceed_activations():
    memory = predicted("llama", context_length=8, embedding_dim=256)
    assert memory.moment == "the optimizer's update"
    assert (memory.activations, memory.gradients) == (0, memory.parameters)


def test_the_peak_is_described_by_its_modules():
    assert predicted(layout="fsdp8").moment.startswith("the backward pass of blocks.ffn_res_block")


def most(function, *arguments):
    """Bytes that a function needs beside its arguments."""
    return working_memory(read_program(jax.make_jaxpr(function)(*arguments)))


SQUARE = jnp.zeros((64, 64))
BYTES = SQUARE.size * 4


def test_elementwise_results_are_not_stored():
    assert most(lambda x: (jnp.sin(x) * 2 + 1) @ x, SQUARE) == 2 * BYTES  # the operand, and the product
    assert most(lambda x: ((x * 2 + 1).T * 3 + x).sum(), SQUARE) < 2 * BYTES


def test_a_result_is_freed_after_its_last_reader():
    def chain(x):
        for _ in range(5):
            x = x @ SQUARE
        return x

    assert most(chain, SQUARE) == 2 * BYTES


def test_a_loop_stacks_the_results_of_its_iterations():
    def stacked(x):
        return jax.lax.scan(lambda x, _: (x @ SQUARE, x), x, length=10)[1]

    assert 10 * BYTES <= most(stacked, SQUARE) <= 13 * BYTES
    assert most(lambda x: jax.lax.scan(lambda x, _: (x @ SQUARE, None), x, length=10)[0], SQUARE) <= 3 * BYTES
