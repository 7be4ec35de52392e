"""No dead field: for every field of `ParallelConfig`, a visible effect of changing it.

A field without an entry in `EVIDENCE` fails, so that none can be added that nothing shows.
"""

import collections
import dataclasses

import jax
import pytest
from stablehlo import lowered
from tiny import FSDP, tiny_run

from xlstm_hydra.configs import ConfigError, ParallelConfig
from xlstm_hydra.parallel import list_collectives
from xlstm_hydra.step import build_program

SHARDED = {"data_axis_size": 1, "fsdp_axis_size": 8, **FSDP}
TENSOR = {"data_axis_size": 4, "model_axis_size": 2}
EVIDENCE = {}


def shows(field):
    """Register a function as the evidence of a field."""
    return lambda function: EVIDENCE.setdefault(field, function)


def built(layout):
    """The program of a layout, for four blocks."""
    return build_program(tiny_run(parallel=layout, model={"num_blocks": 4}))


def specs(on):
    """Partition spec of every parameter."""
    return {placement.parameter.path: placement.spec for placement in on.placements}


def sharded(on):
    """Paths of the parameters that FSDP shards."""
    return {placement.parameter.path for placement in on.placements if placement.fsdp_axis is not None}


def types(layout, operation):
    """Number of collectives of a kind in the lowered step, by element type."""
    return collections.Counter(c.dtype for c in list_collectives(lowered(layout)[1]) if c.operation == operation)


@shows("data_axis_size")
def the_batch_is_split_and_no_parameter():
    on = built({"data_axis_size": 8})
    assert on.mesh.shape["dp"] == 8 and on.batch_sharding.shard_shape((8, 16)) == (1, 16)
    assert all(set(spec) <= {None} for spec in specs(on).values())
    with pytest.raises(ConfigError, match="must equal the number of devices, 8"):
        built({"data_axis_size": 4})


@shows("fsdp_axis_size")
def batch_and_parameters_are_split():
    on = built(SHARDED)
    assert on.mesh.shape["fsdp"] == 8 and on.batch_sharding.shard_shape((8, 16)) == (1, 16)
    placement = next(p for p in on.placements if p.parameter.path == "blocks.ffn_res_block.ffn.proj_up.kernel")
    whole = next(p for p in built({}).placements if p.parameter == placement.parameter)
    assert placement.bytes_per_device * 8 == whole.bytes_per_device


@shows("pipeline_axis_size")
def the_stack_of_blocks_is_split():
    on = built({"pipeline_axis_size": 4})
    assert on.mesh.shape["pp"] == 4
    assert all((spec[0] == "pp") == path.startswith("blocks.") for path, spec in specs(on).items())


@shows("model_axis_size")
def heads_channels_and_vocabulary_are_split():
    on = built(TENSOR)
    assert on.mesh.shape["tp"] == 2 and on.batch_sharding.shard_shape((8, 16)) == (2, 16)
    assert tuple(specs(on)["lm_head.out_dense.kernel"]) == (None, "tp")
    assert tuple(specs(on)["blocks.xlstm_res_block.xlstm.dense_q.kernel"]) == (None, None, "tp")


def renamed(field, new, layout):
    """The mesh has an axis of this name, and specs and collectives use the name."""
    old = getattr(ParallelConfig(), field)
    before, after = built(layout), built(layout | {field: new})
    assert tuple(after.mesh.shape) == tuple(new if name == old else name for name in before.mesh.shape)
    if field != "data_axis_name":
        assert any(new in spec for spec in specs(after).values())
    names = (*after.axes.summed, after.axes.tensor)
    assert new in names and old not in names
    with pytest.raises(ConfigError, match="axis names must differ"):
        ParallelConfig(**{field: next(name for name in ("dp", "tp") if name != old)})


@shows("data_axis_name")
def the_data_axis_has_the_name():
    renamed("data_axis_name", "replica", {"data_axis_size": 8})


@shows("fsdp_axis_name")
def the_fsdp_axis_has_the_name():
    renamed("fsdp_axis_name", "shard", SHARDED)


@shows("pipeline_axis_name")
def the_pipeline_axis_has_the_name():
    renamed("pipeline_axis_name", "stage", {"pipeline_axis_size": 2})


