"""From sizes to a mesh."""

import jax
import pytest

from xlstm_hydra.configs import ConfigError, ParallelConfig
from xlstm_hydra.parallel import Axes, batch_spec, build_mesh, describe_mesh, mesh_axes

SIZES = ("data_axis_size", "fsdp_axis_size", "pipeline_axis_size", "model_axis_size")


def layout(*sizes, **changes):
    return ParallelConfig(**dict(zip(SIZES, sizes, strict=True)), **changes)


@pytest.mark.parametrize("axis", range(4), ids=SIZES)
def test_any_one_size_is_inferred(axis):
    sizes = [2, 2, 1, 1]
    sizes[axis] = -1
    inferred = list(layout(*sizes).axis_sizes(16).values())
    assert inferred[axis] * (4 // [2, 2, 1, 1][axis]) == 16


def test_sizes_are_in_mesh_order_under_their_names():
    sizes = layout(2, 4, 1, 3, data_axis_name="replica").axis_sizes(24)
    assert list(sizes.items()) == [("replica", 2), ("fsdp", 4), ("pp", 1), ("tp", 3)]


PRODUCTS = {
    "too many": (
        (2, 3, 1, 1),
        8,
        r"dp\(2\) \* fsdp\(3\) \* pp\(1\) \* tp\(1\) = 6 must equal the number of devices, 8",
    ),
    "does not divide": ((-1, 3, 1, 1), 8, r"fsdp\(3\) \* pp\(1\) \* tp\(1\) = 3 must divide the number of devices, 8"),
    "more than there are": ((-1, 16, 1, 1), 8, "divide 8: 1, 2, 4 or 8"),
    "one device": ((1, 1, 1, 1), 8, r"Set data_axis_size=8 \(or -1\)"),
    "a data size to leave out": ((3, 2, 1, 1), 8, r"Set data_axis_size=-1 to infer 4"),
}


@pytest.mark.parametrize(("sizes", "devices", "words"), PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_that_is_not_the_number_of_devices_is_refused_with_the_way_out(sizes, devices, words):
    with pytest.raises(ConfigError, match=words):
        layout(*sizes).axis_sizes(devices)


def test_a_mesh_that_does_not_fit_names_the_keys_as_typed():
    with pytest.raises(ConfigError, match=r"parallel\.fsdp_axis_size=3: .* must divide the number of devices, 8"):
        build_mesh(layout(-1, 3, 1, 1))


def test_the_mesh_has_all_four_axes():
    mesh = build_mesh(layout(-1, 2, 1, 2))
    assert dict(mesh.shape) == {"dp": 2, "fsdp": 2, "pp": 1, "tp": 2}
    assert describe_mesh(mesh) == "8 devices (cpu): dp=2 fsdp=2 pp=1 tp=2"


def test_axes_of_size_one_are_never_named():
    parallel = layout(1, -1, 1, 1)
    mesh = build_mesh(parallel)
    assert mesh_axes(parallel, mesh) == Axes(tensor=None, tensor_size=1, batch=("fsdp",))
    assert batch_spec(parallel, mesh) == jax.P(("fsdp",))


def test_one_device_needs_no_collective():
    parallel = layout(-1, 1, 1, 1)
    assert mesh_axes(parallel, build_mesh(parallel, jax.devices()[:1])) == Axes()
