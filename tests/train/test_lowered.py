"""The lowered program does what the fields of the layout request."""

import jax
import pytest
from stablehlo import collectives, lowered
from tiny import FSDP, LAYOUTS, tiny_run

from xlstm_hydra.parallel import build_mesh
from xlstm_hydra.step import build_program


def sharded(on):
    return sum(placement.fsdp_axis is not None for placement in on.placements)


@pytest.mark.parametrize("family", ["v1", "xlstm"])
def test_each_sharded_parameter_has_one_gather_and_one_scatter(family):
    on, found = collectives(LAYOUTS["fsdp8"] | {"remat": []}, family=family)
    assert found["all-gather", "f32"] == found["reduce-scatter", "f32"] == sharded(on) > 10


@pytest.mark.parametrize("family", ["v1", "xlstm", "llama"])
def test_recomputation_gathers_again_inside_the_block(family):
    on, found = collectives(LAYOUTS["fsdp8"], family=family)
    in_blocks = sum(p.fsdp_axis is not None and p.parameter.path.startswith("blocks.") for p in on.placements)
    assert found["all-gather", "f32"] == sharded(on) + in_blocks
    assert found["reduce-scatter", "f32"] == sharded(on)


@pytest.mark.parametrize("policy", ["dots", "dots_with_no_batch_dims"])
def test_a_policy_saves_products_but_no_gathered_parameter(policy):
    on, found = collectives(LAYOUTS["fsdp8"], family="llama", trainer={"remat_policy": policy})
    in_blocks = sum(p.fsdp_axis is not None and p.parameter.path.startswith("blocks.") for p in on.placements)
    assert found["all-gather", "f32"] == sharded(on) + in_blocks


def test_the_more_a_policy_saves_the_fewer_products_are_recomputed():
    products = {}
    for policy in ("nothing", "dots_with_no_batch_dims", "dots"):
        text = lowered(LAYOUTS["fsdp8"], trainer={"remat_policy": policy}, model={"backend": "quadratic"})[1].as_text()
        products[policy] = text.count("stablehlo.dot_general")
    assert products["nothing"] > products["dots_with_no_batch_dims"] > products["dots"]


def test_the_gather_dtype_applies_only_to_gathers():
    on, found = collectives(LAYOUTS["fsdp8"] | {"remat": [], "fsdp_gather_dtype": "bfloat16"}, family="llama")
    assert found["all-gather", "bf16"] == sharded(on) and found["all-gather", "f32"] == 0
    assert found["reduce-scatter", "f32"] == sharded(on)


def test_the_scatter_dtype_applies_only_to_scatters():
    on, found = collectives(LAYOUTS["fsdp8"] | {"remat": [], "fsdp_grad_scatter_dtype": "bfloat16"}, family="llama")
    assert found["reduce-scatter", "bf16"] == sharded(on) and found["reduce-scatter", "f32"] == 0
    assert found["all-gather", "f32"] == sharded(on)


@pytest.mark.parametrize("modules", [["Embed"], ["LMHead"], ["FFNResBlock"], ["mLSTMBlock", "FFNResBlock"]], ids=str)
def test_only_the_named_modules_are_gathered_and_nested_ones_only_once(modules):
    on, found = collectives(LAYOUTS["fsdp8"] | {"remat": [], "fsdp_modules": modules})
    for placement in on.placements:
        assert (placement.fsdp_axis is not None) <= bool(set(modules) & set(placement.parameter.modules))
    assert found["all-gather", "f32"] == sharded(on) > 0


def test_parameters_below_the_minimum_size_are_not_sharded():
    parallel = LAYOUTS["fsdp8"] | {"fsdp_min_weight_size": 1024}
    on, found = collectives(parallel | {"remat": []}, family="llama")
    assert all((p.fsdp_axis is None) == (size(p) < 1024) for p in on.placements)
    assert found["all-gather", "f32"] == sharded(on)


def size(placement):
    names, shape = placement.parameter.names, placement.parameter.shape
    product = 1
    for name, length in zip(names, shape, strict=True):
        product *= 1 if name == "layers" else length
    return product


def test_the_program_of_one_device_has_no_collective():
    on = build_program(tiny_run(), build_mesh(tiny_run().parallel, jax.devices()[:1]))
    assert not on.axes.batch and on.axes.tensor is None
    _, found = collectives({"data_axis_size": 8})
    assert set(operation for operation, _ in found) == {"all-reduce"}


@pytest.mark.parametrize("family", ["v1", "v0"])
def test_collective_matmul_removes_gathers_and_scatters_from_the_dense_layers(family):
    at_once, by_pieces = (
        collectives({"data_axis_size": 2, "model_axis_size": 4, "tp_async_dense": overlap}, family=family)
        for overlap in (False, True)
    )
    assert at_once[1]["all-gather", "f32"] > 0 and at_once[1]["reduce-scatter", "f32"] > 0
    assert by_pieces[1]["all-gather", "f32"] == by_pieces[1]["reduce-scatter", "f32"] == 0
    assert by_pieces[1]["collective-permute", "f32"] % 3 == 0  # to three other devices each
    assert [p.parameter for p in at_once[0].placements] == [p.parameter for p in by_pieces[0].placements]


def test_no_device_has_the_logits_of_the_whole_vocabulary():
    model = {"vocab_size": 48, "logits_soft_cap": 3.0}  # a number that is no other width here
    text = lowered({"data_axis_size": 2, "model_axis_size": 4}, model=model)[1].as_text()
    assert "tensor<4x16x12xf32>" in text and "x16x48x" not in text


def test_the_size_of_the_program_does_not_depend_on_the_number_of_blocks():
    sizes = [len(lowered(LAYOUTS["fsdp8"], model={"num_blocks": depth})[1].as_text()) for depth in (2, 12)]
    assert sizes[1] < 1.02 * sizes[0]


def memory(depth, remat):
    parallel = {"data_axis_size": 1, "fsdp_axis_size": 8, **FSDP, "remat": remat}
    model = {"embedding_dim": 128, "num_blocks": depth}
    return lowered(parallel, model=model)[1].compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_with_recomputation_no_gathered_weight_is_saved_for_the_backward_pass():
    with_remat = memory(12, ["mLSTMBlock"]) - memory(4, ["mLSTMBlock"])
    without = memory(12, []) - memory(4, [])
    block_bytes = 4 * (4 * 128 * 128 + 3 * 128 * 384)
    assert without > 8 * block_bytes > with_remat