@shows("model_axis_name")
def the_tensor_axis_has_the_name():
    renamed("model_axis_name", "tensor", TENSOR)


@shows("remat")
def fewer_activations_are_kept():
    def memory(remat):
        program = lowered(SHARDED | {"remat": remat}, model={"num_blocks": 8})[1]
        return program.compile().memory_analysis().temp_size_in_bytes

    assert memory(["mLSTMBlock"]) < 0.7 * memory([])
    with pytest.raises(ConfigError, match=r"parallel.remat='Blok': not a module class of this model.*Known: Embed"):
        built({"remat": ["Blok"]})


@shows("fsdp_modules")
def the_named_modules_are_sharded_and_no_other():
    for modules in (["Embed"], ["LMHead"], ["FFNResBlock"]):
        on = built(SHARDED | {"fsdp_modules": modules, "remat": []})
        owners = {p.parameter.path: set(p.parameter.modules) for p in on.placements}
        assert sharded(on) == {path for path, classes in owners.items() if classes & set(modules)} != set()
    with pytest.raises(
        ConfigError, match="fsdp_modules='Embd': not a module class of this model. Did you mean 'Embed'"
    ):
        built(SHARDED | {"fsdp_modules": ["Embd"]})


@shows("fsdp_min_weight_size")
def smaller_parameters_stay_whole_and_say_why():
    every, large = built(SHARDED), built(SHARDED | {"fsdp_min_weight_size": 1024})
    assert sharded(large) < sharded(every)
    reasons = {p.whole_because for p in large.placements if p.parameter.path in sharded(every) - sharded(large)}
    assert reasons and all("fewer than parallel.fsdp_min_weight_size=1024" in reason for reason in reasons)


@shows("fsdp_gather_dtype")
def exactly_the_sharded_parameters_are_gathered_in_it():
    layout = SHARDED | {"remat": []}
    count = len(sharded(built(layout)))
    assert types(layout, "all-gather") == {"f32": count}
    assert types(layout | {"fsdp_gather_dtype": "bfloat16"}, "all-gather") == {"bf16": count}


@shows("fsdp_grad_scatter_dtype")
def exactly_the_sharded_gradients_are_scattered_in_it():
    layout = SHARDED | {"remat": []}
    count = len(sharded(built(layout)))
    assert types(layout, "reduce-scatter") == {"f32": count}
    assert types(layout | {"fsdp_grad_scatter_dtype": "bfloat16"}, "reduce-scatter") == {"bf16": count}


@shows("tp_async_dense")
def permutes_take_the_place_of_gathers_and_scatters():
    at_once, by_pieces = TENSOR, TENSOR | {"tp_async_dense": True}
    assert types(at_once, "all-gather") and types(at_once, "reduce-scatter")
    assert not types(at_once, "collective-permute")
    assert types(by_pieces, "collective-permute")
    assert not types(by_pieces, "all-gather") and not types(by_pieces, "reduce-scatter")
    assert specs(built(at_once)) == specs(built(by_pieces))
    with pytest.raises(ConfigError, match="tp_async_dense=true: has no effect"):
        tiny_run(parallel={"tp_async_dense": True})


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ParallelConfig)])
def test_the_field_has_its_documented_effect(field):
    assert field in EVIDENCE, f"nothing shows that parallel.{field} does anything; write its evidence above"
    EVIDENCE[field]()


def test_all_evidence_is_of_existing_fields():
    assert set(EVIDENCE) == {field.name for field in dataclasses.fields(ParallelConfig)}


@pytest.mark.parametrize("field", list(ParallelConfig().sizes()))
def test_any_one_mesh_axis_takes_the_remaining_devices(field):
    sizes = dict.fromkeys(ParallelConfig().sizes(), 1) | {field: -1}
    other = next(name for name in sizes if name != field)
    on = built(sizes | {other: 2})
    assert on.mesh.devices.size == jax.device_count() == 8
    assert (
        ParallelConfig(**sizes | {other: 2}).axis_sizes(8)[getattr(ParallelConfig(), field.replace("size", "name"))]
        == 4
    )
