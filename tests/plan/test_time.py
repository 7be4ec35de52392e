"""The lower bound of the time of a step."""

import dataclasses
import math

import pytest
from tiny import tiny_run

from xlstm_hydra.configs import DeviceConfig
from xlstm_hydra.plan import Counts, Exchange, axes_across, step_time, step_traffic

DEVICE = DeviceConfig(
    name="round",
    platform="gpu",
    kinds=[],
    memory_gib=80,
    memory_bandwidth=1000,
    float32_tflops=100,
    bfloat16_tflops=200,
    float16_tflops=200,
    devices_per_host=8,
    host_bandwidth=100,
    network_bandwidth=10,
)
SIZES = {"dp": 4, "fsdp": 16, "pp": 1, "tp": 2}
ACROSS = {"dp": 4, "fsdp": 4}


def sent(operation, *axes, size=1600):
    (row,) = step_traffic(Counts(exchanges=(Exchange(operation, axes, "float32", size, 1),)), SIZES, ACROSS, DEVICE)
    return row.within_hosts, row.across_hosts


@pytest.mark.parametrize("operation", ["all-gather", "reduce-scatter", "all-to-all", "all-reduce"])
@pytest.mark.parametrize("axes", [("tp",), ("fsdp",), ("dp",), ("dp", "fsdp")], ids="+".join)
def test_a_device_sends_as_many_bytes_as_in_a_ring(operation, axes):
    devices = math.prod(SIZES[axis] for axis in axes)
    factor = 2 if operation == "all-reduce" else 1
    assert sum(sent(operation, *axes)) == pytest.approx(factor * 1600 * (devices - 1) / devices)
    assert (sent(operation, *axes)[1] > 0) == bool(set(axes) & set(ACROSS))


def test_devices_of_a_host_share_the_traffic_from_other_hosts():
    # 16 devices, 4 to a host: three quarters come from elsewhere, a quarter of that over each device's link.
    assert sent("all-gather", "fsdp") == pytest.approx((1600 * (15 / 16 - 3 / 16), 1600 * 3 / 16))
    # Of an all-to-all each device gets its own.
    assert sent("all-to-all", "fsdp") == pytest.approx((1600 * 3 / 16, 1600 * 3 / 4))


def test_a_permute_crosses_hosts_if_any_neighbors_do():
    assert sent("collective-permute", "tp") == (1600, 0) and sent("collective-permute", "fsdp") == (0, 1600)


def test_the_slowest_resource_bounds_the_step():
    exchange = Exchange("all-gather", ("tp",), "float32", 2 * 10**9, 3)
    counts = Counts(product_flops={"bfloat16": 2e12, "float32": 1e12}, traffic=5e9, exchanges=(exchange,))
    time = step_time(counts, SIZES, ACROSS, DEVICE)
    assert (time.compute, time.memory) == pytest.approx((0.02, 0.005))
    assert time.network == {"tp": pytest.approx(0.03)}
    assert time.bound_by == "network" and time.seconds == pytest.approx(0.03)
    fast = dataclasses.replace(DEVICE, host_bandwidth=1000)
    assert step_time(counts, SIZES, ACROSS, fast).bound_by == "compute"
    assert step_time(dataclasses.replace(counts, traffic=9e10), SIZES, ACROSS, fast).bound_by == "memory"


def test_traffic_is_grouped_by_axes_operation_and_dtype_and_sorted():
    kinds = [("all-gather", ("fsdp",)), ("all-reduce", ("dp", "fsdp")), ("all-gather", ("fsdp",))]
    counts = Counts(exchanges=tuple(Exchange(*kind, "bfloat16", 2**20 * n, n) for n, kind in enumerate(kinds, 1)))
    rows = step_traffic(counts, SIZES, ACROSS, DEVICE)
    assert [(row.operation, row.axes, row.count, row.bytes) for row in rows] == [
        ("all-gather", ("fsdp",), 4, 10 * 2**20),
        ("all-reduce", ("dp", "fsdp"), 2, 4 * 2**20),
    ]
    assert rows[0].seconds == pytest.approx(rows[0].across_hosts / 10e9) and rows[0].across_hosts > 0


def test_a_device_of_unknown_speed_has_traffic_without_times():
    unknown = dataclasses.replace(DEVICE, **{key: 0.0 for key in vars(DEVICE) if key.endswith(("tflops", "width"))})
    counts = Counts(exchanges=(Exchange("all-reduce", ("dp",), "float32", 8, 1),))
    assert [row.seconds for row in step_traffic(counts, SIZES, ACROSS, unknown)] == [None]


@pytest.mark.parametrize(
    ("sizes", "across"),
    [
        ((1, 8, 1, 1), {}),
        ((1, 16, 1, 1), {"fsdp": 2}),
        ((16, 8, 1, 1), {"dp": 16}),
        ((2, 4, 1, 4), {"dp": 2, "fsdp": 2}),
        ((1, 1, 4, 4), {"pp": 2}),
        ((1, 1, 1, 16), {"tp": 2}),
        ((4, 1, 1, 3), {"dp": 2, "tp": 2}),
    ],
    ids=str,
)
def test_a_mesh_axis_crosses_hosts_if_its_devices_are_on_several(sizes, across):
    run = tiny_run()
    run.distributed.device_order = ["tp", "fsdp", "pp", "dp"]
    named = dict(zip(("dp", "fsdp", "pp", "tp"), sizes, strict=True))
    assert axes_across(run, named, 8) == across
