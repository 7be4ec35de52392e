"""Placement of parameters on the mesh, and the reasons if they are not sharded."""

import jax
import pytest

from xlstm_hydra.configs import ConfigError, ParallelConfig
from xlstm_hydra.parallel import Parameter, shard_parameter, sharding_report, sharding_summary

SIZES = {"dp": 1, "fsdp": 4, "pp": 1, "tp": 2}


def parameter(
    shape=(3, 64, 96), names=("layers", "embed", "mlp"), modules=("mLSTMBlock", "Dense"), path="blocks.up.kernel"
):
    return Parameter(path, shape, "float32", 4, names, modules)


def placed(sizes=SIZES, modules=("mLSTMBlock",), min_size=0, **changes):
    parallel = ParallelConfig(
        data_axis_size=-1, fsdp_axis_size=sizes["fsdp"], model_axis_size=sizes["tp"],
        fsdp_modules=list(modules), fsdp_min_weight_size=min_size,
    )  # fmt: skip
    return shard_parameter(parameter(**changes), parallel, sizes)


def test_named_array_axes_use_the_tensor_mesh_axis_and_fsdp_uses_the_largest_free_one():
    placement = placed()
    assert placement.spec == jax.P(None, "fsdp", "tp")
    assert placement.fsdp_axis == -2 and placement.whole_because is None
    assert placement.bytes_per_device == 3 * 64 * 96 * 4 // 8


def test_of_equal_array_axes_fsdp_uses_the_last():
    assert placed(shape=(64, 64), names=(None, None)).spec == jax.P(None, "fsdp")


def test_an_array_axis_that_is_not_divisible_is_skipped():
    assert placed(shape=(64, 99), names=(None, None)).spec == jax.P("fsdp", None)


def test_the_stacking_array_axis_is_never_split():
    placement = placed(shape=(64, 3, 5), names=("layers", None, None))
    assert placement.spec == jax.P(None, None, None)
    assert (
        placement.whole_because == "none of the unsharded array axes (3, 5) is divisible by parallel.fsdp_axis_size=4"
    )


REASONS = {
    "not named": ({"modules": ("Embed",)}, r"module classes \(mLSTMBlock, Dense\) is in parallel.fsdp_modules"),
    "too small": ({"min_size": 3073}, "3072 elements, fewer than parallel.fsdp_min_weight_size=3073"),
    "no fsdp": ({"sizes": SIZES | {"fsdp": 1}}, "parallel.fsdp_axis_size is 1"),
}


@pytest.mark.parametrize(("changes", "words"), REASONS.values(), ids=REASONS)
def test_a_parameter_that_is_not_sharded_has_a_reason(changes, words):
    import re

    assert re.search(words, placed(**changes).whole_because)


def test_the_minimum_size_applies_to_one_block_on_one_tensor_parallel_device():
    # 64 * 96 / 2 elements of one of three blocks.
    assert placed(min_size=64 * 96 // 2).fsdp_axis is not None
    assert placed(min_size=64 * 96 // 2 + 1).fsdp_axis is None


def test_an_array_axis_that_is_not_divisible_by_the_tensor_mesh_axis_is_refused():
    with pytest.raises(
        ConfigError, match=r"parallel.model_axis_size=2: must divide array axis 'mlp' of blocks.up.kernel"
    ):
        placed(shape=(3, 64, 97))


def test_an_unknown_array_axis_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"an array axis with the unknown name .wings.. Known: vocab, heads"):
        placed(names=("layers", "wings", None))


def test_the_report_has_every_parameter_and_the_totals():
    text = sharding_report([placed(), placed(modules=())])
    assert "blocks.up.kernel" in text and "3x64x96" in text and "(-, fsdp, tp)" in text
    assert "not sharded by FSDP: none of its module classes" in text
    assert sharding_summary([placed()]).startswith(
        "18,432 parameters in 1 arrays, 73,728 bytes; 9,216 bytes on each device"
    )
