"""The changes suggested by `split_with` make FSDP shard the parameter."""

import re
from dataclasses import replace

import pytest

from xlstm_hydra.configs import ParallelConfig
from xlstm_hydra.parallel import Parameter, shard_parameter, split_with

MODULES = ("mLSTMBlock", "Dense")


def parameter(*shape, names=None):
    return Parameter("a.b", shape, "float32", 4, names or (None,) * len(shape), MODULES)


SHAPES = {
    "matrix": parameter(32, 48),
    "vector": parameter(48),
    "stacked": parameter(3, 40, 6, names=("layers", None, None)),
    "tensor parallel": parameter(64, 12, names=("heads", None)),
    "odd": parameter(9, 15),
}
LAYOUTS = {
    "no fsdp": {},
    "modules": {"fsdp_axis_size": 4, "fsdp_min_weight_size": 0},
    "size": {"fsdp_axis_size": 4, "fsdp_modules": ["Dense"], "fsdp_min_weight_size": 10**6},
    "division": {"fsdp_axis_size": 7, "fsdp_modules": ["mLSTMBlock"], "fsdp_min_weight_size": 0},
    "everything": {"fsdp_axis_size": 7},
    "tensor parallel": {"fsdp_axis_size": 5, "model_axis_size": 2},
}


def changed(parallel, way):
    """Apply the suggested changes to a layout."""
    changes = {}
    if found := re.search(r"parallel\.fsdp_axis_size of (\d+)", way):
        changes["fsdp_axis_size"] = int(found[1])
    if found := re.search(r"(\w+) or \w+ in parallel\.fsdp_modules", way):
        changes["fsdp_modules"] = [found[1]]
    if found := re.search(r"parallel\.fsdp_min_weight_size of (\d+)", way):
        changes["fsdp_min_weight_size"] = int(found[1])
    assert changes
    return replace(parallel, **changes)


def placed(parameter, parallel):
    sizes = parallel.axis_sizes(parallel.fsdp_axis_size * parallel.model_axis_size)
    return shard_parameter(parameter, parallel, sizes), sizes


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("parameter", SHAPES.values(), ids=SHAPES)
def test_the_suggested_changes_make_fsdp_shard_the_parameter(parameter, layout):
    parallel = ParallelConfig(**layout)
    placement, sizes = placed(parameter, parallel)
    assert placement.fsdp_axis is None
    way = split_with(placement, parallel, sizes)
    if way is None:
        assert all(axis is not None for axis in placement.spec)  # no free array axis
        return
    assert placed(parameter, changed(parallel, way))[0].fsdp_axis is not None


def test_there_is_no_suggestion_without_a_free_array_axis():
    parallel = ParallelConfig(fsdp_axis_size=2, model_axis_size=2)
    for whole in (parameter(48, names=("heads",)), parameter(1, 1), parameter(4, 1, names=("layers", None))):
        placement, sizes = placed(whole, parallel)
        assert split_with(placement, parallel, sizes) is None
