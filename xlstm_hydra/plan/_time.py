"""A lower bound of the time of a step.

Three resources of a device work at the same time at best, so a step takes at least as long as the slowest of them:

- products: operations / the device's rate for the type of their operands. Nothing else of a program comes near that rate:
  operations per element run in the shadow of the memory that they read.
- memory: bytes read and written / its bandwidth. This is the "roofline" (Williams, Waterman, Patterson, CACM 52(4), 2009)
  of the whole program instead of each of its operations, which bounds from below.
- network: bytes that a device sends / the bandwidth of the link that they take.

What a device sends in a collective over n devices follows from rings (Patarasuk, Yuan, J. Parallel Distrib. Comput. 69(2), 2009),
which no algorithm beats in bytes where the network does not compute:

| operation | bytes sent, of a larger side of B bytes |
|---|---|
| all-gather, reduce-scatter, all-to-all | B (n - 1) / n |
| all-reduce | 2 B (n - 1) / n: a reduce-scatter and an all-gather |
| collective-permute | B |

A collective over several mesh axes, or over one that crosses hosts and has neighbours on the same host too, is one ring over
all its devices that enters and leaves each host once. All of its traffic then moves at the speed of its slowest link; where a
host has several such links, the rings of its devices share them, each device its own. So we take `network_bandwidth`, that of
one device across hosts, where any of the axes crosses hosts, and `host_bandwidth` elsewhere. A hierarchical collective
(reduce inside the hosts, exchange across, gather inside) sends 1 / (devices of the host that take part) of the bytes
across hosts. It is what NCCL's trees and XLA on TPU slices can come to, and the one case in which this is no lower bound.

The pipeline's bubble needs no term of its own: idle stages compute a microbatch that nobody uses, in the traced program as
on the devices, so that the counts of every device are those of all M + S - 1 ticks. `Plan.bubble` is the share of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xlstm_hydra.configs import DeviceConfig

from ._counts import Counts, Exchange


@dataclass(frozen=True)
class Traffic:
    """What a device sends in a step, by mesh axes, operation and type."""

    axes: tuple[str, ...]
    """Names of the mesh axes."""

    operation: str
    """As in `Exchange`."""

    dtype: str
    """Element type, by NumPy's name."""

    count: int
    """Collectives in a step."""

    bytes: int
    """Bytes of their larger sides, on each device."""

    wire_bytes: float
    """Bytes that each device sends."""

    crosses_hosts: bool
    """Whether the host changes somewhere along the axes."""

    seconds: float
    """Time to send them."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step that nothing can make shorter, if each resource did nothing but work."""

    compute: float
    """Matrix products, at the device's rate for their types, pipeline bubble included."""

    memory: float
    """Reading and writing memory, pipeline bubble included."""

    network: Mapping[str, float]
    """Sending, by mesh axis; where one collective is over several, by their names with + between."""

    @property
    def seconds(self) -> float:
        """The lower bound: the slowest of the three, where they overlap perfectly."""
        return max(self.compute, self.memory, sum(self.network.values()))

    @property
    def bound_by(self) -> str:
        """What the lower bound comes from: compute, memory or network."""
        times = {"compute": self.compute, "memory": self.memory, "network": sum(self.network.values())}
        return max(times, key=lambda name: times[name])


def step_time(counts: Counts, sizes: Mapping[str, int], across: tuple[str, ...], device: DeviceConfig) -> StepTime:
    """The time of a step.

    Args:
        counts: what each device does.
        sizes: of the mesh axes.
        across: names of the mesh axes that cross hosts.
        device: its speed.
    """
    network: dict[str, float] = {}
    for row in step_traffic(counts, sizes, across, device):
        name = "+".join(row.axes)
        network[name] = network.get(name, 0.0) + row.seconds
    compute = sum(flops / product_rate(device, dtype) for dtype, flops in counts.product_flops.items())
    return StepTime(compute, counts.traffic / (device.memory_bandwidth * 1e9), network)


def step_traffic(
    counts: Counts, sizes: Mapping[str, int], across: tuple[str, ...], device: DeviceConfig
) -> tuple[Traffic, ...]:
    """What each device sends in a step, the slowest first. The arguments are those of `step_time`."""
    kinds: dict[tuple[tuple[str, ...], str, str], list[Exchange]] = {}
    for exchange in counts.exchanges:
        kinds.setdefault((exchange.axes, exchange.operation, exchange.dtype), []).append(exchange)
    rows = []
    for (axes, operation, dtype), exchanges in kinds.items():
        sent = sum(wire_bytes(exchange, sizes) for exchange in exchanges)
        crosses = bool(set(axes) & set(across))
        bandwidth = 1e9 * (device.network_bandwidth if crosses else device.host_bandwidth)
        number = sum(exchange.count for exchange in exchanges)
        size = sum(exchange.count * exchange.bytes for exchange in exchanges)
        rows.append(Traffic(axes, operation, dtype, number, size, sent, crosses, sent / bandwidth))
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def wire_bytes(exchange: Exchange, sizes: Mapping[str, int]) -> float:
    """Bytes that each device sends for a collective, as often as it runs."""
    total, devices = exchange.bytes * exchange.count, 1
    for axis in exchange.axes:
        devices *= sizes[axis]
    if exchange.operation == "collective-permute":
        return total * (devices > 1)
    return total * (devices - 1) / devices * (2 if exchange.operation == "all-reduce" else 1)


def product_rate(device: DeviceConfig, dtype: str) -> float:
    """Operations per second of matrix products of a type. Types without a figure go at the rate of float32, which is
    what float8 products cost at most, and what float64 ones take at least."""
    rates = {"bfloat16": device.bfloat16_tflops, "float16": device.float16_tflops}
    return 1e12 * rates.get(dtype, device.float32_tflops)
