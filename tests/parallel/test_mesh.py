"""Meshes: axis sizes, order of devices, descriptions."""

from typing import Any, NamedTuple

import jax
import pytest

from xlstm_hydra.configs import ConfigError, ParallelConfig
from xlstm_hydra.parallel import (
    Axes,
    assign_devices,
    axes_across_hosts,
    batch_spec,
    build_mesh,
    describe_mesh,
    mesh_axes,
)

SIZES = ("data_axis_size", "fsdp_axis_size", "pipeline_axis_size", "model_axis_size")


def layout(*sizes, **changes):
    return ParallelConfig(**dict(zip(SIZES, sizes, strict=True)), **changes)


@pytest.mark.parametrize("axis", range(4), ids=SIZES)
def test_any_single_size_can_be_inferred(axis):
    sizes = [2, 2, 1, 1]
    sizes[axis] = -1
    inferred = list(layout(*sizes).axis_sizes(16).values())
    assert inferred[axis] * (4 // [2, 2, 1, 1][axis]) == 16


def test_sizes_are_named_and_in_mesh_order():
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


def test_a_mesh_that_does_not_fit_is_reported_with_the_keys_as_typed():
    with pytest.raises(ConfigError, match=r"parallel\.fsdp_axis_size=3: .* must divide the number of devices, 8"):
        build_mesh(layout(-1, 3, 1, 1))


def test_the_mesh_has_all_four_axes():
    mesh = build_mesh(layout(-1, 2, 1, 2))
    assert dict(mesh.shape) == {"dp": 2, "fsdp": 2, "pp": 1, "tp": 2}
    assert describe_mesh(mesh) == "8 cpu devices: dp=2 fsdp=2 pp=1 tp=2"


def test_mesh_axes_of_size_one_are_never_named():
    parallel = layout(1, -1, 1, 1)
    mesh = build_mesh(parallel)
    assert mesh_axes(parallel, mesh) == Axes(tensor=None, tensor_size=1, batch=("fsdp",))
    assert batch_spec(parallel, mesh) == jax.P(("fsdp",))


def test_one_device_needs_no_collective():
    parallel = layout(-1, 1, 1, 1)
    assert mesh_axes(parallel, build_mesh(parallel, jax.devices()[:1])) == Axes()


class Device(NamedTuple):
    """The attributes of a device that the mesh depends on."""

    id: int
    process_index: int
    platform: str = "cpu"
    slice_index: int | None = None


def hosts(*counts, platform="cpu"):
    """Devices of hosts with these numbers of devices, one process each, in random order."""
    numbers = [host for host, count in enumerate(counts) for _ in range(count)]
    return [Device(index, host, platform) for index, host in enumerate(numbers)][::-1]


def mesh_of(parallel, devices, order=None):
    sizes = parallel.axis_sizes(len(devices))
    return FakeMesh(assign_devices(devices, sizes, order or parallel.busiest_axes()), tuple(sizes))


class FakeMesh(NamedTuple):
    """A mesh of these devices."""

    devices: Any
    axis_names: tuple[str, ...]

    @property
    def shape(self):
        return dict(zip(self.axis_names, self.devices.shape, strict=True))

    @property
    def size(self):
        return self.devices.size


PLACES = {
    "tp inside": ((-1, 1, 1, 2), (4, 4), None, ("dp",)),
    "tp, then fsdp inside": ((-1, 2, 1, 2), (4, 4), None, ("dp",)),
    "fsdp has to cross": ((1, -1, 1, 4), (8, 8), None, ("fsdp",)),
    "tp fills the host": ((-1, 1, 1, 8), (8,) * 4, None, ("dp",)),
    "tp has to cross": ((-1, 1, 1, 8), (4, 4), None, ("tp",)),
    "pp crosses before fsdp": ((1, 4, -1, 1), (4,) * 4, None, ("pp",)),
    "all of dp and pp": ((2, 8, 2, 1), (8,) * 4, None, ("dp", "pp")),
    "overridden": ((2, 1, 1, 4), (4, 4), ["dp", "fsdp", "pp", "tp"], ("tp",)),
    "overridden, fsdp closest": ((1, 4, 1, 4), (4,) * 4, ["fsdp", "tp", "pp", "dp"], ("tp",)),
    "hosts of other sizes": ((-1, 1, 1, 2), (2, 6), None, ("dp",)),
    "a host that does not divide": ((-1, 1, 1, 4), (2, 6), None, ("dp", "tp")),
    "one host": ((2, 2, 1, 2), (8,), None, ()),
}


@pytest.mark.parametrize(("sizes", "counts", "order", "across"), PLACES.values(), ids=PLACES)
def test_the_busiest_mesh_axes_stay_within_a_host_by_default(sizes, counts, order, across):
    mesh = mesh_of(layout(*sizes), hosts(*counts), order)
    assert axes_across_hosts(mesh) == across
    assert len(set(mesh.devices.flat)) == sum(counts)


def test_neighbors_in_a_host_are_ordered_by_id():
    mesh = mesh_of(layout(2, 1, 1, 4), hosts(4, 4))
    assert [[device.id for device in row] for row in mesh.devices.reshape(2, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_gpus_of_several_processes_on_a_host_are_neighbors():
    devices = [Device(index, index, "cuda", slice_index=index % 2) for index in range(8)]
    assert axes_across_hosts(mesh_of(layout(2, 1, 1, 4), devices)) == ("dp",)


def test_the_description_lists_the_mesh_axes_that_cross_hosts():
    devices = hosts(8, 8, platform="cuda")
    expected = "16 cuda devices in 2 processes: dp=2 fsdp=8 pp=1 tp=1; dp crosses hosts"
    assert describe_mesh(mesh_of(layout(-1, 8, 1, 1), devices)) == expected
    assert describe_mesh(mesh_of(layout(2, 2, 1, 4), hosts(4, 4, 4, 4))).endswith("; dp and fsdp cross hosts")


def test_the_order_applies_to_a_real_mesh():
    mesh = build_mesh(layout(2, 1, 1, 4), order=["dp", "fsdp", "pp", "tp"])
    assert [device.id for device in mesh.devices[0].flat] == [0, 2, 4, 6]
