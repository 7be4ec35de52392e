"""What the layout's fields ask for stands in the lowered program."""

import collections
import re

import jax
import pytest
from tiny import FSDP, LAYOUTS, tiny_run

from xlstm_hydra.train import build_program

COLLECTIVES = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "collective_permute")


def lowered(parallel, family="v1", **groups):
    """StableHLO of loss and gradients. The compiled program would show bfloat16 collectives as float32 on CPU."""
    on = build_program(tiny_run(family, parallel=parallel, **groups))
    batch = {
        name: jax.ShapeDtypeStruct((8, 16), dtype, sharding=on.batch_sharding)
        for name, dtype in (
            ("inputs", "int32"),
            ("targets", "int32"),
            ("document_borders", "bool"),
            ("loss_mask", "bool"),
        )
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    return on, jax.jit(on.loss_and_gradients).lower(on.abstract_state.params, batch, key)


def collectives(parallel, **kwargs):
    """How often each collective stands in the program, by its element type."""
    on, program = lowered(parallel, **kwargs)
    found = collections.Counter()
    for operation in COLLECTIVES:
        pattern = rf'"stablehlo\.{operation}".*?\) -> tensor<(?:[0-9x]*x)?([a-z0-9]+)>'
        for dtype in re.findall(pattern, program.as_text(), re.DOTALL):
            found[operation, dtype] += 1
    return on, found


def sharded(on):
    return sum(placement.fsdp_axis is not None for placement in on.placements)


@pytest.mark.parametrize("family", ["v1", "xlstm"])
def test_each_sharded_parameter_has_one_gather_and_one_scatter(family):
    on, found = collectives(LAYOUTS["fsdp8"] | {"remat": []}, family=family)
    assert found["all_gather", "f32"] == found["reduce_scatter", "f32"] == sharded(on) > 10


@pytest.mark.parametrize("family", ["v1", "xlstm"])
def test_recomputation_gathers_again_inside_the_block(family):
    on, found = collectives(LAYOUTS["fsdp8"], family=family)
    in_blocks = sum(p.fsdp_axis is not None and p.parameter.path.startswith("blocks.") for p in on.placements)
    assert found["all_gather", "f32"] == sharded(on) + in_blocks
    assert found["reduce_scatter", "f32"] == sharded(on)


def test_the_gather_dtype_is_that_of_the_gathers_alone():
    on, found = collectives(LAYOUTS["fsdp8"] | {"remat": [], "fsdp_gather_dtype": "bfloat16"})
    assert found["all_gather", "bf16"] == sharded(on) and found["all_gather", "f32"] == 0
    assert found["reduce_scatter", "f32"] == sharded(on)


def test_the_scatter_dtype_is_that_of_the_scatters_alone():
    on, found = collectives(LAYOUTS["fsdp8"] | {"remat": [], "fsdp_grad_scatter_dtype": "bfloat16"})
    assert found["reduce_scatter", "bf16"] == sharded(on) and found["reduce_scatter", "f32"] == 0
    assert found["all_gather", "f32"] == sharded(on)


@pytest.mark.parametrize("modules", [["Embed"], ["LMHead"], ["FFNResBlock"], ["mLSTMBlock", "FFNResBlock"]], ids=str)
def test_only_the_named_modules_are_gathered_and_nested_names_gather_once(modules):
    on, found = collectives(LAYOUTS["fsdp8"] | {"remat": [], "fsdp_modules": modules})
    for placement in on.placements:
        assert (placement.fsdp_axis is not None) <= bool(set(modules) & set(placement.parameter.modules))
    assert found["all_gather", "f32"] == sharded(on) > 0


def test_the_minimum_size_leaves_small_parameters_whole():
    parallel = LAYOUTS["fsdp8"] | {"fsdp_min_weight_size": 1024}
    on, found = collectives(parallel | {"remat": []})
    assert all((p.fsdp_axis is None) == (size(p) < 1024) for p in on.placements)
    assert found["all_gather", "f32"] == sharded(on)


def size(placement):
    names, shape = placement.parameter.names, placement.parameter.shape
    product = 1
    for name, length in zip(names, shape, strict=True):
        product *= 1 if name == "layers" else length
    return product


def test_one_device_has_no_collective():
    on = build_program(tiny_run(), jax.devices()[:1])
    assert not on.axes.batch and on.axes.tensor is None
    _, found = collectives({"data_axis_size": 8})
    assert set(operation for operation, _ in found) == {"all_reduce"}


def test_the_program_does_not_grow_with_the_depth():
    sizes = [len(lowered(LAYOUTS["fsdp8"], model={"num_blocks": depth})[1].as_text()) for depth in (2, 12)]
    assert sizes[1] < 1.02 * sizes[0]


def memory(depth, remat):
    parallel = {"data_axis_size": 1, "fsdp_axis_size": 8, **FSDP, "remat": remat}
    model = {"embedding_dim": 128, "num_blocks": depth}
    return lowered(parallel, model=model)[1].compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_recomputation_keeps_no_gathered_weight_for_the_backward_pass():
    with_remat = memory(12, ["mLSTMBlock"]) - memory(4, ["mLSTMBlock"])
    without = memory(12, []) - memory(4, [])
    block_bytes = 4 * (4 * 128 * 128 + 3 * 128 * 384)
    assert without > 8 * block_bytes > with_remat
